"""What a container notices of a neighbour that reads from very many threads: the time of its own reads."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass

from bench.contenders import Contender, Server, running
from bench.measure import Timing, reading
from lxcfs_py.runtimes.sandbox import Sandbox

THREADS = (0, 500, 2000)
CPUS = 0.2
"""What the neighbour may use, by which it can keep a server busy for longer."""

_FLOOD = """
import os, sys, threading
threading.stack_size(64 << 10)

def read():
    while True:
        fd = os.open("/proc/stat", os.O_RDONLY)
        while os.read(fd, 65536):
            pass
        os.close(fd)

for _ in range(int(sys.argv[1])):
    threading.Thread(target=read, daemon=True).start()
print("flooding", flush=True)
sys.stdin.readline()
os._exit(0)
"""


@dataclass(frozen=True)
class Flood:
    """A neighbour's reads of meminfo, open to close, in ms."""

    server: str
    threads: int
    reads: int
    p50: float
    p99: float
    longest: float


def measure(contender: Contender, seconds: float) -> list[Flood]:
    """Measure one contender with each number of threads for so many seconds."""
    with running(contender) as server:
        return [_measure(server, threads, seconds) for threads in THREADS]


def _measure(server: Server, threads: int, seconds: float) -> Flood:
    print(f"{server.name}: {threads} threads flood it", file=sys.stderr)
    timing = Timing()
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(reading())
        neighbour = stack.enter_context(Sandbox(cpus=CPUS, views=server.mount))
        if threads:
            command = [sys.executable, "-c", _FLOOD, str(threads)]
            flood = neighbour.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(flood.kill)
            assert flood.stdout
            flood.stdout.readline()
            time.sleep(1)
        with reader.facing(server, "meminfo") as path:
            timing.took.extend(reader.ask("read", path=path, seconds=seconds, patience=seconds + 60))
    p50, p99, longest = (timing.percentile(share) / 1000 for share in (0.5, 0.99, 1))
    return Flood(server.name, threads, len(timing.took), p50, p99, longest)
