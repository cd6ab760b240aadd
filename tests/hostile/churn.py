"""Containers that come and go: each has cgroups and a pid namespace, reads all files once, and ends.

`python churn.py MOUNTPOINT CONTAINERS SECONDS`: so many, evenly over so many seconds, or in a tenth more where the
machine is slow. Prints how many there were, and of how many a read failed or told of another memory limit than theirs.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from lxcfs_py.linux import syscalls

FILES = ("cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "swaps", "uptime", "vmstat", "partitions")
UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()
HIERARCHIES = ("",) if UNIFIED else ("memory", "cpu", "pids")
MOST = 1.1
"""Of the seconds, so many where the machine is slow."""

LIMIT = "memory.max" if UNIFIED else "memory.limit_in_bytes"


def directories(name: str) -> list[Path]:
    return [Path("/sys/fs/cgroup", hierarchy, name) for hierarchy in HIERARCHIES]


def one(mountpoint: str, number: int) -> int:
    """Have a container; return 1 if it has seen what is wrong."""
    mebibytes = 16 + number % 100
    places = directories(f"lxcfs-py-churn-{os.getpid()}-{number}")
    for place in places:
        place.mkdir()
    (places[0] / LIMIT).write_text(str(mebibytes << 20))
    pid = os.fork()
    if not pid:
        for place in places:
            (place / "cgroup.procs").write_text("0")
        syscalls.unshare(syscalls.CLONE_NEWPID)
        init = os.fork()
        if init:
            os._exit(os.waitstatus_to_exitcode(os.waitpid(init, 0)[1]) & 1)
        try:
            texts = {name: Path(mountpoint, "proc", name).read_text() for name in FILES}
            os._exit(int(texts["meminfo"].split()[:2] != ["MemTotal:", str(mebibytes << 10)]))
        except BaseException:
            os._exit(1)
    wrong = os.waitpid(pid, 0)[1] != 0
    for place in places:
        deadline = time.monotonic() + 10
        while True:
            try:
                place.rmdir()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
    return int(wrong)


def main(mountpoint: str, containers: int, seconds: float) -> None:
    started = time.monotonic()
    wrong = made = 0
    while made < containers and time.monotonic() < started + MOST * seconds:
        time.sleep(max(started + made * seconds / containers - time.monotonic(), 0))
        wrong += one(mountpoint, made)
        made += 1
    print(made, wrong, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
