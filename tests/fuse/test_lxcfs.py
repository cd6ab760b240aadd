"""The command `lxcfs`, as the C program's units and scripts start it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest

from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, mountpoints, unmount_below
from tests.kept import wait_for

LXCFS = [str(Path(sys.executable).with_name("lxcfs"))]
MIB = 1 << 20


def has_ended(pid: int) -> bool:
    """Whose child it was has ended too: who gets it may be in no hurry to reap it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(params=["in the foreground", "in the background"])
def served(request: Any, require: Callable[[object, str], None], tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The daemon's process, and where it has mounted."""
    require(os.geteuid() == 0, "root")
    mountpoint, pidfile = tmp_path / "mount", tmp_path / "pid"
    mountpoint.mkdir()
    command = [*LXCFS, "--pidfile", str(pidfile), str(mountpoint)]
    if request.param == "in the foreground":
        with (tmp_path / "log").open("wb") as log:
            subprocess.Popen([*command, "--foreground"], cwd=ROOT, stderr=log)
        wait_for(lambda: "INFO: serving" in (tmp_path / "log").read_text())
    else:
        subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    process = psutil.Process(int(pidfile.read_text()))
    yield process.pid, mountpoint
    if not has_ended(process.pid):
        process.kill()
        wait_for(lambda: has_ended(process.pid))
    unmount_below(mountpoint)


def test_sigusr2_shows_the_machines_figures_and_the_containers_again_and_sigusr1_does_nothing(
    served: tuple[int, Path], sandbox: Callable[..., Sandbox]
) -> None:
    process, mountpoint = served
    box = sandbox(memory=256 * MIB, views=mountpoint)
    mine, machine = "MemTotal:         262144 kB", Path("/proc/meminfo").read_text().splitlines()[0]

    def shows(line: str) -> None:
        wait_for(lambda: box.run(["head", "-n", "1", "/proc/meminfo"]).stdout.strip() == line)

    for number, line in ((signal.SIGUSR1, mine), (signal.SIGUSR2, machine), (signal.SIGUSR1, machine)):
        os.kill(process, number)
        shows(line)
    status = [sys.executable, "-m", "lxcfs_py", "status", "--mountpoint", str(mountpoint), "--config", "/dev/null"]
    told = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (told.returncode, "problem: every container sees the machine's figures" in told.stdout) == (1, True)
    os.kill(process, signal.SIGUSR2)
    shows(mine)
    os.kill(process, signal.SIGTERM)
    wait_for(lambda: has_ended(process))
    assert str(mountpoint) not in mountpoints()
