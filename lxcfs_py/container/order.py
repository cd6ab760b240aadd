"""In which order containers are looked at where there is not the time for all: fairly, along the tree of cgroups."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from operator import itemgetter
from typing import TypeVar

T = TypeVar("T")

_DEPTH = 12
"""Levels of cgroups: what is deeper has one branch for each path."""

_OWN = "/"
"""The branch of what is a cgroup's own, not of those below it: no cgroup has this name."""

_Each = tuple[tuple[str, ...], float, T]
"""The names along the path of its cgroup, what it costs, and what it is."""


def in_turn(costs: Iterable[tuple[str, float, T]]) -> list[T]:
    """Return what comes with the path of its cgroup and its cost: first those with which the least has been spent.

    What is spent is counted by branches, which at each level begin with nothing. So branches side by side have as much
    each, however many there are below one of them, and one that needs less than that has all of it.
    """
    return [
        each for _, _, each in _ordered([((*path.split("/", _DEPTH), _OWN), cost, each) for path, cost, each in costs])
    ]


def _ordered(those: list[_Each[T]], depth: int = 0) -> list[_Each[T]]:
    """Return those of one branch, whose ways are the same down to that depth."""
    if not those or depth == len(those[0][0]):
        return sorted(those, key=itemgetter(1))
    branches: dict[str, list[_Each[T]]] = defaultdict(list)
    for each in those:
        branches[each[0][depth]].append(each)
    spent: list[tuple[float, _Each[T]]] = []
    for branch in branches.values():
        ordered = _ordered(branch, depth + 1)
        spent += zip(itertools.accumulate(cost for _, cost, _ in ordered), ordered)
    return [each for _, each in sorted(spent, key=itemgetter(0))]
