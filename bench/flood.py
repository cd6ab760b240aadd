"""What a container notices of a neighbour that reads from very many processes: the time of its own reads."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass

from bench.contenders import Contender, Server, running
from bench.measure import Timing, reading
from lxcfs_py.runtimes.sandbox import Sandbox

FLOODS = ((0, 0.2), (500, 0.2), (2000, 0.2), (500, 1.0), (2000, 1.0))
"""How many processes the neighbour has, and how many CPUs it may use: with one, it asks for more than a server has."""

# Processes, as threads of Python wait for one another, and not for the server. None reads before all are there: those
# that read leave no time for starting others.
_FLOOD = """
import os, sys

go, start = os.pipe()
for _ in range(int(sys.argv[1])):
    if not os.fork():
        os.close(start)
        os.read(go, 1)
        while True:
            fd = os.open("/proc/stat", os.O_RDONLY)
            while os.read(fd, 65536):
                pass
            os.close(fd)
print("flooding", flush=True)
os.close(start)
sys.stdin.readline()
"""


@dataclass(frozen=True)
class Flood:
    """A neighbour's reads of meminfo, open to close, in ms."""

    server: str
    processes: int
    cpus: float
    reads: int
    p50: float
    p99: float
    longest: float


def measure(contender: Contender, seconds: float) -> list[Flood]:
    """Measure one contender in each flood for so many seconds."""
    with running(contender) as server:
        return [_measure(server, processes, cpus, seconds) for processes, cpus in FLOODS]


def _measure(server: Server, processes: int, cpus: float, seconds: float) -> Flood:
    print(f"{server.name}: {processes} processes of {cpus} CPU flood it", file=sys.stderr)
    timing = Timing()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(reading())
        neighbour = stack.enter_context(Sandbox(cpus=cpus, views=server.mount))
        if processes:
            command = [sys.executable, "-c", _FLOOD, str(processes)]
            flood = neighbour.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(flood.kill)
            assert flood.stdout
            flood.stdout.readline()
            time.sleep(1)
        with reader.facing(server, "meminfo") as path:
            timing.took.extend(reader.ask("read", path=path, seconds=seconds, patience=seconds + 60))
    p50, p99, longest = (timing.percentile(share) / 1000 for share in (0.5, 0.99, 1))
    return Flood(server.name, processes, cpus, len(timing.took), p50, p99, longest)
