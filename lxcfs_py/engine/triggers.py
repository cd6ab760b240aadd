"""Triggers that readers have written into open files, and who waits for them in poll(2).

What a trigger is, only the tree knows. It is kept with the texts of open files, so that it outlives the server.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import threading
from dataclasses import dataclass
from typing import Callable, Optional

from lxcfs_py.engine import Tree, protocol
from lxcfs_py.engine.branches import Branches
from lxcfs_py.engine.open_texts import Texts
from lxcfs_py.engine.owners import Owners
from lxcfs_py.linux import threads

log = logging.getLogger(__name__)

MOST = 16
"""Triggers that one owner, such as a container, may have."""

_MOST_OF_ALL = 2048
"""Triggers of all. Where there is no more room, the fullest branch of the cgroup tree loses one, or gets none."""

_KEPT = 1 << 63
"""Added to a file's handle: under this number its trigger is kept, beside its text."""


@dataclass
class _Trigger:
    what: str
    """By which the tree arms it, also in the next server."""

    owner: str
    waits: int = 0
    """The kernel's name of the file, to be told when it fires; 0 while nobody waits."""

    descriptor: Optional[int] = None
    """On which it fires; None where it never does."""

    fired: bool = False

    start: int = 0
    """Where the file's position is after it was written, as long as its reader has not gone back before that."""

    written: int = 0
    """How many bytes were written. Writing moves the position of FUSE's files on, which it does not of the kernel's."""


class Triggers:
    """The triggers of one session, by the handle of the file that each was written into."""

    def __init__(self, tree: Tree, texts: Texts, wake: Callable[[int], None]) -> None:
        """`wake` tells the kernel that a file, by the kernel's name, is to be polled again."""
        self._tree = tree
        self._texts = texts
        self._wake = wake
        self._owners = Owners()
        self._held: dict[int, _Trigger] = {}
        self._branches = Branches()
        self.moved: dict[int, _Trigger] = {}
        """Those by which a file's position is ahead of where it would be in the kernel's own file."""

        self._fired = select.epoll()
        self._lock = threading.Lock()
        self._watching = False

    def __contains__(self, handle: int) -> bool:
        return handle in self._held

    def take_up(self) -> None:
        """Arm anew what a predecessor had. Who waits is let look again."""
        for key in self._texts.handles_from(_KEPT):
            try:
                what, owner, waits, start, written = json.loads(self._texts.get(key) or b"")
                handle, trigger = key - _KEPT, _Trigger(what, owner, waits, start=start, written=written)
                with self._lock:
                    self._hold(handle, trigger)
                self._arm(handle, trigger)
            except (OSError, ValueError) as error:  # such as that of a cgroup that is gone
                log.debug("a trigger is not taken up: %s", error)
            else:
                self._wake(waits)

    def set(self, handle: int, what: str, writer: tuple[int, int], offset: int, size: int) -> None:
        """Arm a trigger for an open file; `writer` is a pid and a uid, who has written so many bytes at an offset.

        EBUSY where the file has one, ENOSPC where those of the writer's cgroup, or of the branch that it is in, are too
        many.
        """
        trigger = _Trigger(what, self._owners.of(*writer), start=offset + size, written=size)
        with self._lock:
            if handle in self._held:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            loses = self._who_makes_room(trigger.owner)
            self._hold(handle, trigger)
        if loses is not None:
            self._take_away(loses)
        self._arm(handle, trigger)
        self._keep(handle, trigger, writer)

    def _who_makes_room(self, owner: str) -> Optional[int]:
        """Return which is to go for one more of an owner's: the latest of who has the most, None if none has to."""
        if self._branches.of(owner) < MOST:
            if len(self._held) < _MOST_OF_ALL:
                return None
            fuller = self._branches.fuller_than(owner)
            if fuller is not None:
                return max(fuller)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _take_away(self, handle: int) -> None:
        """Drop one whose file is open: who polls that is told of an error, as by the kernel where a cgroup has gone."""
        trigger = self._held.get(handle)
        self.drop(handle)
        if trigger is not None and trigger.waits:
            self._wake(trigger.waits)

    def offset(self, handle: int, offset: int, reader: tuple[int, int]) -> int:
        """Return where in the kernel's own file a pid and uid read that read at an offset here.

        Whoever reads on after writing does so where he was before. Who has gone back since is where he says.
        """
        trigger = self.moved.get(handle)
        if trigger is None:
            return offset
        if offset >= trigger.start:
            return offset - trigger.written
        self.moved.pop(handle, None)
        trigger.start = trigger.written = 0
        self._keep(handle, trigger, reader)
        return offset

    def poll(self, handle: int, waits: int, reader: tuple[int, int]) -> int:
        """Return what poll(2) is to say of an open file to a pid and uid.

        Where somebody waits, `waits` is the kernel's name of the file, else 0.
        """
        trigger = self._held.get(handle)
        if trigger is None:
            return protocol.POLL_ALWAYS | select.POLLERR | select.POLLPRI
        if waits and trigger.waits != waits:
            trigger.waits = waits
            self._keep(handle, trigger, reader)
        fired, trigger.fired = trigger.fired, False
        return protocol.POLL_ALWAYS | (select.POLLPRI if fired else 0)

    def drop(self, handle: int) -> None:
        """Forget that of a file that is closed."""
        with self._lock:
            trigger = self._held.pop(handle, None)
            if trigger is None:  # it was taken away
                return
            self._branches.remove(trigger.owner, handle)
            self.moved.pop(handle, None)
            self._texts.drop(handle + _KEPT)
        if trigger.descriptor is not None:
            os.close(trigger.descriptor)

    def _keep(self, handle: int, trigger: _Trigger, reader: tuple[int, int]) -> None:
        with self._lock:
            if self._held.get(handle) is trigger:
                kept = [trigger.what, trigger.owner, trigger.waits, trigger.start, trigger.written]
                self._texts.put(handle + _KEPT, json.dumps(kept).encode(), reader)

    def _hold(self, handle: int, trigger: _Trigger) -> None:
        self._held[handle] = trigger
        self._branches.add(trigger.owner, handle)
        if trigger.start:
            self.moved[handle] = trigger

    def _arm(self, handle: int, trigger: _Trigger) -> None:
        """Arm one that is held, and hold it no longer where that cannot be. OSError, ValueError."""
        try:
            descriptor = self._tree.arm(trigger.what)
        except BaseException:
            self.drop(handle)
            raise
        if descriptor is None:
            return
        with self._lock:
            if self._held.get(handle) is not trigger:  # it was taken away meanwhile
                os.close(descriptor)
                return
            trigger.descriptor = descriptor
            self._fired.register(descriptor, select.EPOLLPRI | select.EPOLLET)
        if not self._watching:
            threads.start(self._watch, name="triggers")
            self._watching = True

    def _watch(self) -> None:
        while True:
            fired = {descriptor for descriptor, _ in self._fired.poll()}
            with self._lock:
                triggers = [each for each in self._held.values() if each.descriptor in fired]
            for trigger in triggers:
                trigger.fired = True
                if trigger.waits:
                    with contextlib.suppress(OSError):
                        self._wake(trigger.waits)
