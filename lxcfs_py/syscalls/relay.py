"""One thread attends; where it is kept waiting, another goes on in its place.

It waits for no memory of a container's, which is left to others (`writers`), but for the kernel, which may have to wait
for whatever a container does.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Callable, Optional

from lxcfs_py.linux import threads
from lxcfs_py.syscalls.memory import Memory, Slot

log = logging.getLogger(__name__)

PATIENCE = 0.1
"""Seconds that a thread may be at one thing before another goes on."""


_AFTER_AN_ERROR = 1.0  # seconds

TakeBack = Callable[[], None]
"""Has those attended to again whom nobody was to attend to."""


class Shift:
    """The time of one thread."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.at = -1
        """The descriptor that it attends to."""

        self.since = 0.0
        """Since when, 0.0 when it attends to none."""

        self.take_back: TakeBack = lambda: None
        """To be called when it is done, if another leads by then."""


class Relay:
    """Who leads, and who is kept waiting."""

    def __init__(
        self,
        memory: Memory,
        work: Callable[[Shift], None],
        leave_out: Callable[[int], TakeBack],
        finish: Callable[[Shift], None],
    ) -> None:
        """Take what to do.

        `work` attends once to what there is. `leave_out` has nobody attend to a descriptor and to what hangs together
        with it. `finish` waits for what is done still about the call in the slot of a thread that ends.
        """
        self._memory = memory
        self._work = work
        self._leave_out = leave_out
        self._finish = finish
        self._leader: Optional[Shift] = None
        self._lock = threading.Lock()
        self._busy = threading.Event()
        self._has_begun = False
        self._stands_still = False

    def start(self) -> None:
        """Let a thread lead, and another look after it."""
        self._has_begun = True
        self._try_to_lead()
        threads.start(self._look, name="syscalls-relay")

    def beside(self, slot: Slot, descriptor: int, work: Callable[[Slot], None]) -> None:
        """Do something about a descriptor, with a slot that was taken, while others are attended to."""
        take_back = self._leave_out(descriptor)

        def do() -> None:
            try:
                work(slot)
            finally:
                take_back()
                self._give_back(slot)

        threads.start(do, name="syscalls-left")

    def stop(self) -> None:
        """Let nobody lead any more; return when nobody attends to anything, but for who is kept waiting."""
        with self._lock:
            self._has_begun = False
            shift, self._leader = self._leader, None
        deadline = time.monotonic() + PATIENCE
        while shift is not None and shift.since and time.monotonic() < deadline:
            time.sleep(0.001)

    def begin(self, shift: Shift, descriptor: int) -> bool:
        """Note what a thread attends to; tell whether it leads, and so may do that."""
        with self._lock:
            if self._leader is not shift:
                return False
            shift.at = descriptor
            shift.since = time.monotonic()
        if not self._busy.is_set():
            self._busy.set()
        return True

    def end(self, shift: Shift) -> bool:
        """Note that it is done; tell whether it still leads."""
        with self._lock:
            shift.since = 0.0
            if self._leader is shift:
                return True
        shift.take_back()
        return False

    def _begin_to_lead(self) -> None:
        before, self._leader = self._leader, Shift(self._memory.take())
        try:
            threads.start(self._lead, self._leader, name="syscalls")
        except OSError:
            self._memory.give_back(self._leader.slot)
            self._leader = before
            raise

    def _lead(self, shift: Shift) -> None:
        try:
            while self._leader is shift:
                try:
                    self._work(shift)
                except Exception:  # whatever it is, somebody must go on
                    log.exception("the agent for system calls met an error")
                    time.sleep(_AFTER_AN_ERROR)
        finally:
            try:
                self._finish(shift)
            except Exception:
                log.exception("the agent for system calls met an error")
            finally:
                self._give_back(shift.slot)

    def _give_back(self, slot: Slot) -> None:
        with self._lock:
            self._memory.give_back(slot)

    def _look(self) -> None:
        """See to it that somebody goes on."""
        while True:
            self._busy.wait()
            time.sleep(PATIENCE / 2)
            self._busy.clear()
            try:
                self._look_once()
            except Exception:  # whatever it is, somebody must look again
                log.exception("the agent for system calls met an error")
                time.sleep(_AFTER_AN_ERROR)
                self._busy.set()

    def _look_once(self) -> None:
        with self._lock:
            shift = self._leader
            if shift is None and self._has_begun:
                self._try_to_lead()
            if shift is None or not shift.since:
                return
            self._busy.set()
            if time.monotonic() - shift.since >= PATIENCE:
                self._replace(shift)

    def _replace(self, shift: Shift) -> None:
        take_back = self._leave_out(shift.at)
        if self._try_to_lead():
            shift.take_back = take_back
        else:
            take_back()

    def _try_to_lead(self) -> bool:
        """Let another thread lead; tell whether it does. Where none can, it is tried again."""
        try:
            self._begin_to_lead()
        except (LookupError, OSError) as error:  # no slot, since a predecessor left a call in each, or no thread
            if not self._stands_still:
                log.error("system calls wait for a container that keeps the agent waiting: %s", error)
            self._stands_still = True
            self._busy.set()
            return False
        self._stands_still = False
        return True
