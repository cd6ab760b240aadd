"""What cgroups of both versions have in common: directories below directories, lists of pids, lines of fields."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Callable, Generic, NamedTuple, Optional, TypeVar

from lxcfs_py.linux import aside
from lxcfs_py.linux.kernel_files import KernelDirectory

A = TypeVar("A")

Levels = tuple[KernelDirectory, ...]
"""A cgroup's directory and its ancestors', the cgroup's own first, without the root of the hierarchy."""

Used = tuple[int, int, int]
"""CPU time in user mode, in user mode with a lowered priority (nice), and in the kernel, in nanoseconds."""

NOTHING_USED: Used = (0, 0, 0)


class Quota(NamedTuple):
    """How much CPU time a cgroup may use."""

    cpus: float
    """Of so many CPUs, e.g. 1.5."""

    period: int = 100_000_000
    """For how long it is given out at a time, in nanoseconds; this is the kernel's usual."""

    level: int = 0
    """Whose quota it is: the cgroup's own, or that of one so many levels above, which others have a part of."""


@functools.lru_cache(maxsize=1024)
def quota_of(quota: int, period: int, level: int) -> Quota:
    """Return the quota that the kernel's files tell in microseconds."""
    period = max(period, 1)
    return Quota(quota / period, period * 1000, level)


_NO_LIMIT = 1 << 62


class Room(NamedTuple):
    """What limits, each around the next, leave of some memory, in bytes."""

    limit: int = _NO_LIMIT
    """The smallest of the limits."""

    free: int = _NO_LIMIT
    """What is free within the tightest of them."""

    available: int = _NO_LIMIT
    """That, and what can be reclaimed there: the tightest is where this is least."""

    def within(self, limit: int, free: int, reclaimable: Callable[[], int]) -> Room:
        """Return what is left when there is one more limit around; the function costs something, and may not be asked.

        A level that is full of file pages, as a host is after a while, is not a tight one.
        """
        if free < self.available:
            available = free + reclaimable()
            if available < self.available:
                return Room(min(self.limit, limit), min(self.free, free), available)
        return self if limit >= self.limit else Room(limit, self.free, self.available)


# A container may make as many cgroups as it likes; what is looked at for it is bounded.
_MAX_CGROUPS = 256
_MAX_ENTRIES = 2 * _MAX_CGROUPS  # a cgroup has up to 200 files


def subtree(path: str) -> Iterator[int]:
    """Yield a descriptor of a cgroup's directory, and of each below it, at most 256 in all, which is closed after use.

    OSError where there is none. Whose they are may keep waiting who calls this (`linux/aside.py`).
    """
    waiting, seen = [path], 0
    while waiting and seen < _MAX_CGROUPS:
        path = waiting.pop()
        seen += 1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:  # it is gone, or so deep that its path is too long
            if seen == 1:
                raise
            continue
        try:
            yield fd
            if len(waiting) < _MAX_CGROUPS:
                waiting += _children(fd, path)
        finally:
            os.close(fd)


def _children(fd: int, path: str) -> list[str]:
    """Return cgroups right below one, of which there may be more: a listing is read no further than it must be."""
    # A directory's link count is 2 and one for each directory in it: most cgroups have none.
    if os.fstat(fd).st_nlink == 2:
        return []
    try:
        with os.scandir(path) as entries:
            return [
                entry.path for entry in itertools.islice(entries, _MAX_ENTRIES) if entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def processes(path: str, most: int) -> list[int]:
    """Return so many processes of a cgroup, and then of those below it, as `subtree` goes through them.

    Zeros, which stand for processes of pid namespaces that are not below this one's, are left out.
    """
    pids = (pid for fd in subtree(path) for pid in read_pids(fd, "cgroup.procs"))
    return list(itertools.islice(filter(None, pids), most))


def read_in(directory: int, name: str) -> bytes:
    """Return the text of a file of a cgroup's directory; none when that is gone."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, "rb") as file:
            return file.read()
    except OSError:
        return b""


def read_pids(directory: int, name: str) -> list[int]:
    """Return the pids in a file of a cgroup's directory; none when that is gone."""
    return [int(word) for word in read_in(directory, name).split()]


_LOOK_SECONDS = 1.0

# The part of the time that looking at all cgroups of one container may take: 1 %.
_REST = 100


class Looks(Generic[A]):
    """Looks at a cgroup and all below it, each of which costs by their number: a container can have many.

    So one serves all who ask within a second, or for longer where it took long, and where the next one gets no answer.
    """

    __slots__ = ("__weakref__", "_found", "_next")

    def __init__(self) -> None:
        self._found: Optional[A] = None
        self._next = 0.0

    def found(self, look: Callable[[], A]) -> A:
        """Return what the last look found, which is made anew when its time is over."""
        found, now = self._found, time.monotonic()
        if found is None or now >= self._next:
            try:
                found = self._found = look()
            except aside.SilentError:
                if found is None:
                    raise
                self._next = time.monotonic() + _LOOK_SECONDS
                return found
            done = time.monotonic()
            self._next = done + max(_LOOK_SECONDS, (done - now) * _REST)
        return found


def stat_fields(text: bytes) -> Mapping[bytes, bytes]:
    """Parse lines of a key and a number."""
    words = text.split()
    return dict(zip(words[::2], words[1::2]))


_Pick = Callable[[list[bytes]], "tuple[bytes, ...]"]

_MISSING = (b"0", b"0")
"""The numbers of keys that are missing, and of a last one that stands alone, as the kernel writes none."""


class _Places(NamedTuple):
    """Where the wanted fields of a text are."""

    first: bytes
    """The beginning of the line of the first of them, with the end of the line before; "" where there is none."""

    end: bytes
    """The same of the line after the last of them."""

    keys: list[bytes]
    """From the first of them to the last."""

    pick: _Pick
    """Takes their numbers from the words in between, with `_MISSING` after them."""


class Fields:
    """Some fields of a text of lines of a key and a number, by the names that they are wanted for.

    The kernel writes the same keys in the same order every time: where they stand is found once. What stands before and
    after the wanted ones, which is half of memory.stat, is not split into words.
    """

    def __init__(self, wanted: Mapping[str, bytes]) -> None:
        self.wanted = wanted
        self._known = _Places(b"", b"", [], itemgetter(*[0] * len(wanted)))

    def pick(self, text: bytes) -> dict[str, int]:
        """Return the wanted numbers by name, 0 for a missing one."""
        first, end, keys, pick = self._known
        words = text[text.find(first) : text.rfind(end)].split()
        if words[::2] != keys:
            words, pick = self._find(text.split())
        words += _MISSING
        return dict(zip(self.wanted, map(int, pick(words))))

    def _find(self, words: list[bytes]) -> tuple[list[bytes], _Pick]:
        """Find out where the wanted fields of a text are; return its words from the first to the last of them."""
        keys = words[::2]
        wanted = [place for place, key in enumerate(keys) if key in self.wanted.values()]
        first, end = (wanted[0], wanted[-1] + 1) if wanted else (0, len(keys))
        before = b"\n%s " % keys[first] if first else b""
        after = b"\n%s " % keys[end] if end < len(keys) else b""
        keys = keys[first:end]
        pick = itemgetter(*(2 * keys.index(key) + 1 if key in keys else 2 * len(keys) for key in self.wanted.values()))
        self._known = _Places(before, after, keys, pick)
        return words[2 * first : 2 * end], pick
