"""Whose a request is."""

from __future__ import annotations

import os
import subprocess

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
