"""What remove deletes, and what it leaves to others."""

from __future__ import annotations

import os

import pytest

from lxcfs_py.commands import remove
from lxcfs_py.config import Config
from lxcfs_py.daemon import node_profile
from lxcfs_py.engine import node_keeper
from lxcfs_py.linux import runtime_directory
from lxcfs_py.linux.digest import digest

WELL_KNOWN, OTHER = Config().mountpoint, "/srv/views"


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """kept(mountpoint, ...) makes what servers at these mountpoints keep; it returns the directory."""
    directory = tmp_path / "lxcfs-py"
    monkeypatch.setattr(runtime_directory, "PATH", str(directory))
    monkeypatch.setattr(node_profile, "KUBELET", tmp_path / "kubelet")
    monkeypatch.setattr(remove.nri, "SOCKET", str(tmp_path / "nri/nri.sock"))
    monkeypatch.setattr(node_keeper, "BUS", str(tmp_path / "bus/bus"))

    def make(*places):
        directory.mkdir()
        for place in places:
            for kind in ("", ".new", ".toml", ".status", ".counters"):
                (directory / f"{digest(place).hex()}{kind}").touch()
            seccomp = "seccomp{}.sock" if place == WELL_KNOWN else f"{digest(place).hex()}{{}}.seccomp"
            for kind in ("", "-lxc"):
                (directory / seccomp.format(kind)).touch()
        (directory / "nri.lock").touch()
        return directory

    return make


@pytest.mark.parametrize(("gone", "stays"), [(WELL_KNOWN, OTHER), (OTHER, WELL_KNOWN)])
def test_what_another_daemon_keeps_stays(kept, gone, stays):
    both = kept(gone, stays)
    remove._delete(gone)
    names = set(os.listdir(both))
    assert len(names) == 8
    assert not any(name.startswith(digest(gone).hex()) for name in names)
    assert ("seccomp.sock" in names) == (stays == WELL_KNOWN)
    remove._delete(stays)
    assert not both.exists()


def test_what_is_nobodys_goes_with_the_last(kept):
    alone = kept(OTHER)
    (alone / "odd").mkdir()
    (alone / "link").symlink_to("/proc")
    os.mkfifo(alone / "fifo")
    remove._delete(OTHER)
    assert not alone.exists()


@pytest.mark.parametrize("content", [b"{}", b"[]", b'"x"', b"7", b"", b"\xff", b"[" * 100_000, None])
def test_a_profile_that_is_none_keeps_nothing_else(kept, content):
    directory = kept(OTHER)
    profile = node_profile.KUBELET / "seccomp/lxcfs-py/seccomp.json"
    profile.parent.mkdir(parents=True)
    os.mkfifo(profile) if content is None else profile.write_bytes(content)
    remove._delete(OTHER)
    assert not directory.exists()
    assert profile.exists(), "it is nobody knows whose"
