"""The tasks of a cgroup and all below it: how many there are, and how many of them run or are blocked."""

from __future__ import annotations

import contextlib
import os
from typing import Optional
from weakref import WeakValueDictionary

from lxcfs_py.cgroup.tree import Levels, Looks, processes
from lxcfs_py.linux import aside

_States = tuple[int, int, int]

_shared: WeakValueDictionary[tuple[int, int], Looks[_States]] = WeakValueDictionary()
"""By the device and inode number of a cgroup: somebody can make any number of pid namespaces in one."""


class Tasks:
    """What both versions have in common; how they look at states is theirs."""

    __slots__ = ("_forked", "_levels", "_looks")

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._looks: Optional[Looks[_States]] = None
        self._forked = 0

    def states(self) -> _States:
        """Return how many tasks run, how many are in uninterruptible sleep, and how many there are.

        There are as many as the pids controller has counted: a zombie is one until it is reaped, as everywhere in the
        kernel. Without that controller it is those that are listed, which zombies are not.
        """
        running, blocked, listed = self._found()
        current = self._levels[0].get("pids.current")
        return running, blocked, int(current) if current else listed

    def active(self) -> tuple[int, int]:
        """Return how many tasks run, and how many are in uninterruptible sleep."""
        running, blocked, _ = self._found()
        return running, blocked

    def forked(self) -> int:
        """Return a number of tasks that have certainly been created; it never goes down."""
        self._forked = max(self._forked, int(self._levels[0].get("pids.peak") or 0))
        return self._forked

    def go_on_from(self, before: Tasks) -> None:
        """Count as created what was in the cgroup where a container was before it came to this one."""
        self._forked = before._forked
        with contextlib.suppress(OSError, ValueError):
            self._forked = before.forked()

    def pids(self, most: int) -> list[int]:
        """Return so many processes in the cgroup, and then in those below it, by their pids here. OSError."""
        own = self._levels[0]
        return aside.look(own.whose, processes, own.path, most)

    def _found(self) -> _States:
        if self._looks is None:
            place = os.fstat(self._levels[0].fd())
            self._looks = _shared.setdefault((place.st_dev, place.st_ino), Looks())
        return self._looks.found(self._look)

    def _look(self) -> _States:
        """Return how many tasks run, are blocked, and are listed. OSError."""
        raise NotImplementedError
