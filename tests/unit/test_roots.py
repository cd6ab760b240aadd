"""Where the machine's own /proc and /sys are read."""

from __future__ import annotations

import errno
import os

from lxcfs_py.linux import mount_table, roots, syscalls


def refuse(*_):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_where_nothing_may_be_mounted_both_are_read_by_their_paths(monkeypatch):
    monkeypatch.setattr(syscalls, "mount_nowhere", refuse)
    monkeypatch.setattr(syscalls, "open_tree", refuse)
    assert "Operation not permitted" in roots.take()
    assert (roots.PROC, roots.SYS) == ("/proc", "/sys")
    assert roots.uncovered("/sys/fs/cgroup") == "/sys/fs/cgroup"


def test_the_mounts_of_this_process_are_found_from_its_own_proc(monkeypatch, tmp_path):
    monkeypatch.chdir("/proc")
    monkeypatch.setattr(roots, "PROC", ".")
    assert any(mount.mountpoint == "/proc" for mount in mount_table.read())
