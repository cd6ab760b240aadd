"""Where the machine's own /proc and /sys are read."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from lxcfs_py.linux import mount_table, roots, serving, syscalls


def refuse(*_):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_where_nothing_may_be_mounted_both_are_read_by_their_paths(monkeypatch):
    monkeypatch.setattr(syscalls, "mount_nowhere", refuse)
    monkeypatch.setattr(syscalls, "clone_mount", refuse)
    assert "Operation not permitted" in roots.take()
    assert (roots.PROC, roots.SYS) == ("/proc", "/sys")
    assert roots.uncovered("/sys/fs/cgroup") == "/sys/fs/cgroup"


def test_the_mounts_of_this_process_are_found_from_its_own_proc(monkeypatch, tmp_path):
    monkeypatch.chdir("/proc")
    monkeypatch.setattr(roots, "PROC", ".")
    assert any(mount.mountpoint == "/proc" for mount in mount_table.read())


def test_who_serves_a_mount_is_asked_of_the_hosts_processes_only(monkeypatch, tmp_path):
    """The arguments of a container's are in its memory, for which whoever asks may have to wait."""
    for pid, namespace in (("self", 1), ("1", 1), ("7", 1), ("8", 2)):
        (tmp_path / pid / "ns").mkdir(parents=True)
        (tmp_path / pid / "ns/pid").symlink_to(f"pid:[{namespace}]")
        (tmp_path / pid / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        (tmp_path / pid / "fd").mkdir()
    for pid in ("7", "8"):
        (tmp_path / pid / "fd/3").symlink_to("/dev/fuse")
        (tmp_path / pid / "cmdline").write_bytes(b"server\0/views\0")
    monkeypatch.setattr(roots, "PROC", str(tmp_path))
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result((0o40555, 0, 0, 0, 0, 0, 0, 0, 0, 0)))
    assert serving.named("/views") == "process 7"
    assert serving.named("/others") == "process 7 or process 8"
