"""`python -m tests.soak [NAME[=NUMBER]...]`: what servers that end in every way do to who reads all the time: a table.

The number is how often, or, of those that go through system calls, every how many-th is tried; `=4+2` begins with the
second.

Eight readers of all files in each small container see no error and no text that is not whole. tests/fuse has the same
in short.
"""

from __future__ import annotations

import contextlib
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Callable

import psutil

from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.runtimes.sandbox import Sandbox
from tests import wanted
from tests.calls import MEMORY, calling
from tests.conftest import ROOT, Daemon, unmount_below
from tests.fuse.test_held_pods import ATTACHES, HeldNode
from tests.kept import reading, wait_for

KILLED_AT = str(ROOT / "tests/fuse/killed_at.py")
_CONTAINERS = 8
_CONTAINERS_OF_PODS = 3
SERVING = "INFO: serving"
ENDED = "starting it again"
AGAIN = "serving it again"


ANSWERED = 0.1
"""Seconds in which a server that serves answers what was left: a request that eight have died of is the machine's."""


class Place:
    """A mountpoint, and the keepers that serve it one after the other."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.mountpoint = directory / "mount"
        self.mountpoint.mkdir()
        self.config = directory / "lxcfs.toml"
        self.config.write_text('[fuse]\nengine = "kernel"\n')
        self.at_call = directory / "at-call"
        self.logs = 0
        self.daemon = self.keeper()
        wait_for(self.serves)

    def keeper(self, stay: bool = False) -> Daemon:
        """One more keeper; the next server that it starts is killed at the call whose number is in `at_call`."""
        self.logs += 1
        command = [sys.executable, "-m", "tests.forked", *(["--stay"] if stay else []), str(self.at_call)]
        command += ["run", "--config", str(self.config), str(self.mountpoint)]
        return Daemon(command, self.mountpoint, self.directory / f"log{self.logs}")

    def log(self) -> str:
        return self.daemon.log.read_text()

    def serves(self) -> bool:
        """Tell whether the server that was started last has come to serve."""
        text = self.log()
        return text.rfind(SERVING) > max(text.rfind(ENDED), text.rfind(AGAIN))

    def server(self) -> int:
        found: list[psutil.Process] = []
        wait_for(lambda: bool(found.extend(psutil.Process(self.daemon.process.pid).children()) or found))
        return found[0].pid

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.server(), 9)

    def close(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.daemon.stop()
        unmount_below(self.mountpoint)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Give one, and leave nothing of it."""
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-soak-") as directory:
        made = Place(Path(directory))
        try:
            yield made
        finally:
            made.close()


def kills(where: Place, times: int = 1000) -> int:
    """kill -9 at random moments, as fast as the keeper starts servers"""
    for number in range(times):
        if number % 2:  # mostly while it starts; many in a row would only show the keeper's pauses
            time.sleep(random.uniform(0, 0.5))
        else:
            wait_for(where.serves)
            time.sleep(random.uniform(0, 0.2))
        where.kill()
    return times


def takeovers(where: Place, times: int = 100) -> int:
    """takeovers by another `run`"""
    for _ in range(times):
        before, where.daemon = where.daemon, where.keeper()
        assert before.process.wait(60) == 0
        wait_for(where.serves)
    return times


def reloads(where: Place, times: int = 100) -> int:
    """reloads of a configuration that has changed"""
    for number in range(times):
        where.config.write_text(f'[memory]\nhigh = {"true" if number % 2 else "false"}\n[fuse]\nengine = "kernel"\n')
        reload = [sys.executable, "-m", "lxcfs_py", "reload", "--config", str(where.config)]
        subprocess.run(reload, cwd=ROOT, check=True, timeout=60)
    assert where.log().count("the configuration was reloaded") == times
    return times


def calls_of_start(where: Place, step: int = 1, first: int = 1) -> int:
    """kill -9 at each system call of a start"""
    for trials, number in enumerate(count(first, step), 1):
        ends = where.log().count(ENDED)
        where.at_call.write_text(str(number))
        where.kill()
        wait_for(lambda ends=ends: where.log().count(ENDED) == ends + 2 and where.serves())
        time.sleep(ANSWERED)
        if SERVING in where.log().split(ENDED)[-2]:
            return trials
    raise AssertionError


