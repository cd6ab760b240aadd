"""What systemd is told and asked, and what of it needs no systemd to be tried."""

from __future__ import annotations

import logging
import os
import socket
from types import SimpleNamespace

import pytest

from lxcfs_py import cli
from lxcfs_py.config import Config, Cpu
from lxcfs_py.daemon import control, degraded, last_config, systemd
from lxcfs_py.engine import fusepy, protocol, watchdog
from lxcfs_py.linux import mount_table, runtime_directory


@pytest.fixture
def notified(tmp_path, monkeypatch):
    """What the process tells its NOTIFY_SOCKET, message by message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def messages():
            while True:
                try:
                    yield listener.recv(4096).decode()
                except BlockingIOError:
                    return

        yield messages


@pytest.fixture
def unit(notified):
    unit = systemd.Unit()
    yield unit
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, systemd.LastProblem):
            root.removeHandler(handler)


@pytest.fixture
def list_jobs(tmp_path, monkeypatch):
    """list_jobs(text, code=0): what systemctl prints from now on, whatever it is asked."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def prints(text, code=0):
        script = tmp_path / "systemctl"
        script.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        script.chmod(0o755)

    return prints


def test_the_status_has_the_last_problem_on_one_line(unit, notified):
    unit.ready("Serving 12 files")
    logging.getLogger("lxcfs_py").info("nothing of interest")
    logging.getLogger("lxcfs_py").warning("two\nlines")
    unit.status("Serving 12 files")
    unit.status("Serving 12 files")
    ready, status, with_problem = notified()
    assert (ready, status) == ("READY=1", "STATUS=Serving 12 files")
    assert with_problem.startswith("STATUS=Serving 12 files. Last problem, ")
    assert with_problem.endswith(": two lines")


def test_a_reload_is_told_with_its_time(unit, notified):
    unit.reloading()
    (message,) = notified()
    reloading, microseconds = message.split("\n")
    assert reloading == "RELOADING=1"
    assert int(microseconds.partition("MONOTONIC_USEC=")[2]) > 0


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_seconds() == 20


@pytest.mark.parametrize(
    ("jobs", "result", "follows"),
    [
        ("71 lxcfs-py.service stop running", "success", False),
        ("71 lxcfs-py.service restart running", "success", True),
        ("71 lxcfs-py.service start running", "exit-code", True),
        ("71 docker.service stop running", "success", False),
        ("72 docker.service stop waiting\n71 lxcfs-py.service restart running", "success", True),
        ("", "signal", True),
        ("", "success", False),
    ],
)
def test_another_process_follows_unless_it_was_stopped_or_went_by_itself(list_jobs, monkeypatch, jobs, result, follows):
    list_jobs(jobs)
    monkeypatch.setenv("SERVICE_RESULT", result)
    assert systemd.will_be_started_again("lxcfs-py.service") is follows


def test_the_mount_is_left_where_systemd_does_not_answer(list_jobs, monkeypatch):
    list_jobs("Failed to list jobs", code=1)
    monkeypatch.setenv("SERVICE_RESULT", "success")
    assert systemd.will_be_started_again("lxcfs-py.service") is True


