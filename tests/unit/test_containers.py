"""What is kept of containers, and of who reads in them."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from lxcfs_py.cgroup.layout import find
from lxcfs_py.container import containers as module
from lxcfs_py.container import processes
from lxcfs_py.container.containers import Container, Containers
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler


def test_cgroups_are_looked_through_once_a_second_for_readers_whose_clock_nobody_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each new thread asks anew, and a container may have many cgroups."""
    clock, looks = [100.0], []

    def pids() -> Iterator[int]:
        looks.append(clock[0])
        return itertools.count(1000)

    known = Containers(find(), Ledger(), Sampler(5))
    container = Container(os.getpid(), known.layout, Ledger(), Sampler(5))
    container.cgroup = Mock(tasks=SimpleNamespace(pids=pids))
    monkeypatch.setattr("lxcfs_py.cgroup.tree.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(processes, "_own_time_namespace", lambda: "the host's")
    monkeypatch.setattr(processes, "ancestors", lambda pid: iter((pid,)))
    monkeypatch.setattr(
        processes, "namespace_or_none", lambda pid, kind: "the host's" if pid == os.getpid() else f"{kind} of its own"
    )
    for clock[0] in (100.0, 100.9, 101.1):
        for thread in range(5):
            known._readers[thread] = module._Reader(0, 0.0, weakref.ref(container))
            assert known.boottime_offset(thread) == 0
    assert looks == [100.0, 101.1]


def test_who_was_found_the_longest_ago_makes_room_for_other_readers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = Containers(find(), Ledger(), Sampler(5))
    container = Mock()
    monkeypatch.setattr(module, "_MAX_READERS", 8)
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    monkeypatch.setattr("lxcfs_py.linux.roots.PROC", str(tmp_path))
    monkeypatch.setattr(known, "_place", lambda _pid: container)
    for pid in (*range(8), 0, 8):
        (tmp_path / f"{pid}").mkdir(exist_ok=True)
        assert known.of(pid) is container
    assert list(known._readers) == [5, 6, 7, 0, 8]
