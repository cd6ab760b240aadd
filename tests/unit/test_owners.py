"""Whose a request is."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from lxcfs_py.container import owners, processes
from lxcfs_py.container.owners import Owners


def test_a_request_is_its_process_cgroups_and_without_one_its_users() -> None:
    known = Owners()
    with open("/proc/self/cgroup") as file:
        path = max((line.rstrip("\n").split(":", 2)[2] for line in file), key=len).rstrip("/")
    assert known.of(os.getpid(), 7) == (path or "user 7")
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert known.of(ended.pid, 8) == "user 8"
    assert known.of(0, 0) == "user 0"


def test_processes_of_the_machines_own_pid_namespace_are_each_its_cgroups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_cgroup", lambda pid: f"/system.slice/{pid}.service")
    with subprocess.Popen(["sleep", "60"]) as other:
        known = Owners()
        assert known.of(os.getpid(), 7) == f"/system.slice/{os.getpid()}.service"
        assert known.of(other.pid, 7) == f"/system.slice/{other.pid}.service"
        other.kill()


def test_whose_a_process_is_is_looked_up_anew_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been moved, or its pid be another's; who is in a namespace of its own, too."""
    clock, pids = iter((100.0, 100.0, 100.9, 100.9, 101.1, 101.1)), (os.getpid(), 1 << 30)
    monkeypatch.setattr(owners, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    known, answers = Owners(), []
    for cgroup in ("/before", "/between", "/after"):
        monkeypatch.setattr(owners, "_cgroup", lambda pid, cgroup=cgroup: cgroup)
        answers.append([known.of(pid, 7) for pid in pids])
    assert answers == [["/before"] * 2, ["/before"] * 2, ["/after"] * 2]


def test_no_more_is_known_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "_MAX_KNOWN", 3)
    monkeypatch.setattr(owners, "time", SimpleNamespace(monotonic=lambda: 100.0))
    monkeypatch.setattr(owners, "_cgroup", lambda pid: f"/{pid}")
    monkeypatch.setattr(processes, "namespace_or_none", lambda pid, kind: f"pid:[{pid}]")
    known, most = Owners(), 0
    monkeypatch.setattr(known, "_outermost_init", lambda pid: known._inits.setdefault(f"pid:[{pid}]", pid))
    for pid in range(1, 20):
        assert known.of(pid, 7) == f"/{pid}"
        most = max(most, len(known._known), len(known._namespaces), len(known._inits))
    assert most == 4


def test_the_init_of_a_container_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    own, elsewhere = processes.namespace("self", "pid"), "pid:[1]"
    monkeypatch.setattr(processes, "find_init_of", lambda descriptor, pid, name: asked.append(name) or os.getpid())
    known = Owners()
    for _ in range(3):
        assert known._init_of(-1, 0, own) == os.getpid()
    assert asked == [own]
    for _ in range(2):  # an init that has ended, whose pid is another process's
        known._init_of(-1, 0, elsewhere)
    assert asked == [own, elsewhere, elsewhere]
