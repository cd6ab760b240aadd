"""Whose a request is."""

from __future__ import annotations

import os
import subprocess

import pytest

from lxcfs_py.container import processes
from lxcfs_py.engine.owners import Owners


def test_a_request_is_its_process_cgroups_and_without_one_its_users() -> None:
    owners = Owners()
    with open("/proc/self/cgroup") as file:
        path = max((line.rstrip("\n").split(":", 2)[2] for line in file), key=len).rstrip("/")
    assert owners.of(os.getpid(), 7) == (path or "user 7")
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert owners.of(ended.pid, 8) == "user 8"
    assert owners.of(0, 0) == "user 0"


def test_the_init_of_a_container_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    own, elsewhere = processes.namespace("self", "pid"), "pid:[1]"
    monkeypatch.setattr(processes, "find_init_of", lambda descriptor, pid, name: asked.append(name) or os.getpid())
    owners = Owners()
    for _ in range(3):
        assert owners._init_of(-1, 0, own) == os.getpid()
    assert asked == [own]
    for _ in range(2):  # an init that has ended, whose pid is another process's
        owners._init_of(-1, 0, elsewhere)
    assert asked == [own, elsewhere, elsewhere]
