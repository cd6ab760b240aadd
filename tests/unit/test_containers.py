"""What is kept of containers, and of who reads in them."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import weakref
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

    def pids(most: int) -> list[int]:
        looks.append(clock[0])
        return [*range(1000, 1000 + most)]

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


def test_looking_for_who_stands_for_a_cgroup_takes_a_tenth_of_the_time_when_nobody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of pid namespaces, which end with their init, do not wait for it."""
    clock, looks = [100.0], list[float]()

    def goes_on(container: Mock) -> bool:
        if container.home is not None:
            looks.append(clock[0])
            clock[0] += 0.5
        return False

    known = Containers(find(), Ledger(), Sampler(5))
    monkeypatch.setattr(known, "_goes_on", goes_on)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with contextlib.ExitStack() as stack, subprocess.Popen(["true"]) as init:
        os.waitid(os.P_PID, init.pid, os.WEXITED | os.WNOWAIT)
        for home in ("a", "b", "c", None):
            pidfd = os.pidfd_open(init.pid)
            stack.callback(os.close, pidfd)
            known._watch(Mock(home=home, pidfd=pidfd, key=Mock(return_value=pidfd), known_as=[]))
        assert known.reap() == 5.0
        assert not select.select([known], [], [], 0)[0], "nor is it told again meanwhile"
        assert (known.reap(), len(known)) == (5.0, 2)
        clock[0] = 105.5
        assert (known.reap(), len(known)) == (5.0, 1)
        clock[0] = 112.0
        assert (known.reap(), len(known)) == (None, 0)
    assert looks == [100.0, 105.5, 112.0]
