"""What owners hold, counted along the tree of cgroups: whose branch is the fullest where there is no more room.

However many cgroups somebody makes below his own, what they hold counts for the branch that they are in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Optional

_DEPTH = 12
"""Levels of cgroups: what is deeper has one branch for each path."""

_OWN = "/"
"""The branch of what is a cgroup's own, not of those below it: no cgroup has this name."""


class _Branch:
    __slots__ = ("branches", "count", "handles")

    def __init__(self) -> None:
        self.count = 0
        self.branches: dict[str, _Branch] = {}
        self.handles: dict[int, None] = {}
        """Those of its own, the oldest first."""


class Branches:
    """The handles that owners hold. Whoever uses it has a lock."""

    def __init__(self) -> None:
        self._root = _Branch()

    def add(self, owner: str, handle: int) -> None:
        """Count a handle for an owner, a path of a cgroup."""
        branch = self._root
        branch.count += 1
        for name in _way(owner):
            branch = branch.branches.setdefault(name, _Branch())
            branch.count += 1
        branch.handles[handle] = None

    def remove(self, owner: str, handle: int) -> None:
        """Count it no longer."""
        branch = self._root
        branch.count -= 1
        for name in _way(owner):
            parent, branch = branch, branch.branches[name]
            branch.count -= 1
            if not branch.count:
                del parent.branches[name]
        del branch.handles[handle]

    def of(self, owner: str) -> int:
        """Return how many an owner holds."""
        branch: Optional[_Branch] = self._root
        for name in _way(owner):
            branch = branch.branches.get(name) if branch else None
        return branch.count if branch else 0

    def fullest(self) -> Iterable[int]:
        """Return what the fullest one holds, the oldest first: at each level, of the branch that holds the most."""
        return _fullest(self._root)

    def fuller_than(self, owner: str) -> Optional[Iterable[int]]:
        """Return what the fullest one holds where the owner, with one handle more, would not be as full; else None.

        They are compared where their ways part: the branches of all who are in them.
        """
        branch: Optional[_Branch] = self._root
        for name in _way(owner):
            if branch is None or not branch.branches:
                break
            its = branch.branches.get(name)
            most = max(branch.branches.values(), key=_count)
            if most.count > (its.count if its else 0) + 1:
                return _fullest(most)
            branch = its
        return None


def _fullest(branch: _Branch) -> Iterable[int]:
    while branch.branches:
        branch = max(branch.branches.values(), key=_count)
    return branch.handles


def _count(branch: _Branch) -> int:
    return branch.count


@functools.lru_cache(maxsize=1024)
def _way(owner: str) -> tuple[str, ...]:
    return (*owner.split("/", _DEPTH), _OWN)
