"""`python -m tests.hostile.soak [MINUTES [CONTAINERS]]`: all attackers at once, for an hour, and all else beside them.

Containers come and go, the server is killed and its configuration reloaded all the time, and two victims read. At the
end it prints what they have noticed, and what the server took after ten minutes and at the end. It fails where somebody
noticed something, and where the server took more at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import psutil

from tests import cached
from tests.conftest import ROOT
from tests.hostile.__main__ import require
from tests.hostile.arena import ATTACKS, DEFAULT, Arena, Attack, Noticed, engine, everything, noticed
from tests.kept import wait_for
from tests.soak import Place, place

MINUTES = 60.0
CONTAINERS = 10_000
VICTIMS = 2
CPUS = 0.05
"""Of each attacker: there are many."""

ROUND = 300.0
"""Seconds for which one attacks before it makes room for a new one."""

QUIET = 60.0
"""Seconds without a kill or an attack before it is looked at what the server takes."""

GROWTH = 0.05
"""By which part the server may take more at the end than after ten minutes."""

_FEWER = {"children": ("3000",), "flood": ("500",)}


class Takes(NamedTuple):
    """What the server takes: its resident kB, its descriptors, and those of the keeper."""

    resident: int
    descriptors: int
    kept: int


class Soak:
    """All that happens at once; each step takes little time, and none waits for another."""

    def __init__(self, where: Place, arena: Arena, seconds: float) -> None:
        self.where, self.arena = where, arena
        self.end = time.monotonic() + seconds
        self.kills = self.reloads = self.started = self.containers = 0
        self.attackers: list[tuple[float, str]] = []
        self.order = itertools.cycle(
            (attack, options)
            for attack in ATTACKS
            for options in ([everything()] if attack.privileged else [list(DEFAULT), everything()])
        )

    def attack(self, most: int) -> None:
        """Let old attackers go, and new ones come."""
        now = time.monotonic()
        while self.attackers and (self.attackers[0][0] < now - ROUND):
            _, container = self.attackers.pop(0)
            self.arena.docker.attempt("rm", "--force", container, timeout=300)
        if len(self.attackers) < most:
            attack, options = next(self.order)
            attack = Attack(attack.name, _FEWER.get(attack.name, attack.arguments))
            self.attackers.append((now, self.arena.start_attacker(attack, options)))
            self.started += 1

    def come_and_go(self) -> None:
        """One more Docker container, which reads and ends."""
        self.arena.docker("run", "--rm", *self.arena.files(), self.arena.docker.image, "cat", "/proc/stat", timeout=300)
        self.containers += 1

    def kill(self) -> None:
        """The server dies, at whatever it does."""
        self.where.kill()
        self.kills += 1

    def reload(self) -> None:
        """The configuration changes."""
        self.reloads += 1
        self.where.config.write_text(
            f'[memory]\nhigh = {"true" if self.reloads % 2 else "false"}\n[fuse]\nengine = "kernel"\n'
        )
        reload = [sys.executable, "-m", "lxcfs_py", "reload", "--config", str(self.where.config)]
        subprocess.run(reload, cwd=ROOT, capture_output=True, timeout=120)  # the server may just be dead

    def takes(self) -> Takes:
        wait_for(self.where.serves)
        server, keeper = psutil.Process(self.where.server()), psutil.Process(self.where.daemon.process.pid)
        return Takes(server.memory_info().rss >> 10, server.num_fds(), keeper.num_fds())

    def rest(self) -> None:
        """Let all attackers go, so that what the server takes is for the same work at any time."""
        for _, container in self.attackers:
            self.arena.docker.attempt("rm", "--force", container, timeout=300)
        self.attackers = []
        time.sleep(QUIET)

    def run(self, until: float) -> None:
        """Have all happen at random until a moment, and rest."""
        most = len(ATTACKS)
        next_line = time.monotonic()
        while time.monotonic() < until:
            if time.monotonic() > next_line:
                next_line += 60
                print(
                    f"{(self.end - time.monotonic()) / 60:.0f} min left: {len(self.attackers)} attackers of "
                    f"{self.started}, {self.kills} kills, {self.reloads} reloads, {self.containers} containers, "
                    f"load {os.getloadavg()[0]:.0f}, takes {tuple(self.takes())}",
                    file=sys.stderr,
                    flush=True,
                )
            self.attack(most)
            if random.random() < 0.5:
                self.come_and_go()
            self.reload()
            self.kill()
            time.sleep(random.uniform(0, 4))
        self.rest()


def faults(found: Sequence[Noticed], wrong: int, early: Takes, late: Takes) -> Iterator[str]:
    """Yield what should not have been: of the victims, of the containers that came and went, and of what it took."""
    for victim in found:
        if victim.failed or victim.odd or victim.triggers["refused"]:
            yield f"a victim: {victim.first}"
    if wrong:
        yield f"{wrong} of the containers that came and went saw what was wrong"
    for what, before, after in zip(Takes._fields, early, late):
        if after > before * (1 + GROWTH):
            yield f"{what}: {before} after ten minutes, {after} at the end"


def soak(minutes: float, containers: int) -> int:
    """Return the exit code."""
    cache = cached.directory()
    with place() as where, engine(cache, require) as docker, contextlib.ExitStack() as stack:
        arena = Arena(docker, where.mountpoint, CPUS)
        began = time.monotonic()
        going = Soak(where, arena, minutes * 60)
        victims = [arena.start_victim(2 * minutes * 60) for _ in range(VICTIMS)]
        churn = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/hostile/churn.py"), str(where.mountpoint), str(containers)]
            + [str(minutes * 60 * 0.95)],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(churn.kill)
        going.run(began + min(600, minutes * 60 / 3))
        early = going.takes()
        going.run(going.end)
        late = going.takes()
        told, _ = churn.communicate(timeout=600)
        found: list[Noticed] = []
        for victim in victims:
            docker.attempt("exec", victim, "touch", "/tmp/stop", timeout=300)  # killed where that was quicker to end
            docker("wait", victim, timeout=300)
            found.append(noticed(docker("logs", victim)))
        print(f"Linux {platform.release()}, {os.cpu_count()} CPUs, {(time.monotonic() - began) / 60:.0f} minutes")
        print(f"{going.started} attackers, {going.kills} kills, {going.reloads} reloads")
        made, wrong = told.split()
        print(f"containers: {made}, of which {wrong} saw what was wrong, and {going.containers} of Docker")
        for each in found:
            print(each)
        print(f"{early} after ten minutes, {late} at the end")
        wrongs = list(faults(found, int(wrong), early, late))
        print(*wrongs, sep="\n", file=sys.stderr)
        return 1 if wrongs else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=MINUTES, help="(%(default)s)")
    parser.add_argument("containers", nargs="?", type=int, default=CONTAINERS, help="that come and go (%(default)s)")
    sys.exit(soak(**vars(parser.parse_args())))