def test_who_reloads_with_a_file_that_is_not_there_is_told_so(monkeypatch, capsys):
    def refuse(path):
        raise control.NotRunningError(f"no daemon serves with {path}")

    monkeypatch.setattr(control, "reload", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert cli.main(["reload", "--config", "/none"]) == 1
    said = "lxcfs-py: /none was not reloaded: there is no such file, and no daemon serves with /none\n"
    assert capsys.readouterr().err == said


def test_who_asks_by_hand_is_told_that_nothing_was_done(list_jobs, monkeypatch, capsys):
    list_jobs("")
    monkeypatch.delenv("SERVICE_RESULT", raising=False)
    assert cli.main(["unmount", "--unless-restarting", "none-such", "--config", "/dev/null"]) == 1
    assert capsys.readouterr().err.startswith("lxcfs-py: --unless-restarting works only in the ExecStopPost= of ")


def slot(opcode, unique=0):
    return memoryview(bytearray(protocol.IN_HEADER.pack(40, opcode, unique, 1, 4711)))


def test_a_worker_that_is_at_one_request_too_long_is_found(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    slots = [slot(0), slot(protocol.READ, 7)]
    check = watchdog.of_workers(slots)
    assert check(5) is None
    now[0] += 4
    assert check(5) is None
    now[0] += 2
    assert "worker 1" in check(5)
    assert "process 4711" in check(5)


def test_a_worker_that_is_always_at_another_request_is_not_stuck(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    slots = [slot(protocol.READ, 7)]
    check = watchdog.of_workers(slots)
    for unique in range(8, 20):
        assert check(5) is None
        now[0] += 4
        slots[0][:] = slot(protocol.READ, unique)


def test_an_operation_of_fusepys_that_takes_too_long_is_found(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fusepy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fusepy, "_fuse", SimpleNamespace(fuse_get_context=lambda: (0, 0, 4711)))
    found = []

    class Tree:
        lengths = dict

        def readlink(self, caller, path):
            now[0] += int(path)
            found.append(operations.stuck(5))

    operations = fusepy.Operations(Tree())
    for path in ("4", "6"):
        operations("readlink", path)
    assert found[0] is None
    assert "over 5 s" in found[1]
    assert operations.stuck(5) is None


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    """A directory in place of /run/lxcfs-py."""
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path / "run"))
    monkeypatch.setattr(degraded, "_states", {})
    return tmp_path / "run"


def test_the_configuration_that_served_last_is_remembered_by_its_mountpoint_and_its_file(runtime):
    assert last_config.recall("/srv/a") is None
    first, second = (Config(mountpoint=f"/srv/{name}", cpu=Cpu(mode="cpuset")) for name in "ab")
    last_config.remember(first, "/etc/lxcfs.toml")
    last_config.remember(second, "")
    assert (last_config.recall("/srv/a"), last_config.recall("/srv/b")) == (first, second)
    assert last_config.served_with("/etc/lxcfs.toml") == [first]
    for kept in runtime.iterdir():
        kept.write_text("from = another version")
    assert last_config.recall("/srv/a") is None
    runtime_directory.forget("/srv/a")
    runtime_directory.forget("/srv/b")
    assert not list(runtime.iterdir())


@pytest.mark.parametrize("name", [b"/etc/\xff.toml", "/etc/\u00e4.toml".encode(), b"/etc/a\nb.toml"])
def test_a_configuration_is_remembered_by_whatever_name_its_file_has(runtime, name):
    file = os.fsdecode(name)
    last_config.remember(Config(mountpoint="/srv/a"), file)
    assert degraded.states() == {}
    assert last_config.served_with(file) == [last_config.recall("/srv/a")] == [Config(mountpoint="/srv/a")]
    assert last_config.served_with(f"{file}x") == []


def test_fifos_in_the_place_of_what_is_remembered_let_nobody_wait(runtime):
    runtime.mkdir()
    kept = runtime_directory.writable_path_of("/srv/a", "toml")
    os.mkfifo(kept)
    assert (last_config.recall("/srv/a"), last_config.served_with("/etc/lxcfs.toml")) == (None, [])
    os.mkfifo(f"{kept}.new")
    last_config.remember(Config(mountpoint="/srv/a"), "/etc/lxcfs.toml")
    assert last_config.recall("/srv/a") == Config(mountpoint="/srv/a")
    assert "runtime files" not in degraded.states()


def test_a_configuration_that_cannot_be_kept_is_a_degraded_state(tmp_path, runtime, monkeypatch):
    (tmp_path / "run").touch()  # no directory
    last_config.remember(Config(), "/etc/lxcfs.toml")
    assert "with the defaults" in degraded.states()["runtime files"]


def test_a_mountinfo_file_is_parsed_whatever_its_names_hold():
    line = r"36 35 0:42 /proc/meminfo /srv/a\040b rw,nosuid shared:7 - fuse.lxcfs lxcfs rw,user_id=0"
    (mount,) = mount_table.parse(line)
    assert (mount.device, mount.root, mount.mountpoint, mount.fstype) == (
        "0:42",
        "/proc/meminfo",
        "/srv/a b",
        "fuse.lxcfs",
    )


def test_a_line_of_mountinfo_that_is_otherwise_is_passed_over():
    """Found by tests/fuzz."""
    right = "36 35 98:0 / /mnt rw - ext3 /dev/root rw"
    assert len(list(mount_table.parse(f"1\n\n{right}\n36 35 98:0 / /mnt rw - ext3\n- - -\n"))) == 1


def test_who_did_not_listen_when_all_was_ready_is_told_later(unit, monkeypatch):
    told, listens = [], []

    def notify(text, seconds):
        if not listens:
            raise BlockingIOError
        told.append(text)

    monkeypatch.setattr(systemd, "notify", notify)
    unit.ready("Serving 12 files")
    unit.feed_watchdog()
    assert "does not listen" in degraded.states()["listener"]
    listens.append(True)
    unit.feed_watchdog()
    unit.feed_watchdog()
    assert told == ["READY=1", "WATCHDOG=1", "WATCHDOG=1"]
    assert "listener" not in degraded.states()
