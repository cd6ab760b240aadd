"""`python -m tests.hostile.costs`: what one request costs the server where a container is as costly as it can be.

A prober in the attacker's own container opens, reads and closes each file, one after the other: the server's CPU time
for that, divided by how often. The first read, at which a container is looked at for the first time, is in it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
from typing import Callable, Optional

from bench.contenders import Server, lxcfs_py, running
from tests import cached
from tests.docker.conftest import Docker
from tests.hostile.__main__ import require
from tests.hostile.arena import Arena, Attack, engine, everything

READS = 200
KINDS: dict[str, tuple[Optional[Attack], Callable[[], list[str]]]] = {
    "nothing": (None, list),
    "30,000 cgroups below its own": (Attack("children"), everything),
    "5,000 threads": (Attack("tasks"), list),
    "hundreds of pid namespaces": (Attack("namespaces"), everything),
    "20,000 files read by half": (Attack("half_read"), list),
    "its init moves all the time": (Attack("moves"), everything),
}
FILES = ("meminfo", "stat", "cpuinfo", "loadavg", "uptime", "diskstats", "swaps")
LISTED = "/sys/devices/system/cpu"
PROBE = f"""
import os, sys
path = sys.argv[1]
for _ in range({READS}):
    if os.path.isdir(path):
        os.listdir(path)
        continue
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, 65536):
        pass
    os.close(fd)
"""


def cost(server: Server, docker: Docker, container: str, path: str) -> float:
    """The server's CPU time in ms for one read of a file in a container, or one listing of a directory."""
    docker("exec", container, "python3", "-c", "pass", timeout=300)
    before = server.cpu()
    docker("exec", container, "python3", "-c", PROBE, path, timeout=300)
    return (server.cpu() - before) / READS / 1e6


def row(docker: Docker, kind: str) -> str:
    """What each file costs with one kind of container, whose own processes stand still meanwhile."""
    attack, capabilities = KINDS[kind]
    with running(lxcfs_py("kernel")) as server:
        arena = Arena(docker, server.mount)
        with arena.attacked(attack or Attack("names"), capabilities()) as attacker:
            # What it has made stays; what it does besides is not to be counted.
            for pid in docker("top", attacker.id, "-eo", "pid", timeout=300).split()[1:]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGSTOP)
            paths = [*(f"/proc/{name}" for name in FILES), LISTED]
            return " | ".join(f"{cost(server, docker, attacker.id, path):.2f}" for path in paths)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="*", metavar="KIND", choices=[[], *KINDS], default=[], help=", ".join(KINDS))
    kinds = parser.parse_args().kind or KINDS
    cache = cached.directory()
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}; ms of CPU time\n")
    print(f"| the container has | {' | '.join([*FILES, 'a listing of the CPUs'])} |")
    print(f"| --- {'| ---: ' * (len(FILES) + 1)}|", flush=True)
    with engine(cache, require) as docker:
        for kind in kinds:
            print(f"| {kind} | {row(docker, kind)} |", flush=True)


if __name__ == "__main__":
    main()
