"""Processes that are forked to attach, as a container may keep waiting whoever enters it."""

from __future__ import annotations

import os
import select
from typing import Callable, Generic, TypeVar

from lxcfs_py.linux import fork

For = TypeVar("For")


class Forks(Generic[For]):
    """Those that are at it, each with what it is for; a poll tells of the end of each, by a descriptor."""

    def __init__(self, poll: select.poll, most: int) -> None:
        self._poll, self._most = poll, most
        self._running: dict[int, tuple[int, For]] = {}  # by pidfd: the pid

    def __contains__(self, descriptor: int) -> bool:
        return descriptor in self._running

    @property
    def are_enough(self) -> bool:
        """Tell whether there are as many as there may be."""
        return len(self._running) >= self._most

    def start(self, work: Callable[[], int], what_for: For) -> None:
        """Let a new process work, and end with the code that this returns. OSError."""
        child = fork.start(work)
        pidfd = os.pidfd_open(child)
        self._running[pidfd] = child, what_for
        self._poll.register(pidfd, select.POLLIN)

    def reap(self, pidfd: int) -> tuple[For, int]:
        """Return what one that has ended was for, and its code; -1 where a signal has ended it."""
        child, what_for = self._running.pop(pidfd)
        _, status = os.waitpid(child, 0)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        return what_for, os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
