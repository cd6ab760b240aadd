"""What cgroups of both versions have in common: directories below directories, lists of pids, lines of fields."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from lxcfs_py.kernelfile import KernelDirectory

Levels = tuple[KernelDirectory, ...]
"""A cgroup's directory and its ancestors', the cgroup's own first, without the root of the hierarchy."""

# A container may make as many cgroups as it likes; what is looked at for it is bounded.
_MAX_CGROUPS = 256


def subtree(directory: KernelDirectory) -> Iterator[int]:
    """Yield a descriptor of a cgroup's directory, and of each below it, at most 256 in all; it is closed after use."""
    yield directory.fd()
    # A directory's link count is 2 and one for each directory in it: most cgroups have none.
    if os.fstat(directory.fd()).st_nlink > 2:
        waiting, seen = _children(directory.path), 1
        while waiting and seen < _MAX_CGROUPS:
            path = waiting.pop()
            seen += 1
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                yield fd
            finally:
                os.close(fd)
            waiting += _children(path)


def _children(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def own_processes(levels: Levels) -> list[int]:
    """Return the processes of the cgroup itself. Zeros, which stand for processes of other namespaces, are left out."""
    return [pid for pid in map(int, levels[0].read("cgroup.procs").split()) if pid]


def stat_fields(text: bytes) -> Mapping[bytes, bytes]:
    """Parse lines of a key and a number."""
    words = text.split()
    return dict(zip(words[::2], words[1::2]))
