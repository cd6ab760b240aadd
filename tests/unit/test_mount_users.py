from __future__ import annotations

from lxcfs_py import cli
from lxcfs_py.attach import mount_users
from lxcfs_py.attach.mount_users import User


def test_a_user_is_one_line_whatever_names_its_container_has_chosen(monkeypatch, capsys):
    user = User(7, "a\n8\tb", "0:45", "/proc/x\n9\tc\t/\tserved\udcff")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(mount_users, "find", lambda mountpoint: [user])
    monkeypatch.setattr(mount_users, "served", lambda users: {"0:45": "served"})
    assert cli.main(["users", "--config", "/dev/null"]) == 0
    assert capsys.readouterr().out == "7\ta\\n8\\tb\t/proc/x\\n9\\tc\\t/\\tserved\\udcff\tserved\n"
