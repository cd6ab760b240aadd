"""The directory that is mounted on, before anything is."""

from __future__ import annotations

import errno
import os
from unittest.mock import Mock

import pytest

from lxcfs_py.linux import mountpoint
from lxcfs_py.linux.mountpoint import MountError


def test_a_directory_with_files_is_not_mounted_on(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_text("something")
    said = f"^a mount at {tmp_path} would hide what is there, such as {tmp_path}/a/b/file: name an empty directory$"
    with pytest.raises(MountError, match=said):
        mountpoint.prepare(str(tmp_path))


def test_a_link_in_a_directory_counts_as_a_file(tmp_path):
    (tmp_path / "link").symlink_to("/tmp")
    with pytest.raises(MountError, match="would hide what is there"):
        mountpoint.prepare(str(tmp_path))


def test_what_is_no_directory_is_not_mounted_on(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for given, blocked in (("file", "file"), ("file/a/b", "file"), ("loop", "loop"), ("loop/a", "loop")):
        allowed = "name an empty directory, or one that does not exist yet"
        with pytest.raises(MountError, match=f"^{tmp_path}/{blocked} is not a directory: {allowed}$"):
            mountpoint.prepare(str(tmp_path / given))


def test_what_an_engine_or_a_kubelet_made_in_place_of_missing_files_may_be_mounted_over(tmp_path):
    (tmp_path / "proc/meminfo").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").touch()
    mountpoint.prepare(str(tmp_path))


def test_where_no_descriptor_is_to_be_had_a_mount_is_taken_away_without_one(monkeypatch):
    taken = []
    monkeypatch.setattr(mountpoint.mount_table, "read", Mock(side_effect=OSError(errno.EMFILE, "too many")))
    monkeypatch.setattr(mountpoint.syscalls, "umount", lambda path, flags: taken.append(path))
    mountpoint.unmount_all("/srv/views")
    assert taken == ["/srv/views"]


def test_a_missing_directory_is_made(tmp_path):
    mountpoint.prepare(str(tmp_path / "a/b"))
    assert os.listdir(tmp_path / "a/b") == []


def test_a_link_into_what_is_the_machines_is_no_mountpoint_and_the_name_of_another_directory_is(tmp_path):
    (tmp_path / "link").symlink_to("/proc/self")
    with pytest.raises(MountError, match=f"^{tmp_path}/link is in /proc, where nothing may be covered"):
        mountpoint.resolve(str(tmp_path / "link"))
    assert mountpoint.resolve("/process") == "/process"


def test_where_a_version_before_has_mounted_it_goes_on(monkeypatch):
    monkeypatch.setattr(mountpoint, "is_mounted", lambda path: path == "/dev/views")
    assert mountpoint.resolve("/dev/views") == "/dev/views"


def test_an_ordinary_user_has_nothing_to_unmount_where_nothing_is_mounted(monkeypatch):
    monkeypatch.setattr(mountpoint.syscalls, "umount", Mock(side_effect=PermissionError(errno.EPERM, "not permitted")))
    monkeypatch.setattr(mountpoint.subprocess, "run", pytest.fail)
    mountpoint.unmount("/srv/views")
