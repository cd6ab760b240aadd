"""Whose turn it is to read requests: one worker's, and the next one's when a request takes the first too long.

Python runs one thread at a time. Workers that all read at once get in each other's way at every call of the kernel,
and serve fewer requests than one alone; but one alone keeps everybody waiting for the slowest file. So the others stand
by. The reader sets a timer when it has a request and none is set. Whoever stands by is woken by it, and sees in the
reader's slot whether that is still the same request. Nothing runs when nobody reads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Optional

from lxcfs_py import syscalls
from lxcfs_py.engine import protocol
from lxcfs_py.engine.session import OPCODE

PATIENCE = 0.01
"""Seconds between two looks at the reader: at the second that finds the same request, another takes its turn."""

_AT_ONCE = 1e-9


class Relay:
    """The turns of the workers, each known by the number of its slot."""

    def __init__(self, slots: Sequence[memoryview]) -> None:
        self.reader: Optional[int] = None
        self.stopped = False
        self._first = threading.Lock()
        self._slots = slots
        self._timer = syscalls.timerfd_create()
        self._is_set = False
        self._held = 0  # the request that the last look found at hand

    def __del__(self) -> None:
        os.close(self._timer)

    def begin(self) -> None:
        """Say that the reader has a request in its slot."""
        if not self._is_set:
            self._is_set = True
            syscalls.timerfd_settime(self._timer, PATIENCE)

    def stand_by(self, worker: int) -> None:
        """Block until it is this worker's turn to read, which is the first one's that comes, or all is over."""
        if self._first.acquire(blocking=False):
            self.reader = worker
        while self.reader != worker and not self.stopped:
            os.read(self._timer, 8)
            self._look(worker)
        if self.stopped:
            syscalls.timerfd_settime(self._timer, _AT_ONCE)  # the next one that stands by

    def stop(self) -> None:
        """Let nobody stand by any longer."""
        self.stopped = True
        syscalls.timerfd_settime(self._timer, _AT_ONCE)

    def _look(self, worker: int) -> None:
        slot = self._slots[self.reader or 0]
        if not slot[OPCODE]:
            self._is_set = False
            if not slot[OPCODE]:  # it may have got one before that, and have seen the timer set
                return
            self._is_set = True
        _, _, request, _, _ = protocol.IN_HEADER.unpack_from(slot)
        if request == self._held:
            self._is_set = False
            self.reader = worker
        else:
            self._held = request
            syscalls.timerfd_settime(self._timer, PATIENCE)
