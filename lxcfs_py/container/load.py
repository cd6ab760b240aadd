"""Load averages of containers, by the kernel's own formula (kernel/sched/loadavg.c) over each one's own tasks."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import Callable

from lxcfs_py.linux import threads

log = logging.getLogger(__name__)

_FORGET_AFTER_SECONDS = 15 * 60
_WINDOWS_SECONDS = (60, 300, 900)

States = Callable[[], "tuple[int, int, int]"]
"""Gives the running, the blocked and all tasks of a container. OSError when its cgroup is gone."""


class Load:
    """One container's load averages, sampled as long as somebody asks for them."""

    __slots__ = ("_sampler", "asked", "averages", "closed", "sampled")

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.averages = (0.0, 0.0, 0.0)
        self.asked = self.sampled = 0.0
        self.closed = False

    def read(self, states: States) -> tuple[float, float, float]:
        """Return the averages over 1, 5 and 15 minutes, and go on sampling by `states` until `close`."""
        self.asked = time.monotonic()
        if not self.closed:
            self._sampler.add(self, states)
        return self.averages

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
    """Samples the load of those containers that asked within the last 15 minutes; sleeps while there is none."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        # What counts a container's tasks holds the container: nobody but the sampler has it, and not for longer than
        # the container lives.
        self._loads: dict[Load, States] = {}
        self._any = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Sample from now on, in a thread of its own. OSError where none can be had."""
        threads.start(self._run, name="load")

    def add(self, load: Load, states: States) -> None:
        """Sample this one too, from 0 on: what was found before nobody asked for a while says nothing of now."""
        if load not in self._loads:
            with self._lock:
                load.averages = (0.0, 0.0, 0.0)
                load.sampled = time.monotonic()
                self._loads[load] = states
                self._any.set()

    def remove(self, load: Load) -> None:
        """Sample it no more."""
        with self._lock:
            self._loads.pop(load, None)
            if not self._loads:
                self._any.clear()

    def sample(self) -> None:
        """Sample each container once."""
        with self._lock:
            loads = list(self._loads.items())
        for load, states in loads:
            if time.monotonic() - load.asked > _FORGET_AFTER_SECONDS:
                self.remove(load)
                continue
            try:
                load.sample(states())
            except (OSError, ValueError) as error:
                log.debug("a load average cannot be sampled: %s", error)

    def _run(self) -> None:
        while True:
            self._any.wait()
            time.sleep(self.interval)
            self.sample()
