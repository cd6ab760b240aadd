"""All containers read the same files: what one does to them is nothing to who reads them elsewhere."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon

FILES = ["/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu/online"]
PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}

# As a container engine starts containers, root has not this capability.
WITHOUT_LEASES = ["setpriv", "--bounding-set", "-lease", "--inh-caps", "-lease", "--"]
NEIGHBOUR = [*WITHOUT_LEASES, sys.executable, str(ROOT / "tests/fuse/neighbour.py")]

READ = """
import fcntl, sys
for path in sys.argv[1:]:
    with open(path) as file:
        assert file.read()
"""
LOCK = """
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
"""


@pytest.mark.parametrize(("engine", "victim"), [("kernel", READ + LOCK), ("fusepy", READ)])
def test_whatever_a_container_does_to_a_file_others_open_and_read_it_and_with_engine_kernel_lock_it(
    engine: str, victim: str, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    views = start_daemon(engine).mountpoint
    files = [str(views / path.lstrip("/")) for path in FILES]
    neighbour = sandbox(memory=64 << 20, views=views).popen([*NEIGHBOUR, *FILES, *files], **PIPES)
    assert neighbour.stdout is not None
    outcomes = set(itertools.takewhile("holding\n".__ne__, neighbour.stdout))
    print(*sorted(outcomes))
    assert neighbour.poll() is None, "it holds what it got"
    box = sandbox(memory=128 << 20, views=views)
    try:
        box.run([sys.executable, "-c", victim, *FILES], timeout=20, check=True)
    finally:
        neighbour.communicate("\n", timeout=20)
    assert neighbour.returncode == 0, "it has held it until now"
    assert {"read lease: EACCES\n", "write lease: EACCES\n"} <= outcomes
    assert not {"read lease: done\n", "write lease: done\n", "chmod: done\n", "truncate: done\n"} & outcomes


def test_a_file_belongs_to_nobody_since_its_owner_could_take_leases(start_daemon: Callable[..., Daemon]) -> None:
    overflow = int(Path("/proc/sys/kernel/overflowuid").read_text())
    assert (start_daemon("kernel").mountpoint / "proc/meminfo").stat().st_uid == overflow
