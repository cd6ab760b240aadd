"""Time, CPU and throughput of reads, the contenders taking turns."""

from __future__ import annotations

import contextlib
import json
import os
import select
import statistics
import subprocess
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.contenders import Contender, Server, running
from lxcfs_py.runtimes.sandbox import Sandbox

MEMORY = 256 << 20
CPUS = 1.5
READERS = 8
ROUNDS = 10
MODES = ("pinned", "free")
"""Reader and server on one core; both wherever the kernel puts them."""


@dataclass
class Timing:
    """One file of one server in one mode: how long each read took, and the server's CPU time for all of them."""

    took: array[int] = field(default_factory=lambda: array("Q"))
    cpu: int = 0

    def percentile(self, share: float) -> float:
        """Return a percentile in us."""
        return sorted(self.took)[int(share * (len(self.took) - 1))] / 1000

    @property
    def cpu_per_read(self) -> float:
        """The server's CPU time per read in us."""
        return self.cpu / len(self.took) / 1000


@dataclass
class Throughput:
    """One file of one server with all readers at once."""

    rates: list[float] = field(default_factory=list)
    reads: int = 0
    cpu: int = 0

    @property
    def rate(self) -> float:
        """Reads per second, the median of the rounds."""
        return statistics.median(self.rates)

    @property
    def cpu_per_read(self) -> float:
        """The server's CPU time per read in us."""
        return self.cpu / self.reads / 1000


class Reader:
    """The reader process in a container, see `bench.reader`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Take a process started as `bench.reader`, with pipes."""
        self.process = process

    def ask(self, do: str, patience: float = 30, **what: Any) -> Any:
        """Have it do one thing. OSError when it fails, TimeoutError when it does not answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        waiting = select.poll()  # not select(2), that knows no descriptor above 1023
        waiting.register(self.process.stdout, select.POLLIN)
        if not waiting.poll(patience * 1000):
            raise TimeoutError(f"the reader does not come back from: {do} {what}")
        reply = json.loads(self.process.stdout.readline() or '{"error": "the reader ended"}')
        if "error" in reply:
            raise OSError(f"{do} {what}: {reply['error']}")
        return reply["result"]

    @contextlib.contextmanager
    def facing(self, server: Server, file: str) -> Iterator[str]:
        """Have a server's file in the place of the container's own /proc/FILE, as containers have it.

        After an error it stays there and goes with the container. The server is killed then: readers that wait for it
        could not be.
        """
        path = f"/proc/{file}"
        if not server.process:
            yield path
            return
        try:
            self.ask("bind", source=str(server.proc / file), path=path)
            yield path
            self.ask("unbind", path=path)
        except BaseException:
            server.process.kill()
            raise


@contextlib.contextmanager
def answering(box: Sandbox, program: str) -> Iterator[Reader]:
    """Run a program of this directory in a container, which does what it is asked for."""
    process = box.popen(
        [sys.executable, str(Path(__file__).with_name(program))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Reader(process)
    finally:
        process.kill()  # no communicate(): a crowd that it forked has its pipes, and ends with the container
        process.wait()


@contextlib.contextmanager
def reading() -> Iterator[Reader]:
    """Run a reader in a container of its own, two cgroups below the root like Docker's (/docker/ID)."""
    with contextlib.ExitStack() as stack:
        parent = stack.enter_context(Sandbox())
        box = stack.enter_context(Sandbox(memory=MEMORY, cpus=CPUS, parent=parent))
        yield stack.enter_context(answering(box, "reader.py"))


def check(reader: Reader, server: Server) -> None:
    """See that a server shows the container its own limit and runs on its engine: else its figures mean nothing."""
    with reader.facing(server, "meminfo") as path:
        text = reader.ask("text", path=path)
    if server.contender.aware and f"{MEMORY >> 10} kB" not in text.splitlines()[0]:
        raise OSError(f"{server.name} shows {text.splitlines()[0]!r} in a container with {MEMORY >> 10} kB")
    if server.contender.engine and server.runs_on_libfuse() != (server.contender.engine == "fusepy"):
        raise OSError(f"{server.name} does not run on the engine {server.contender.engine}")


def pin(reader: Reader, servers: Sequence[Server], mode: str) -> None:
    """Put the reader and all servers on one core, or on all."""
    cores = os.sched_getaffinity(0)
    chosen = {max(cores)} if mode == "pinned" else cores
    reader.ask("pin", cpus=sorted(chosen))
    for server in servers:
        server.pin(chosen)


def read(reader: Reader, server: Server, file: str, seconds: float, timing: Timing) -> None:
    """Read a file for so long, after a warm-up, and add what it took."""
    with reader.facing(server, file) as path:
        reader.ask("read", path=path, seconds=seconds / 10)
        before = server.cpu()
        timing.took.extend(reader.ask("read", path=path, seconds=seconds, patience=seconds + 30))
        timing.cpu += server.cpu() - before


def read_at_once(reader: Reader, server: Server, file: str, seconds: float, throughput: Throughput) -> None:
    """Read a file from all readers for so long, and add what came of it."""
    with reader.facing(server, file) as path:
        reader.ask("read", path=path, seconds=0.02)
        before = server.cpu()
        counted = reader.ask("crowd", path=path, seconds=seconds, readers=READERS, patience=seconds + 30)
        throughput.cpu += server.cpu() - before
        throughput.reads += counted["reads"]
        throughput.rates.append(counted["reads"] / counted["seconds"])


@dataclass
class Reads:
    """All that was measured: by mode, file and server's name; by file and name; by name."""

    timings: dict[tuple[str, str, str], Timing] = field(default_factory=dict)
    throughputs: dict[tuple[str, str], Throughput] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)


def reads(contenders: Sequence[Contender], files: Sequence[str], seconds: float) -> Reads:
    """Measure every file of every contender for so many seconds in each mode, in rounds: A B C A B C …."""
    found = Reads()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(contender)) for contender in contenders]
        served = [server for server in servers if server.process]
        reader = stack.enter_context(reading())
        for server in served:
            check(reader, server)
        for round_ in range(ROUNDS):
            print(f"round {round_ + 1} of {ROUNDS}", file=sys.stderr)
            for mode in MODES:
                pin(reader, servers, mode)
                for file in files:
                    for server in servers:
                        timing = found.timings.setdefault((mode, file, server.name), Timing())
                        read(reader, server, file, seconds / ROUNDS, timing)
            for file in files:
                for server in served:
                    throughput = found.throughputs.setdefault((file, server.name), Throughput())
                    read_at_once(reader, server, file, seconds / ROUNDS, throughput)
        found.memory = {server.name: server.memory() for server in served}
    return found
