"""What it costs a container to list many disks: `ls -lR /sys/block` beside the host's own, with 200 loop devices."""

from __future__ import annotations

import contextlib
import fcntl
import statistics
import subprocess
import time
from collections.abc import Iterator

from bench.contenders import lxcfs_py, running
from lxcfs_py.runtimes.sandbox import Sandbox

DEVICES = 200
ROUNDS = 9
LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81  # <linux/loop.h>
_FIRST = 5000
_LISTING = ("ls", "-lR", "/sys/block")


@contextlib.contextmanager
def many(count: int = DEVICES) -> Iterator[list[str]]:
    """Have so many loop devices more; yields their names."""
    with open("/dev/loop-control", "rb") as control, contextlib.ExitStack() as stack:
        for number in range(_FIRST, _FIRST + count):
            fcntl.ioctl(control, LOOP_CTL_ADD, number)
            stack.callback(fcntl.ioctl, control, LOOP_CTL_REMOVE, number)
        yield [f"loop{number}" for number in range(_FIRST, _FIRST + count)]


def measure() -> tuple[float, float]:
    """Return what a listing takes on the host and in a container, the medians in ms, taking turns."""
    took: dict[bool, list[float]] = {False: [], True: []}
    with many(), running(lxcfs_py("kernel")) as server, Sandbox(views=server.mount) as box:
        for _ in range(ROUNDS):
            for inside, times in took.items():
                started = time.perf_counter()
                if inside:
                    box.run(_LISTING, check=True)
                else:
                    subprocess.run(_LISTING, check=True, capture_output=True)
                times.append((time.perf_counter() - started) * 1000)
    return statistics.median(took[False]), statistics.median(took[True])


def sentence(host: float, container: float) -> str:
    """Return the figures for the reader."""
    return (
        f"`{' '.join(_LISTING)}` with {DEVICES} loop devices takes {host:.0f} ms on the host and {container:.0f} ms "
        f"in a container: {container / host:.1f} times as long.\n"
    )
