"""What is found out of one process."""

from __future__ import annotations

import errno
from unittest.mock import Mock

import pytest

from lxcfs_py.container import processes


def test_before_linux_6_11_all_processes_are_listed_only_where_no_ancestor_is_the_init(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lxcfs_py.container.processes.fcntl.ioctl", Mock(side_effect=OSError(errno.ENOTTY, "")))
    monkeypatch.setattr(processes, "ancestors", lambda pid: iter((pid, 20, 1)))
    monkeypatch.setattr(processes, "namespace_or_none", lambda pid, _kind: "the host's" if pid == 1 else "its own")
    monkeypatch.setattr(processes, "_pids", lambda pid: [pid, {20: 1, 21: 1}.get(pid, 7)])
    listing = Mock(return_value=[1, 20, 21, 30])
    monkeypatch.setattr("lxcfs_py.linux.roots.pids", listing)
    assert processes.find_init_of(-1, 30, "its own") == 20
    assert not listing.called
    monkeypatch.setattr(processes, "ancestors", lambda pid: iter((pid, 1)))
    assert processes.find_init_of(-1, 30, "its own") == 20
    assert listing.call_count == 1
