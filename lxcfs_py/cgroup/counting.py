"""Counters of a cgroup that go on from those of another one, where a container was before."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Mapping
from typing import Any, Callable

Counts = Mapping[Any, Mapping[Any, int]]
"""Counters by name, and these by what they are of."""


class Counting:
    """What has counters: they begin where those of the cgroup before were."""

    __slots__ = ("_offsets", "_shown")

    def __init__(self) -> None:
        self._offsets: Counts = {}
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
        raise NotImplementedError

    def _from_where_it_was(self, counted: Counts) -> Counts:
        """Return what is shown where the kernel has counted this."""
        if self._offsets:
            counted = _each(operator.add, counted, self._offsets)
        self._shown = counted
        return counted


def _each(combine: Callable[[int, int], int], some: Counts, more: Counts) -> Counts:
    """Return each two counters in one, where those that are not there are 0."""
    combined = {}
    for what in {*some, *more}:
        ones, others = some.get(what, {}), more.get(what, {})
        combined[what] = {name: combine(ones.get(name, 0), others.get(name, 0)) for name in {*ones, *others}}
    return combined
