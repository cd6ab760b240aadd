"""`python -m tests.hostile.costs`: what one request costs the server where a container is as costly as it can be.

In a sandbox, which is a container for the server, a prober opens, reads and closes one file at a time. What that costs
is by how much the CPU time of the server, of all its threads, has grown when it stands still again. Exits with 1 where
a median is above 1 ms. It needs root, and no Docker.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable

from bench.contenders import Contender, Server, lxcfs_py, running
from lxcfs_py.runtimes.sandbox import Sandbox

READS = 64
"""Of each file, by a reader that is known and by new ones."""

EXPIRED = 8
"""How often it is first waited until what the server keeps for a second is too old, each time for another file."""

MOST_MS = 1.0
CGROUPS, THREADS, NAMESPACES, PROCESSES, FILES_OF_EACH = 30_000, 10_000, 1_000, 20, 1_000

FILES = ("meminfo", "stat", "cpuinfo", "loadavg", "uptime", "diskstats", "swaps")
PATHS = [*(f"/proc/{name}" for name in FILES), "/sys/devices/system/cpu"]
READERS = {"known": "", "new": ", by new threads"}

READ = """
import ctypes, os, sys, threading, time
def read(path):
    if os.path.isdir(path):
        return os.listdir(path)
    fd = os.open(path, os.O_RDONLY)
    while os.read(fd, 65536):
        pass
    os.close(fd)
"""
PROBE = f"""{READ}
for line in sys.stdin:
    reader, path = line.split()
    if reader == "new":
        thread = threading.Thread(target=read, args=(path,))
        thread.start()
        thread.join()
    else:
        read(path)
    print("read", flush=True)
"""
SLEEPERS = f"""{READ}
threading.stack_size(64 << 10)
for _ in range({THREADS}):
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()
"""
NAMESPACED = f"""{READ}
for _ in range({NAMESPACES}):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        if ctypes.CDLL(None).unshare(0x20000000):  # CLONE_NEWPID
            os._exit(1)
        if os.fork() == 0:
            for path in {PATHS[:-1]}:
                read(path)
            os.close(ours)
            os.write(theirs, b"1")
            time.sleep(1e6)
        os._exit(0)
    os.close(theirs)
    if not os.read(ours, 1):
        sys.exit("there is no pid namespace")
    os.close(ours)
"""
HALF_READ = f"""{READ}
ours, theirs = os.pipe()
for _ in range({PROCESSES}):
    if os.fork() == 0:
        for number in range({FILES_OF_EACH}):
            os.read(os.open({PATHS[:-1]}[number % {len(FILES)}], os.O_RDONLY), 10)
        os.write(theirs, b"1")
        time.sleep(1e6)
for _ in range({PROCESSES}):
    os.read(ours, 1)
"""

Before = Callable[[int], None]
"""Is called before each read, with its number."""


def nothing(_: int) -> None:
    """Leave the container as it is."""


def with_program(program: str) -> Callable[[Sandbox, int], Before]:
    """Have a program in the container that makes it costly and then sleeps."""

    def prepare(box: Sandbox, _: int) -> Before:
        program_there = f"{program}\nprint('ready', flush=True)\ntime.sleep(1e6)"
        process = box.popen([sys.executable, "-c", program_there], stdout=subprocess.PIPE, text=True)
        assert told(process) == "ready", "the container could not be made as costly"
        return nothing

    return prepare


def directories(box: Sandbox) -> list[Path]:
    """Return the directories of the container's cgroup, one of each hierarchy."""
    return sorted(set(box._directories.values()))


def with_cgroups(box: Sandbox, _: int) -> Before:
    """Make cgroups below its own, in the hierarchies in which the server looks at them."""
    looked_at = ("cpuacct.usage", "pids.current", "cgroup.controllers")
    for directory in directories(box):
        if any((directory / name).exists() for name in looked_at):
            for number in range(CGROUPS):
                (directory / str(number)).mkdir()
    return nothing


