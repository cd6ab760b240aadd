"""Whose turn it is to read requests: two workers' while requests come one at a time, one's while there are many.

One reader: Python runs one thread at a time, and workers that read at once get in each other's way at every call of the
kernel. With eight readers of files they serve fewer requests than one alone.

Two: a request that comes while the first worker is on its way back to sleep is answered by the second, which the kernel
wakes on the core of whoever asks, and nothing has to wake another core. So the reader has a companion, until that finds
the reader at a request many times in a row.

Another one: a reader that is at one request for long is followed by one of those that stand by. The reader sets a timer
when it has a request and none is set. Whoever stands by is woken by it, and sees in the reader's slot how that stands.
Nothing runs when nobody reads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Optional

from lxcfs_py.engine import protocol
from lxcfs_py.engine.session import OPCODE
from lxcfs_py.linux import syscalls

PATIENCE = 0.01
"""Seconds between two looks at the reader: at the second that finds the same request, another takes its turn."""

CROWD = 16
"""In a row, requests that the companion gets while the reader is at one: so many mean that there are many readers."""

_AT_ONCE = 1e-9


class Relay:
    """The turns of the workers, each known by the number of its slot."""

    _timer = -1

    def __init__(self, slots: Sequence[memoryview]) -> None:
        self.reader: Optional[int] = None
        self.companion: Optional[int] = None
        self.sharer: Optional[int] = None
        """The worker that serves the queue. One that has lost the turn may be at it still, or again."""
        self.stopped = False
        self.at_hand = list(slots)
        """For each worker, where its request stands."""
        self._first = threading.Lock()
        self._timer = syscalls.timerfd_create()
        self._is_set = False
        self._met = 0  # how often in a row the companion began while the reader was at a request
        self._held = 0  # the request that the last look found at hand

    def __del__(self) -> None:
        if self._timer >= 0:
            os.close(self._timer)

    def begin(self, worker: int) -> None:
        """Say that a worker has a request in its slot."""
        if not self._is_set:
            self._is_set = True
            syscalls.timerfd_settime(self._timer, PATIENCE)
        if worker == self.companion:
            self._met = self._met + 1 if self.at_hand[self.reader or 0][OPCODE] else 0
            if self._met == CROWD:
                self.companion = None

    def show(self, worker: int, slot: memoryview) -> None:
        """Say in which slot a worker's request stands from now on."""
        self.at_hand[worker] = slot

    def reads(self, worker: int) -> bool:
        """Tell whether it is this worker's turn."""
        return worker in (self.reader, self.companion) and not self.stopped

    @property
    def shares(self) -> bool:
        """Whether the reader serves a queue that others must not be served past: it has no companion then."""
        return self.sharer is not None and self.sharer == self.reader

    def stand_by(self, worker: int) -> None:
        """Block until it is this worker's turn to read, which is the first one's that comes, or all is over."""
        if self._first.acquire(blocking=False):
            self.reader = worker
        while not (self.reads(worker) or self.stopped):
            os.read(self._timer, 8)
            self._look(worker)
        if self.stopped:
            syscalls.timerfd_settime(self._timer, _AT_ONCE)  # the next one that stands by

    def stop(self) -> None:
        """Let nobody stand by any longer."""
        self.stopped = True
        syscalls.timerfd_settime(self._timer, _AT_ONCE)

    def _look(self, worker: int) -> None:
        slot = self.at_hand[self.reader or 0]
        if not slot[OPCODE]:
            self._is_set = False
            if not slot[OPCODE]:  # it may have got one before that, and have seen the timer set
                if self.companion is None and not self.shares:
                    self.companion, self._met = worker, 0
                return
            self._is_set = True
        _, _, request, _, _ = protocol.IN_HEADER.unpack_from(slot)
        if request == self._held:
            self._is_set = False
            self.reader = worker
        else:
            self._held = request
            syscalls.timerfd_settime(self._timer, PATIENCE)
