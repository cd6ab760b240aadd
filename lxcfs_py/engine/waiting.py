"""Requests that wait for their turn where many do: kept where a successor finds them, and served fairly.

The kernel hands requests out in its own order: with 500 threads of one container before it, a neighbour's request is
the last of 501. So the reader takes all that wait into small slots of the session's memory, and whoever has been served
for the shortest time is next.
"""

from __future__ import annotations

import mmap
import threading
import time
from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import NamedTuple, Optional

LIMIT = 8192
"""So many requests are taken; what comes on top waits in the kernel's queue."""

_CELL = 512
_SLOT = _CELL - 8
"""Bytes of a request that are kept. A longer one is none that is served: what matters of it is its header."""
_USED = _CELL - 1  # in a cell, behind the slot: 1 when it, and so each one before it, has been used

_MAX_KNOWN = 16384
_MAX_SHARES = 256

_ESTIMATE = 1e-4
"""Seconds that a request is taken to cost until it is known."""


class Slots:
    """Slots for requests at an offset of the session's memory, of which no more is touched than is needed."""

    def __init__(self, memory: mmap.mmap, offset: int, opcode: int) -> None:
        """Take byte `opcode` of a slot for what tells, by not being 0, that a request is in it."""
        self._view = memoryview(memory)[offset : offset + size()]
        self._opcode = opcode
        self._free: list[memoryview] = []
        self._count = 0
        self._growing = threading.Lock()

    def load(self) -> list[memoryview]:
        """Return the slots in which a predecessor has left a request. Not before it is gone."""
        self._free, self._count = [], 0
        left: list[memoryview] = []
        while self._count < LIMIT and self._view[self._count * _CELL + _USED]:
            slot = self._at(self._count)
            (left if slot[self._opcode] else self._free).append(slot)
            self._count += 1
        return left

    def get(self) -> Optional[memoryview]:
        """Return an empty slot, None when there are no more."""
        try:
            return self._free.pop()
        except IndexError:
            pass
        with self._growing:
            number = self._count
            if number == LIMIT:
                return None
            # The page is here from now on: SIGKILL must not cut the kernel's copying short.
            self._view[number * _CELL + _USED] = 1
            self._count += 1
        return self._at(number)

    def put(self, slot: memoryview) -> None:
        """Empty a slot for another request."""
        slot[self._opcode] = 0
        self._free.append(slot)

    def _at(self, number: int) -> memoryview:
        return self._view[number * _CELL : number * _CELL + _SLOT]


def size() -> int:
    """Return how many bytes of memory they take."""
    return LIMIT * _CELL


class Share(NamedTuple):
    """What one container has had of the server while many requests waited."""

    requests: int
    seconds: float
    """For which its requests were served."""
    waited: float
    """Seconds, of all its requests together."""


class Crowd(NamedTuple):
    """How it stands with those who wait for their turn."""

    waiting: int = 0
    """Requests that wait now."""

    together: Share = Share(0, 0.0, 0.0)
    """What all have had, since the server serves."""

    shares: Mapping[str, Share] = {}
    """What each has had, by whose requests they are: of those who had the most."""


class Waiting(NamedTuple):
    """A request that waits."""

    whose: str
    slot: memoryview
    length: int
    since: float


class Queue:
    """Who waits, by whose requests they are. Its methods may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, deque[Waiting]] = {}
        self._order: list[tuple[float, str]] = []  # a heap of whose line is next, by the time that they were served
        self._served: dict[str, float] = {}
        self._now = 0.0  # what who was served last had been served for: whoever comes anew begins there
        self._shares: dict[str, Share] = {}
        self._together = Share(0, 0.0, 0.0)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def lines(self) -> int:
        """Of how many containers requests wait."""
        return len(self._lines)

    def add(self, whose: str, slot: memoryview, length: int) -> None:
        """Have a request of so many bytes wait."""
        with self._lock:
            line = self._lines.get(whose)
            if line is None:
                line = self._lines[whose] = deque()
                self._served[whose] = max(self._served.get(whose, 0.0), self._now)
                heappush(self._order, (self._served[whose], whose))
            line.append(Waiting(whose, slot, length, time.perf_counter()))
            self._length += 1

    def first(self) -> Optional[memoryview]:
        """Return a slot whose request waits, None when there is none."""
        with self._lock:
            return self._lines[self._order[0][1]][0].slot if self._order else None

    def next(self) -> Optional[Waiting]:
        """Take whoever is next out of the queue, None when nobody waits."""
        with self._lock:
            while self._order:
                served, whose = heappop(self._order)
                if served < self._served[whose]:  # the time has come to be known since
                    heappush(self._order, (self._served[whose], whose))
                    continue
                self._now = served
                line = self._lines[whose]
                request = line.popleft()
                self._served[whose] = served + _ESTIMATE
                if line:
                    heappush(self._order, (self._served[whose], whose))
                else:
                    del self._lines[whose]
                self._length -= 1
                return request
        return None

    def charge(self, request: Waiting, began: float, ended: float) -> None:
        """Say when a request that was taken out was served."""
        whose = request.whose
        with self._lock:
            self._served[whose] = self._served.get(whose, self._now) + ended - began - _ESTIMATE
            if len(self._served) > _MAX_KNOWN:
                self._served = {whose: at for whose, at in self._served.items() if whose in self._lines}
            this = Share(1, ended - began, began - request.since)
            self._shares[whose] = _sum(self._shares.get(whose), this)
            self._together = _sum(self._together, this)
            if len(self._shares) > _MAX_SHARES:
                del self._shares[min(self._shares, key=lambda name: self._shares[name].seconds)]

    def crowd(self) -> Crowd:
        """Return how it stands."""
        with self._lock:
            return Crowd(self._length, self._together, dict(self._shares))


def _sum(before: Optional[Share], this: Share) -> Share:
    if before is None:
        return this
    return Share(before.requests + this.requests, before.seconds + this.seconds, before.waited + this.waited)
