"""What a server costs with few and with very many containers: memory, time of a read, CPU at rest, and its start."""

from __future__ import annotations

import contextlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.contenders import Contender, Server, running
from bench.measure import ROUNDS, Timing, check, pin, read, reading
from lxcfs_py.runtimes.sandbox import Sandbox

FEW, MANY = 10, 1000
REST = 10.0
"""Seconds for which a server at rest is watched; the load sampler works every 5."""
STARTS = 3


@dataclass
class Scale:
    """One server's figures: seconds, kB, ms of CPU time per second, µs."""

    server: str
    starts: list[float]
    memory: dict[int, dict[str, int]]
    """VmRSS and Pss by the number of containers that it knows."""
    rest: dict[int, float]
    """CPU time by that number; with 0, nobody has asked for anything."""
    p50: dict[str, dict[int, float]]
    """For each file, a container's read when the server knows 1 and when it knows all."""

    @property
    def start(self) -> float:
        """From the start to the first answer, the median in ms."""
        return statistics.median(self.starts) * 1000

    @property
    def growth(self) -> float:
        """KB that each further container takes."""
        return (self.memory[MANY]["VmRSS"] - self.memory[FEW]["VmRSS"]) / (MANY - FEW)


def measure(contender: Contender, files: Sequence[str], seconds: float) -> Scale:
    """Measure one contender, files for so many seconds each.

    Two servers of it run side by side and their reads take turns: one knows all containers, one only the reader's.
    """
    found = Scale(contender.name, [], {}, {}, {})
    for _ in range(STARTS):
        with running(contender) as server:
            found.starts.append(server.start)
    with contextlib.ExitStack() as stack:
        alone, crowded = (stack.enter_context(running(contender)) for _ in range(2))
        _allow_descriptors()  # after the servers' start: how many they may have is their own affair
        parent = stack.enter_context(Sandbox())
        boxes: list[Sandbox] = []
        for number in (FEW, MANY):
            print(f"{contender.name}: {number} containers", file=sys.stderr)
            while len(boxes) < number:
                boxes.append(stack.enter_context(Sandbox(memory=64 << 20, cpus=1, parent=parent)))
                _read_all(boxes[-1], crowded, files)
            found.memory[number] = crowded.memory()
            before = alone.cpu(), crowded.cpu()
            time.sleep(REST)
            found.rest[number] = (crowded.cpu() - before[1]) / REST / 1e6
            if number == FEW:
                found.rest[0] = (alone.cpu() - before[0]) / REST / 1e6
        found.p50 = _read_times(alone, crowded, files, seconds)
    return found


def _allow_descriptors() -> None:
    """Make room for three of each sandbox."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _read_all(box: Sandbox, server: Server, files: Sequence[str]) -> None:
    paths = [str(server.proc / file) for file in files]
    box.run(["cat", *paths], stdout=subprocess.DEVNULL, timeout=30, check=True)


def _read_times(alone: Server, crowded: Server, files: Sequence[str], seconds: float) -> dict[str, dict[int, float]]:
    timings = {file: {1: Timing(), MANY: Timing()} for file in files}
    with reading() as reader:
        pin(reader, (alone, crowded), "pinned")
        check(reader, alone)
        check(reader, crowded)
        for _ in range(ROUNDS):
            for file in files:
                read(reader, alone, file, seconds / ROUNDS, timings[file][1])
                read(reader, crowded, file, seconds / ROUNDS, timings[file][MANY])
    return {file: {number: timing.percentile(0.5) for number, timing in pair.items()} for file, pair in timings.items()}
