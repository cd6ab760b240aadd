"""Which containers are forgotten where there is room for no more: those of whoever has the most of them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar

from lxcfs_py.cgroup.layout import Paths

_MOST_AT_ONCE = 256

_DEPTH = 12
"""Levels of cgroups: what is deeper has one branch for each path."""


class Candidate(Protocol):
    """What is asked of a container."""

    paths: Paths
    checked: float


C = TypeVar("C", bound=Candidate)


def choose(containers: Sequence[C]) -> list[C]:
    """Return which are to be forgotten: of the cgroup that holds the most, those that have not asked for longest.

    The tree of cgroups is followed from its root into the fullest branch, as long as that has a sixteenth of all the
    containers: so it ends at an engine's or a slice's cgroup where everybody has a few, and at the one that has made
    thousands. Half of those there go, at most 256: not one or two however he lays them out, since looking costs by the
    number of all.
    """
    crowd = [(_names(container.paths), container) for container in containers]
    for depth in itertools.count():
        branches: dict[str, list[tuple[list[str], C]]] = defaultdict(list)
        for names, container in crowd:
            if depth < len(names):
                branches[names[depth]].append((names, container))
        fullest = max(branches.values(), key=len, default=[])
        if len(fullest) < max(2, len(containers) // 16):
            break
        crowd = fullest
    longest = sorted((container for _, container in crowd), key=lambda container: container.checked)
    return longest[: min(max(len(crowd) // 2, 1), _MOST_AT_ONCE)]


def _names(paths: Paths) -> list[str]:
    """Return the names along a container's path, in the hierarchy where it is deepest: there it is told from others."""
    deepest = max(paths.values(), key=lambda path: path.count("/"), default="/")
    return deepest.strip("/").split("/", _DEPTH)
