"""Requests that wait for their turn where many do: kept where a successor finds them, and served fairly.

The kernel hands requests out in its own order: with 500 threads of one container before it, a neighbour's request is
the last of 501. So the reader takes all that wait into small slots of the session's memory, and whoever has been served
for the shortest time is next: as the kernel shares out CPU time, level by level of the tree of cgroups. However many
cgroups a container has below its own, they have its share together.

Requests for which the kernel holds a lock meanwhile have a line of their own beside the rest of their cgroup's: where
others wait for a directory that somebody changes or lists, who floods the server too, they wait for his turn only.
"""

from __future__ import annotations

import functools
import mmap
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from heapq import heappop, heappush, heapreplace
from typing import NamedTuple, Optional

LIMIT = 32768
"""So many requests are taken; what comes on top waits in the kernel's queue, and those of all who come after it."""

_CELL = 512
_SLOT = _CELL - 8
"""Bytes of a request that are kept. A longer one is none that is served: what matters of it is its header."""
_USED = _CELL - 1  # in a cell, behind the slot: 1 when it, and so each one before it, has been used

_MAX_KNOWN = 16384
"""Branches of the tree of cgroups, those of which somebody waits aside."""

_DEPTH = 12
"""Levels of cgroups: what is deeper has one line for each path. A container begins higher up."""
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
    holds: bool = False
    """Whether the kernel holds a lock for it."""


class _Branch:
    """A cgroup of whose processes, or of those below, requests wait or have been served."""

    __slots__ = ("branches", "line", "now", "order", "served")

    def __init__(self, served: float = 0.0) -> None:
        self.served = served
        """Seconds for which requests from here were served, or the time of who was next when it came."""

        self.now = 0.0
        """What whoever of those right below was served last had been served for: who comes anew begins there."""

        self.branches: dict[str, _Branch] = {}
        self.order: list[tuple[float, str]] = []
        """A heap of who is next right below, of those of whom requests wait."""

        self.line: deque[Waiting] = deque()
        """Requests of the cgroup's own processes, which are two branches that go no further."""

    def waits(self) -> bool:
        return bool(self.line or self.order)

    def first(self) -> tuple[str, _Branch]:
        """Return whose turn it is, of those right below. The time that somebody was served may be known only now."""
        while True:
            served, name = self.order[0]
            branch = self.branches[name]
            if served >= branch.served:
                return name, branch
            heapreplace(self.order, (branch.served, name))


class Queue:
    """Who waits, by whose requests they are: paths of cgroups. Its methods may be called by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._root = _Branch()
        self._lines: Counter[str] = Counter()
        self._known = 0  # branches
        self._most = _MAX_KNOWN
        self._shares: dict[str, Share] = {}
        self._together = Share(0, 0.0, 0.0)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def lines(self) -> int:
        """Of how many cgroups requests wait."""
        return len(self._lines)

    def add(self, whose: str, slot: memoryview, length: int, holds: bool = False) -> None:
        """Have a request of so many bytes wait, for which the kernel holds a lock or does not."""
        with self._lock:
            branch = self._root
            for name in _names(whose, holds):
                parent, branch = branch, branch.branches.get(name) or self._grow(branch, name)
                if not branch.waits():
                    branch.served = max(branch.served, parent.now)
                    heappush(parent.order, (branch.served, name))
            branch.line.append(Waiting(whose, slot, length, time.perf_counter(), holds))
            self._lines[whose] += 1
            self._length += 1

    def _grow(self, parent: _Branch, name: str) -> _Branch:
        branch = parent.branches[name] = _Branch()
        self._known += 1
        return branch

    def first(self) -> Optional[memoryview]:
        """Return a slot whose request waits, None when there is none."""
        with self._lock:
            branch = self._root
            while branch.order:
                branch = branch.branches[branch.order[0][1]]
            return branch.line[0].slot if branch.line else None

    def next(self) -> Optional[Waiting]:
        """Take whoever is next out of the queue, None when nobody waits."""
        with self._lock:
            way = []
            branch = self._root
            while branch.order:
                name, below = branch.first()
                way.append((branch, name, below))
                branch.now = below.served
                branch = below
            if not branch.line:
                return None
            request = branch.line.popleft()
            for parent, name, branch in reversed(way):
                branch.served += _ESTIMATE
                if branch.waits():
                    heapreplace(parent.order, (branch.served, name))
                else:
                    heappop(parent.order)
            self._length -= 1
            self._lines[request.whose] -= 1
            if not self._lines[request.whose]:
                del self._lines[request.whose]
            return request

    def charge(self, request: Waiting, began: float, ended: float) -> None:
        """Say when a request that was taken out was served."""
        whose = request.whose
        with self._lock:
            branch = self._root
            for name in _names(whose, request.holds):
                branch = branch.branches.get(name) or self._grow(branch, name)
                branch.served += ended - began - _ESTIMATE
            if self._known > self._most:
                self._known = _prune(self._root)
                self._most = max(_MAX_KNOWN, 2 * self._known)  # all may wait: then it is not done for each of them
            this = Share(1, ended - began, began - request.since)
            self._shares[whose] = _sum(self._shares.get(whose), this)
            self._together = _sum(self._together, this)
            if len(self._shares) > _MAX_SHARES:
                del self._shares[min(self._shares, key=lambda name: self._shares[name].seconds)]

    def crowd(self) -> Crowd:
        """Return how it stands."""
        with self._lock:
            return Crowd(self._length, self._together, dict(self._shares))


@functools.lru_cache(maxsize=1024)
def _names(whose: str, holds: bool) -> tuple[str, ...]:
    """Return the way to whose line it is: the names along a cgroup's path, and at its end what no name can be.

    Of two that have been served for as long, the one whose name is less is next.
    """
    return (*whose.split("/", _DEPTH), "/0" if holds else "/1")


def _prune(branch: _Branch) -> int:
    """Forget those of whom nobody waits; return how many are left below."""
    branch.branches = {name: below for name, below in branch.branches.items() if below.waits()}
    return sum(1 + _prune(below) for below in branch.branches.values())


def _sum(before: Optional[Share], this: Share) -> Share:
    if before is None:
        return this
    return Share(before.requests + this.requests, before.seconds + this.seconds, before.waited + this.waited)
