"""The tasks of a cgroup and all below it: how many there are, and how many of them run or are blocked."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from lxcfs_py.cgroup.tree import Levels, processes

_LOOK_SECONDS = 1.0

# The part of the time that looking at one container's tasks may take: 1 %.
_REST = 100


class Tasks:
    """What both versions have in common; how they look at states is theirs.

    A look costs by the number of cgroups and tasks, which a container can have many of. So one serves all who ask
    within a second, or for longer where it took long.
    """

    __slots__ = ("_counts", "_forked", "_levels", "_next_look")

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._next_look = float("-inf")
        self._counts = (0, 0, 0)
        self._forked = 0

    def states(self) -> tuple[int, int, int]:
        """Return how many tasks run, how many are in uninterruptible sleep, and how many there are.

        There are as many as the pids controller has counted: a zombie is one until it is reaped, as everywhere in the
        kernel. Without that controller it is those that are listed, which zombies are not.
        """
        running, blocked, listed = self._counted()
        current = self._levels[0].get("pids.current")
        return running, blocked, int(current) if current else listed

    def active(self) -> tuple[int, int]:
        """Return how many tasks run, and how many are in uninterruptible sleep."""
        running, blocked, _ = self._counted()
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

    def pids(self) -> Iterator[int]:
        """Yield processes in the cgroup, and then in those below it, as the daemon's pid namespace numbers them."""
        return processes(self._levels[0])

    def _counted(self) -> tuple[int, int, int]:
        """Return what the last look found, which is made anew when its time is over."""
        now = time.monotonic()
        if now >= self._next_look:
            self._counts = self._look()
            done = time.monotonic()
            self._next_look = done + max(_LOOK_SECONDS, (done - now) * _REST)
        return self._counts

    def _look(self) -> tuple[int, int, int]:
        """Return how many tasks run, are blocked, and are listed."""
        raise NotImplementedError
