from __future__ import annotations

import os

import pytest

from lxcfs_py import cli
from lxcfs_py.attach import mount_users, places
from lxcfs_py.attach.errors import AttachError
from lxcfs_py.attach.mount_users import Found, User
from lxcfs_py.commands import unmount
from lxcfs_py.daemon import call_agent, control
from lxcfs_py.engine import session
from lxcfs_py.linux import mountpoint, roots
from lxcfs_py.linux.mount_table import Mount
from lxcfs_py.linux.mountpoint import FSTYPE


def test_a_user_is_one_line_whatever_names_its_container_has_chosen(monkeypatch, capsys):
    user = User(7, "a\n8\tb", "0:45", "/proc/x\n9\tc\t/\tserved\udcff")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(mount_users, "find", lambda mountpoint: Found([user], 0))
    monkeypatch.setattr(mount_users, "states", lambda users: {"0:45": "live"})
    assert cli.main(["users", "--config", "/dev/null"]) == 0
    assert capsys.readouterr().out == "7\ta\\n8\\tb\t/proc/x\\n9\\tc\\t/\\tserved\\udcff\tserved\n"


def test_of_a_server_that_nobody_could_be_asked_about_nothing_is_said(monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(mount_users, "find", lambda mountpoint: Found([User(7, "web", "0:45", "/views")], 0))
    monkeypatch.setattr(mount_users, "states", lambda users: {})
    assert cli.main(["users", "--config", "/dev/null"]) == 0
    assert capsys.readouterr().out.endswith("\tunknown\n")


def test_unmount_names_who_loses_the_files_on_one_line(monkeypatch, capsys):
    user = User(7, "\033[2Jü\nlxcfs-py: all is well", "0:45", "/proc/meminfo")
    monkeypatch.setattr(mount_users, "find", lambda mountpoint, device: Found([user], 0))
    monkeypatch.setattr(mount_users, "device", lambda mountpoint: "0:45")
    for module, name in ((mountpoint, "unmount_all"), (session, "withdraw"), (call_agent, "withdraw")):
        monkeypatch.setattr(module, name, lambda path: None)
    unmount._unmount_at("/")
    told = capsys.readouterr().err
    assert "process 7 (\\x1b[2Jü\\nlxcfs-py: all is well): " in told
    assert told.count("\n") == 1


@pytest.fixture
def namespaces(tmp_path, monkeypatch):
    """A function that makes a process in a mount namespace of its own, with a mountinfo."""
    monkeypatch.setattr(roots, "PROC", str(tmp_path))
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").touch()

    def make(pid: int, mountinfo: str) -> None:
        process = tmp_path / str(pid)
        if pid == 1:
            (tmp_path / "self/mountinfo").write_text(mountinfo)
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").touch()
        (process / "comm").write_text(f"number{pid}\n")
        (process / "mountinfo").write_text(mountinfo)

    return make


def line(path: str, device: str = "0:45", fstype: str = FSTYPE, root: str = "/meminfo") -> str:
    return f"40 30 {device} {root} {path} rw - {fstype} lxcfs rw\n"


def test_who_has_files_is_found_and_the_mounts_of_the_host_are_passed_over(namespaces):
    namespaces(1, line("/views"))
    namespaces(2, line("/proc/meminfo") + line("/proc/stat") + line("/a\\040b", "0:46") + line("/", "0:47", "ext4"))
    users = [User(2, "number2", "0:45", "/proc/meminfo"), User(2, "number2", "0:46", "/a b")]
    assert mount_users.find("/views") == (users, 0)
    assert mount_users.find("/views", "0:46") == (users[1:], 0)


def test_the_host_is_no_user_of_a_second_daemons_mount_and_a_service_with_a_copy_neither(namespaces):
    second = line("/second", "0:46", root="/")
    namespaces(1, line("/views", root="/") + second)
    namespaces(2, line("/views", root="/") + second)
    namespaces(3, line("/views", root="/") + second + line("/proc/stat", "0:46"))
    assert mount_users.find("/views").users == [User(3, "number3", "0:46", "/proc/stat")]


def test_one_with_many_mounts_hides_no_other_and_is_named(namespaces, monkeypatch):
    monkeypatch.setattr(mount_users, "_ROUNDS", (1 << 10, 8 << 10))
    namespaces(1, line("/" + "\\040" * 240, fstype="tmpfs") * 100)
    namespaces(2, line("/" + "\\040" * 240, fstype="tmpfs") * 5 + line("/proc/meminfo"))
    namespaces(3, line("/proc/meminfo"))
    users, passed_over = mount_users.find("/views")
    assert [user.pid for user in users] == [2, 3]
    assert passed_over == 1


def test_all_together_are_looked_at_for_a_bounded_time(namespaces, monkeypatch):
    monkeypatch.setattr(mount_users, "SECONDS", 0.0)
    namespaces(1, line("/proc/meminfo"))
    found = mount_users.find("/views")
    assert found == ([], 1)
    assert found.missing


def test_what_is_unmounted_is_so_before_anybody_looks_who_had_it(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(mountpoint, "unmount_all", lambda path: done.append("unmounted"))
    monkeypatch.setattr(mount_users, "device", lambda mountpoint: None if done else "0:45")
    monkeypatch.setattr(mount_users, "find", lambda mountpoint, device: done.append(device) or Found([], 2))
    for module in (session, call_agent):
        monkeypatch.setattr(module, "withdraw", lambda path: None)
    unmount._unmount_at("/")
    assert done == ["unmounted", "0:45"]
    assert capsys.readouterr().err.endswith(": 2\n")


def test_a_container_with_too_many_mounts_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "mountinfo").write_text(line("/proc/meminfo") * 3)
    process = os.open(tmp_path, os.O_PATH)
    assert len(places.mounts(process)) == 1
    with pytest.raises(AttachError, match="too many mounts"):
        places.mounts(process, most=100)
    os.close(process)


@pytest.mark.parametrize("whose", ["root's", "own"])
def test_an_ordinary_user_unmounts_only_a_mount_of_that_user(whose, ordinary_user, monkeypatch, capsys):
    owner = 0 if whose == "root's" else ordinary_user
    there = [Mount("0:45", "/", "/var/lib/lxcfs", mountpoint.FSTYPE, f"rw,user_id={owner},group_id=0")]
    monkeypatch.setattr(mountpoint.mount_table, "read", lambda: there)
    monkeypatch.setattr(control, "ask", no_daemon)
    taken_away = []
    monkeypatch.setattr(unmount, "_unmount_at", taken_away.append)
    code = cli.main(["unmount", "--config", "/dev/null"])
    if owner == ordinary_user:
        assert (code, taken_away) == (0, ["/var/lib/lxcfs"])
    else:
        assert (code, taken_away) == (1, [])
        assert capsys.readouterr().err.endswith("\n  run this with sudo\n")


def no_daemon(place):
    raise control.NotRunningError(f"no daemon runs for {place}")
