"""Triggers that readers have written into open files, and who waits for them in poll(2).

What a trigger is, only the tree knows. It is kept with the texts of open files, so that it outlives the server.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import select
import threading
import time
from dataclasses import dataclass
from typing import Callable, Optional

from lxcfs_py.container.owners import Owners
from lxcfs_py.engine import Armed, Tree, protocol
from lxcfs_py.engine.branches import Branches
from lxcfs_py.engine.open_texts import Texts
from lxcfs_py.linux import threads

log = logging.getLogger(__name__)

MOST = 16
"""Triggers that one owner, such as a container, may have."""

_MOST_OF_ALL = 2048
"""Triggers of all. Where there is no more room, the fullest branch of the cgroup tree loses one, or gets none."""

_MOST_MOVED = 2 * _MOST_OF_ALL
"""Files of which it is known that their position is ahead. Of more, the one whose trigger was set first, of those that
have lost theirs, is read on from a wrong place."""

_LOOK_SECONDS = 0.25
"""So often each is looked at."""

_FOLLOW = 20
"""In so many looks it is looked once whether it is still where it is to be."""

_AT_A_TIME = 32
"""Of them, between which others run."""

_KEPT = 1 << 63
"""Added to a file's handle: under this number its trigger is kept, beside its text."""


@dataclass
class _Trigger:
    what: str
    """By which the tree arms it, also in the next server."""

    owner: str
    waits: int = 0
    """The kernel's name of the file, to be told when it fires; 0 while nobody waits."""

    armed: Optional[Armed] = None
    """What fires; None where it never does."""

    fired: bool = False

    start: int = 0
    """Where the file's position is after it was written, as long as its reader has not gone back before that."""

    ahead: int = 0
    """By how many bytes the position is then ahead: writing moves that of FUSE's files on, not that of the kernel's."""

    reader: tuple[int, int] = (0, 0)
    """The pid and uid of who wrote or polled it last, for whom it is kept."""


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
        """Those by which a file's position is ahead of where it would be in the kernel's own file, until it is closed:
        also those that were taken away."""

        self._lock = threading.Lock()
        self._watching = False

    def __contains__(self, handle: int) -> bool:
        return handle in self._held or handle in self.moved

    def holds(self, handle: int) -> bool:
        """Tell whether an open file has a trigger."""
        return handle in self._held

    def take_up(self) -> None:
        """Hold what a predecessor had, and arm it anew in the background. Who waits is let look again."""
        taken = []
        for key in self._texts.handles_from(_KEPT):
            try:
                what, owner, waits, *position = json.loads(self._texts.get(key) or b"")
                start, ahead = position or (0, 0)  # which older servers do not keep
            except ValueError as error:
                log.debug("a trigger cannot be read: %s", error)
                self._texts.drop(key)
            else:
                handle, trigger = key - _KEPT, _Trigger(what, owner, waits, start=start, ahead=ahead)
                with self._lock:
                    self._hold(handle, trigger)
                taken.append((handle, trigger))
        if taken:
            try:
                threads.start(self._resume, taken, name="triggers taken up")
            except OSError:  # no thread can be had
                self._resume(taken)

    def _resume(self, taken: list[tuple[int, _Trigger]]) -> None:
        for handle, trigger in taken:
            try:
                self._arm(handle, trigger, trigger.what)
            except (OSError, ValueError) as error:  # such as that of a cgroup that is gone
                log.debug("a trigger is not taken up: %s", error)
                self._let_go(handle)
            self._tell(trigger)

    def set(
        self, handle: int, what: str, writer: tuple[int, int], offset: int, size: int, *, appends: bool = False
    ) -> None:
        """Arm a trigger for an open file; `writer` is a pid and a uid, who has written so many bytes at an offset.

        Of who appends, the offset is the size that is shown: he is taken to be at the beginning, as who has opened it.

        EBUSY where the file has one, ENOSPC where those of the writer's cgroup, or of the branch that it is in, are too
        many.
        """
        own_offset = 0 if appends else self.offset(handle, offset, writer)
        start = offset + size
        trigger = _Trigger(what, self._owners.of(*writer), start=start, ahead=start - own_offset)
        with self._lock:
            if handle in self._held:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            loses = self._who_makes_room(trigger.owner)
            self._hold(handle, trigger)
        if loses is not None:
            self._take_away(loses)
        try:
            self._arm(handle, trigger, what)
        except BaseException:
            self.drop(handle)
            raise
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
        """Let one go whose file is open: who polls that is told of an error, as where a cgroup is gone."""
        trigger = self._held.get(handle)
        self._let_go(handle)
        if trigger is not None and trigger.waits:
            self._tell(trigger)

    def _tell(self, trigger: _Trigger) -> None:
        """Have who waits ask again, which the kernel may be unable to."""
        with contextlib.suppress(OSError):
            self._wake(trigger.waits)

    def offset(self, handle: int, offset: int, reader: tuple[int, int]) -> int:
        """Return where in the kernel's own file a pid and uid read that read at an offset here.

        Whoever reads on after writing does so where he was before. Who has gone back since is where he says.
        """
        trigger = self.moved.get(handle)
        if trigger is None:
            return offset
        if offset >= trigger.start:
            return offset - trigger.ahead
        self.moved.pop(handle, None)
        trigger.ahead = 0  # before its start: other threads read that first, and are never before the beginning
        trigger.start = 0
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
        self._let_go(handle)
        self.moved.pop(handle, None)

    def _let_go(self, handle: int) -> None:
        """Hold one no longer, though the position of its file stays ahead."""
        with self._lock:
            trigger = self._held.pop(handle, None)
            if trigger is None:  # it was taken away
                return
            self._branches.remove(trigger.owner, handle)
            self._texts.drop(handle + _KEPT)

    def _keep(self, handle: int, trigger: _Trigger, reader: tuple[int, int]) -> None:
        with self._lock:
            trigger.reader = reader
            if self._held.get(handle) is trigger:
                kept = [trigger.what, trigger.owner, trigger.waits, trigger.start, trigger.ahead]
                self._texts.put(handle + _KEPT, json.dumps(kept).encode(), reader)

    def _hold(self, handle: int, trigger: _Trigger) -> None:
        self._held[handle] = trigger
        self._branches.add(trigger.owner, handle)
        if trigger.start:
            self.moved[handle] = trigger
            if len(self.moved) > _MOST_MOVED:
                self.moved.pop(next(each for each in list(self.moved) if each not in self._held), None)

    def _arm(self, handle: int, trigger: _Trigger, what: str) -> None:
        """Arm one that is held, in place of what it was armed as. OSError, ValueError."""
        armed = self._tree.arm(what, trigger.owner)
        with self._lock:
            if self._held.get(handle) is trigger:  # else it was taken away meanwhile
                trigger.armed, trigger.what = armed, what
                if armed is not None and not self._watching:
                    threads.start(self._watch, name="triggers")
                    self._watching = True

    def _watch(self) -> None:
        """Look at all, again and again until there are none: a few at a time, evenly."""
        for turn in itertools.count(1):
            began = time.monotonic()
            with self._lock:
                held = list(self._held.items())
                self._watching = bool(held)
            if not held:
                return
            for first in range(0, len(held), _AT_A_TIME):
                for handle, trigger in held[first : first + _AT_A_TIME]:
                    if turn % _FOLLOW == 0:
                        self._follow(handle, trigger)
                    self._look(handle, trigger)
                part = min((first + _AT_A_TIME) / len(held), 1)
                time.sleep(max(began + _LOOK_SECONDS * part - time.monotonic(), 0))

    def _look(self, handle: int, trigger: _Trigger) -> None:
        """Tell who waits for it where it fires."""
        armed = trigger.armed
        try:
            if armed is not None and armed.fires():
                trigger.fired = True
                if trigger.waits:
                    self._tell(trigger)
        except Exception as error:  # whatever it is of one container: the thread is there for all
            log.debug("a trigger cannot be looked at: %r", error)
            self._follow(handle, trigger)
            if trigger.armed is armed:
                self._take_away(handle)

    def _follow(self, handle: int, trigger: _Trigger) -> None:
        """Arm one anew whose container is in another cgroup by now."""
        try:
            what = self._tree.renewed(trigger.what)
            if what != trigger.what:
                self._arm(handle, trigger, what)
                self._keep(handle, trigger, trigger.reader)
        except Exception as error:  # whatever it is of one container: the thread is there for all
            log.debug("a trigger stays where it is until the next look: %r", error)
