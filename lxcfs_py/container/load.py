"""Load averages of containers, by the kernel's own formula (kernel/sched/loadavg.c) over each one's own tasks.

After each look at all of them, they are kept in a file, so that a restarted daemon goes on where the old one was.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from typing import Any, Callable, NamedTuple, Optional

from lxcfs_py.cgroup.layout import parse_paths
from lxcfs_py.container import processes
from lxcfs_py.container.order import in_turn
from lxcfs_py.linux import aside, regular_file, threads

log = logging.getLogger(__name__)

_FORGET_AFTER_SECONDS = 15 * 60
_MAX_BYTES = 4 << 20
"""Of the file: some 20,000 containers."""

_WINDOWS_SECONDS = (60, 300, 900)

_MOST = 0.05
"""The part of the time that all looks together may take: somebody can have thousands of containers within his own."""

_ESTIMATE = 1e-3
"""Seconds that a look is taken to cost until it is known."""

States = Callable[[], "tuple[int, int, int]"]
"""Gives the running, the blocked and all tasks of a container. OSError when its cgroup is gone."""


class _Kept(NamedTuple):
    """What is kept of one container; times are those of the monotonic clock, which all processes have in common."""

    init: int
    """The pid of its init."""

    averages: tuple[float, float, float]
    asked: float
    sampled: float


class Load:
    """One container's load averages, sampled as long as somebody asks for them."""

    __slots__ = ("_sampler", "asked", "averages", "closed", "cost", "init", "name", "sampled")

    def __init__(self, sampler: Sampler, name: str = "", init: int = 0) -> None:
        """Take the name by which they are kept, and the pid of the container's init."""
        self._sampler = sampler
        self.name = name
        self.init = init
        self.averages = (0.0, 0.0, 0.0)
        self.asked = self.sampled = 0.0
        self.cost = _ESTIMATE
        """Seconds of CPU time that the last look took."""

        self.closed = False

    def read(self, states: States) -> tuple[float, float, float]:
        """Return the averages over 1, 5 and 15 minutes, and go on sampling by `states` until `close`."""
        self.asked = time.monotonic()
        self.go_on(states)
        return self.averages

    def go_on(self, states: States) -> None:
        """Go on sampling by `states` until `close`, though nobody asks."""
        if not self.closed:
            self._sampler.add(self, states)

    def sample(self, counts: tuple[int, int, int]) -> None:
        """Take the container's tasks of now into account, for the time that has passed since the last look."""
        running, blocked, _ = counts
        now = time.monotonic()
        interval, self.sampled = now - self.sampled, now
        self.averages = tuple(  # type: ignore[assignment]
            average + (running + blocked - average) * (1 - math.exp(-interval / window))
            for average, window in zip(self.averages, _WINDOWS_SECONDS)
        )

    def close(self) -> None:
        """Stop sampling: the container has ended."""
        self.closed = True
        self._sampler.remove(self)


class Sampler:
    """Samples the load of those containers that asked within the last 15 minutes; sleeps while there is none.

    What it has found is in a file that outlives the daemon; in memory alone without a path.
    """

    def __init__(self, interval: float, path: Optional[str] = None) -> None:
        self.interval = interval
        self._path = path
        self._kept = _read(path) if path else {}
        # What counts a container's tasks holds the container: nobody but the sampler has it, and not for longer than
        # the container lives.
        self._loads: dict[Load, States] = {}
        self._any = threading.Event()
        self._lock = threading.Lock()

    def start(self, first: Callable[[], None] = lambda: None) -> None:
        """Sample from now on, in a thread of its own, which does that first. OSError where none can be had."""
        threads.start(self._run, first, name="load")

    def kept(self) -> list[tuple[int, str]]:
        """Return the init and the name of the containers that a daemon before this one sampled at its end."""
        with self._lock:
            return [(kept.init, name) for name, kept in self._kept.items()]

    def add(self, load: Load, states: States) -> None:
        """Sample this one too, from where a daemon before this one was, else from 0 on.

        What was found before nobody asked for a while says nothing of now.
        """
        if load in self._loads:
            return
        with self._lock:
            if load not in self._loads:
                kept = self._kept.pop(load.name, None)
                if kept and _is_recent(kept):
                    load.averages, load.sampled = kept.averages, kept.sampled
                    load.asked = max(load.asked, kept.asked)
                else:
                    load.averages, load.sampled = (0.0, 0.0, 0.0), time.monotonic()
                self._loads[load] = states
                self._any.set()

    def remove(self, load: Load) -> None:
        """Sample it no more."""
        with self._lock:
            self._loads.pop(load, None)
            if not self._loads:
                self._any.clear()

    def sample(self) -> None:
        """Sample each container once, as far as there is time: for who has to wait, a longer time is over then."""
        most = self.interval * _MOST
        looks = self._wanted()
        if sum(load.cost for load, _ in looks) > most:
            looks = _in_turn(looks)
        end = aside.thread_time() + most
        for load, states in looks:
            began = aside.thread_time()
            try:
                load.sample(states())
            except (OSError, ValueError) as error:
                log.debug("a load average cannot be sampled: %s", error)
            ended = aside.thread_time()
            load.cost = ended - began
            if ended > end:
                break
        self._write()

    def _wanted(self) -> list[tuple[Load, States]]:
        """Return those that asked within the last 15 minutes, and sample the others no more."""
        with self._lock:
            loads = list(self._loads.items())
        for load, _ in loads:
            if time.monotonic() - load.asked > _FORGET_AFTER_SECONDS:
                self.remove(load)
        return [each for each in loads if each[0] in self._loads]

    def _write(self) -> None:
        if not self._path:
            return
        with self._lock:
            sampled = {load.name: _Kept(load.init, load.averages, load.asked, load.sampled) for load in self._loads}
            kept = {**self._kept, **sampled}
        try:
            regular_file.replace(self._path, json.dumps(kept).encode())
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _run(self, first: Callable[[], None]) -> None:
        try:
            first()
        except Exception:  # whatever it is, the others are sampled
            log.exception("who was sampled before is not found")
        while True:
            self._any.wait()
            time.sleep(self.interval)
            self.sample()


def _in_turn(looks: list[tuple[Load, States]]) -> list[tuple[Load, States]]:
    """Return whom to look at, first whose look took the smallest part of the time since that."""
    now = time.monotonic()
    return in_turn((_path(each[0].init), each[0].cost / max(now - each[0].sampled, 1e-9), each) for each in looks)


def _path(init: int) -> str:
    """Return the path of the cgroup that an init is in, "" when it has ended."""
    try:
        return processes.place(parse_paths(processes.read(init, "cgroup")))
    except OSError:
        return ""


def _is_recent(kept: _Kept) -> bool:
    now = time.monotonic()
    return all(now - _FORGET_AFTER_SECONDS < then <= now for then in (kept.asked, kept.sampled))


def _read(path: str) -> dict[str, _Kept]:
    """Return what is kept, without what is too old to go on from."""
    try:
        kept = {name: _parse(each) for name, each in json.loads(regular_file.read(path, _MAX_BYTES)).items()}
    except FileNotFoundError:
        return {}
    except Exception as error:  # whatever is in it, it keeps nobody from serving
        log.warning("%s cannot be read (%s): load averages of running containers start anew", path, error)
        return {}
    return {name: each for name, each in kept.items() if _is_recent(each)}


def _parse(kept: Any) -> _Kept:
    init, (one, five, fifteen), asked, sampled = kept
    if not all(map(math.isfinite, (one, five, fifteen))):
        raise ValueError(kept)
    return _Kept(int(init), (float(one), float(five), float(fifteen)), float(asked), float(sampled))
