from __future__ import annotations

from lxcfs_py import cli
from lxcfs_py.attach import mount_users
from lxcfs_py.attach.mount_users import User
from lxcfs_py.commands import unmount
from lxcfs_py.daemon import call_agent
from lxcfs_py.engine import session
from lxcfs_py.linux import mountpoint


def test_a_user_is_one_line_whatever_names_its_container_has_chosen(monkeypatch, capsys):
    user = User(7, "a\n8\tb", "0:45", "/proc/x\n9\tc\t/\tserved\udcff")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(mount_users, "find", lambda mountpoint: [user])
    monkeypatch.setattr(mount_users, "served", lambda users: {"0:45": "served"})
    assert cli.main(["users", "--config", "/dev/null"]) == 0
    assert capsys.readouterr().out == "7\ta\\n8\\tb\t/proc/x\\n9\\tc\\t/\\tserved\\udcff\tserved\n"


def test_unmount_names_who_loses_the_files_on_one_line(monkeypatch, capsys):
    user = User(7, "\033[2Jü\nlxcfs-py: all is well", "0:45", "/proc/meminfo")
    monkeypatch.setattr(mount_users, "find", lambda mountpoint: [user])
    monkeypatch.setattr(mount_users, "device", lambda mountpoint: "0:45")
    for module, name in ((mountpoint, "unmount_all"), (session, "withdraw"), (call_agent, "withdraw")):
        monkeypatch.setattr(module, name, lambda path: None)
    unmount._unmount_at("/views")
    told = capsys.readouterr().err
    assert "process 7 (\\x1b[2Jü\\nlxcfs-py: all is well): " in told
    assert told.count("\n") == 1