def calls_of_takeover(where: Place, step: int = 1, first: int = 1) -> int:
    """kill -9 at each system call of a takeover"""
    for trials, number in enumerate(count(first, step), 1):
        where.at_call.write_text(str(number))
        old = where.daemon
        new = where.keeper()
        wait_for(lambda old=old, new=new: new.process.poll() is not None or old.process.poll() is not None)
        where.daemon = old if new.process.poll() is not None else new
        wait_for(where.serves)
        if SERVING in new.log.read_text().split(ENDED)[0]:
            return trials
    raise AssertionError


def calls_of_stop(where: Place, step: int = 1, first: int = 1) -> int:
    """kill -9 at each system call of a stop that leaves the mount to a successor"""
    before, where.daemon = where.daemon, where.keeper(stay=True)
    assert before.process.wait(60) == 0
    for trials, number in enumerate(count(first, step), 1):
        wait_for(where.serves)
        servings = where.log().count(SERVING)
        stop = [sys.executable, KILLED_AT, "--stop", str(where.server()), str(number)]
        made = int(subprocess.run(stop, check=True, capture_output=True, timeout=60).stdout)
        wait_for(lambda servings=servings: where.log().count(SERVING) > servings)
        if made < number:
            return trials
    raise AssertionError


def calls(where: Place, times: int = 200) -> int:
    """kill -9 under loops of sysinfo(2) and sched_getaffinity(2) in eight containers"""
    for _ in range(times):
        wait_for(where.serves)
        time.sleep(random.uniform(0, 0.2))
        where.kill()
    return times


def rollovers(node: HeldNode, times: int = 20) -> int:
    """rollovers of pods with `attach.auto = true`, under three containers"""
    node.roll_over(times)
    return times


CALLS: tuple[Callable[..., int], ...] = (calls_of_start, calls_of_takeover, calls_of_stop)
SCENARIOS: dict[str, Callable[..., int]] = {
    each.__name__: each for each in (kills, takeovers, reloads, calls, rollovers, *CALLS)
}


def run(scenario: Callable[..., int], *number: int) -> str:
    """Return a row of the table. AssertionError where a reader or a caller saw an error."""
    if scenario is calls:
        return _run_under_calls(*number)
    if scenario is rollovers:
        return _run_of_pods(*number)
    cpus = 0.25 if scenario in CALLS else 1  # where one machine's servers start some thousand times
    with place() as where, Sandbox(memory=256 << 20, cpus=cpus, views=where.mountpoint) as box:
        with reading(box) as readers:
            times = scenario(where, *number)
        return f"| {scenario.__doc__} | {times} | {readers.reads} | 0 | {readers.longest:.2f} s |"


def _run_under_calls(*number: int) -> str:
    with place() as where, contextlib.ExitStack() as stack:
        boxes = [
            stack.enter_context(Sandbox(memory=MEMORY, cpus=1, views=where.mountpoint)) for _ in range(_CONTAINERS)
        ]
        agent = seccomp_profile.socket_of(str(where.mountpoint))
        with calling(boxes, agent, where.directory / "enough") as made:
            times = calls(where, *number)
        return f"| {calls.__doc__} | {times} | {2 * made.pairs} calls | 0 | {made.longest:.2f} s |"


def _run_of_pods(*number: int) -> str:
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-soak-") as directory, contextlib.ExitStack() as stack:
        node = HeldNode(Path(directory))
        stack.callback(node.end)
        node.config.write_text(ATTACHES)
        node.start()
        boxes = [
            stack.enter_context(Sandbox(memory=256 << 20, cpus=1, views=node.views)) for _ in range(_CONTAINERS_OF_PODS)
        ]
        with contextlib.ExitStack() as containers:
            readers = [containers.enter_context(reading(box)) for box in boxes]
            times = rollovers(node, *number)
        reads, longest = sum(each.reads for each in readers), max(each.longest for each in readers)
        node.stop(node.pods[-1])
        return f"| {rollovers.__doc__} | {times} | {reads} | 0 | {longest:.2f} s |"


def main() -> None:
    """Run those that are named, or all."""
    chosen = wanted.scenarios(__doc__, SCENARIOS)
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs\n")
    print("| what | times | reads | failed or odd | longest wait |\n| --- | --- | --- | --- | --- |", flush=True)
    for name, numbers in chosen:
        print(run(SCENARIOS[name], *numbers), flush=True)


if __name__ == "__main__":
    main()