def with_moves(box: Sandbox, prober: int) -> Before:
    """Have its init move to another cgroup before each read, and the prober with it."""
    places = [[directory / name for directory in directories(box)] for name in ("one", "other")]
    for place in itertools.chain(*places):
        place.mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (place.parent / name).exists() and not (place / name).read_text().strip():
                (place / name).write_text((place.parent / name).read_text())

    def move(number: int) -> None:
        for place in places[number % 2]:
            for pid in (box.init, prober):
                (place / "cgroup.procs").write_text(str(pid))

    return move


KINDS: dict[str, Callable[[Sandbox, int], Before]] = {
    "nothing": lambda box, prober: nothing,
    f"{CGROUPS:,} cgroups below its own": with_cgroups,
    f"{THREADS:,} threads": with_program(SLEEPERS),
    f"{NAMESPACES:,} pid namespaces": with_program(NAMESPACED),
    f"{PROCESSES * FILES_OF_EACH:,} files read by half": with_program(HALF_READ),
    "an init that moves before each read": with_moves,
}


def without_sampling(contender: Contender) -> Contender:
    """Have load averages sampled as seldom as can be: what that takes is no request's."""
    return dataclasses.replace(contender, config=contender.config.replace("[loadavg]", "[loadavg]\ninterval = 60"))


def settled(server: Server) -> int:
    """Return the server's CPU time in ns, once it stands still."""
    before, now = -1, server.cpu()
    while now != before:
        time.sleep(0.001)
        before, now = now, server.cpu()
    return now


def told(process: subprocess.Popen[Any]) -> str:
    """Return the next line that a program in the container prints."""
    assert process.stdout
    return str(process.stdout.readline()).rstrip()


def measure(server: Server, prober: subprocess.Popen[Any], before: Before) -> dict[str, dict[str, list[float]]]:
    """Return, by who reads and by path, the server's CPU time in ms for each read of a file or a directory."""
    assert prober.stdin
    took: dict[str, dict[str, list[float]]] = {reader: defaultdict(list) for reader in READERS}
    reads = itertools.count()
    for number in range(READS):
        turn, read_since = divmod(number, READS // EXPIRED)
        if not read_since:
            time.sleep(1.1)
        for reader in list(READERS)[:: 1 if turn % 2 == 0 else -1]:
            for path in PATHS[turn:] + PATHS[:turn]:
                before(next(reads))
                began = settled(server)
                prober.stdin.write(f"{reader} {path}\n")
                prober.stdin.flush()
                assert told(prober) == "read", f"{path} could not be read"
                took[reader][path].append((settled(server) - began) / 1e6)
    return took


def rows(kind: str) -> dict[str, dict[str, list[float]]]:
    """Return by row what each file cost with one kind of container; the prober's first read is its first."""
    contender = without_sampling(lxcfs_py("kernel"))
    with running(contender) as server, Sandbox(memory=8 << 30, cpus=1, views=server.mount) as box:
        prober = box.popen([sys.executable, "-c", PROBE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        took = measure(server, prober, KINDS[kind](box, prober.pid))
        return {kind + row: took[reader] for reader, row in READERS.items()}


def main() -> int:
    """Print a table, each figure a median and a maximum; return 1 where a median is too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", nargs="*", metavar="KIND", choices=[[], *KINDS], default=[], help=", ".join(KINDS))
    kinds = parser.parse_args().kind or KINDS
    print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.0f}; ms of CPU time\n")
    print(f"| the container has | {' | '.join([*FILES, 'a listing of the CPUs'])} |")
    print(f"| --- {'| ---: ' * len(PATHS)}|", flush=True)
    dear = []
    for kind in kinds:
        for row, took in rows(kind).items():
            figures = {path: (statistics.median(times), max(times)) for path, times in took.items()}
            cells = (f"{median:.2f} / {most:.1f}" for median, most in (figures[path] for path in PATHS))
            print(f"| {row} | {' | '.join(cells)} |", flush=True)
            dear += [f"{path}, {row}: {median:.2f} ms" for path, (median, _) in figures.items() if median > MOST_MS]
    print(f"\nload {os.getloadavg()[0]:.0f} at the end")
    print(*dear, sep="\n", file=sys.stderr)
    return 1 if dear else 0


if __name__ == "__main__":
    sys.exit(main())
