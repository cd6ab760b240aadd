"""The directory by which processes of this program find each other, and who is at the other end of its sockets."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from lxcfs_py.config import Config
from lxcfs_py.container.cpu_time import Ledger, Mark
from lxcfs_py.container.load import Sampler
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.daemon import control, degraded, last_config
from lxcfs_py.engine import session
from lxcfs_py.linux import peer, runtime_directory


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path / "run"))
    monkeypatch.setattr(degraded, "_states", {})
    return tmp_path / "run"


def whose(path):
    status = path.stat()
    return status.st_uid, stat.S_IMODE(status.st_mode)


def test_it_is_made_for_its_user_alone_and_left_as_it_is_where_only_that_one_may_write(directory, caplog):
    runtime_directory.make(str(directory))
    assert whose(directory) == (os.geteuid(), 0o700)
    directory.chmod(0o755)
    runtime_directory.make(str(directory))
    assert whose(directory) == (os.geteuid(), 0o755)
    assert not caplog.messages


def test_where_others_may_write_they_may_no_longer(directory, caplog):
    directory.mkdir()
    directory.chmod(0o777)
    runtime_directory.make(str(directory))
    assert whose(directory) == (os.geteuid(), 0o700)
    assert caplog.messages == [
        f"others could write into {directory} (user {os.geteuid()}, mode 777): it is this user's alone now"
    ]


def test_what_its_owner_before_has_left_there_leads_nothing_elsewhere(require, directory, tmp_path):
    require(os.geteuid() == 0, "root")
    directory.mkdir()
    (directory / "own").touch()
    (directory / "link").symlink_to(tmp_path / "elsewhere")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "socket"))
    for path in (directory, directory / "link", directory / "socket"):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    assert runtime_directory.writable_path_of("/srv/a", "counters")
    assert whose(directory) == (0, 0o700)
    assert sorted(os.listdir(directory)) == ["own", "socket"]


NESTED = b"[" * 200_000
MARK = Mark("/a", Visible((0,), None, True), 1, 1, [(1, 1, 1)], {0: (1, 1, 1, 1)})
DAMAGES = {
    "nested": lambda path: path.write_bytes(NESTED),
    "of one long line": lambda path: path.write_bytes(b'["a", ["' + b"x" * (2 << 20) + b'"]]'),
    "a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
    "a directory": os.mkdir,
    "a FIFO": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_is_in_the_place_of_what_is_kept_there_is_as_if_nothing_were(directory, caplog, damage):
    place = "/srv/a"
    kept = {kind: Path(runtime_directory.writable_path_of(place, kind)) for kind in ("counters", "loads", "toml")}
    for path in kept.values():
        damage(path)
    assert Sampler(5.0, str(kept["loads"])).kept() == []
    damage(Path(f"{kept['counters']}.new"))
    Ledger(str(kept["counters"])).put("a", MARK)
    assert Ledger(str(kept["counters"])).get("a") == (None if kept["counters"].is_dir() else MARK)
    assert last_config.recall(place) is None
    assert last_config.served_with("/etc/lxcfs.toml") == []
    assert f"{kept['loads']} cannot be read" in caplog.text
    assert f"{kept['counters']} cannot be read" in caplog.text
    last_config.remember(Config(mountpoint=place), "/etc/lxcfs.toml")
    assert last_config.recall(place) == (None if kept["toml"].is_dir() else Config(mountpoint=place))


def test_a_file_in_its_place_is_no_server_and_no_place_to_keep_anything(directory):
    directory.touch()
    assert session.take_over("/srv/a") is None
    assert runtime_directory.writable_path_of("/srv/a", "counters") is None


def test_whoever_is_neither_root_nor_the_own_user_is_a_stranger(monkeypatch):
    ends = socket.socketpair()
    assert peer.of(ends[0]) == (os.getpid(), os.geteuid())
    assert peer.stranger(ends[0]) == ""
    monkeypatch.setattr(peer, "of", lambda connection: (7, os.geteuid() + 1))
    assert peer.stranger(ends[0]) == f"process 7 of user {os.geteuid() + 1}"
    for end in ends:
        end.close()


def test_nobody_takes_a_session_or_an_answer_from_a_stranger(directory, monkeypatch, caplog):
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(peer, "stranger", lambda connection: "process 7 of user 1000")
    stop = control.listen("/srv/a", lambda request: b"{}", lambda: None)
    said = "^process 7 of user 1000 is in the place of the daemon of /srv/a$"
    with pytest.raises(control.NotAnsweringError, match=said):
        control.ask("/srv/a")
    stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(runtime_directory.path_of("/srv/a"))
        listener.listen()
        assert session.take_over("/srv/a") is None
    assert "process 7 of user 1000 listens for who takes /srv/a over, and is not asked" in caplog.text
