"""Counters of a container that never step back, wherever it is moved, and whatever the kernel forgets."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Mapping
from typing import Any, Callable

Counts = Mapping[Any, Mapping[Any, int]]
"""Counters by name, and these by what they are of."""


class Counting:
    """What has counters: they begin where those of the cgroup before were."""

    __slots__ = ("_offsets", "_raw", "_reading", "_shown")

    forgets = False
    """True where the kernel sums the cgroups that there are: what one of those below had counted is gone with it."""

    def __init__(self) -> None:
        self._reading = threading.Lock()  # an older count after a newer one would seem to have stepped back
        self._raw: Counts = {}
        self._offsets: dict[Any, Mapping[Any, int]] = {}
        self._shown: Counts = {}

    def go_on_from(self, before: Counting) -> None:
        """Count on from where a container's counters were before it came here, or from what it was shown last of them.

        The latter is where that cgroup is gone, and another one may stand in its place.
        """
        shown = last = before._shown
        with contextlib.suppress(OSError, ValueError):
            last = before._read()
        last = _each(max, shown, last)
        with contextlib.suppress(OSError, ValueError):
            self._offsets = _each(operator.sub, last, self._read())

    def _read(self) -> Counts:
        """Return the counters as they are shown."""
        with self._reading:
            return self._from_where_it_was(self._count())

    def _count(self) -> Counts:
        """Return what the kernel has counted."""
        raise NotImplementedError

    def _from_where_it_was(self, counted: Counts) -> Counts:
        """Return what is shown where the kernel has counted this."""
        for what, before in self._raw.items():
            if what not in counted:  # a device has gone; another one may have its number later
                self._offsets.pop(what, None)
            elif self.forgets and counted[what] != before:
                lost = _each(_lost, {what: before}, {what: counted[what]})
                if any(lost[what].values()):
                    self._offsets = _each(operator.add, self._offsets, lost)
        self._raw = counted
        self._shown = _each(operator.add, counted, self._offsets) if self._offsets else counted
        return self._shown


def _lost(before: int, now: int) -> int:
    return max(before - now, 0)


def _each(combine: Callable[[int, int], int], some: Counts, more: Counts) -> dict[Any, Mapping[Any, int]]:
    """Return each two counters in one, where those that are not there are 0."""
    combined: dict[Any, Mapping[Any, int]] = {}
    for what in {*some, *more}:
        ones, others = some.get(what, {}), more.get(what, {})
        combined[what] = {name: combine(ones.get(name, 0), others.get(name, 0)) for name in {*ones, *others}}
    return combined
