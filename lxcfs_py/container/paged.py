"""What a container read from disks and wrote to them in all: sums that never go down while it lives."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from lxcfs_py.cgroup import Io
from lxcfs_py.linux.host import Host

_NONE: Mapping[bytes, int] = {}


class Paged:
    """One container's sums. They take what each disk has counted since the last look, and keep it where a disk goes."""

    __slots__ = ("_looking", "_read", "_seen", "_written")

    def __init__(self) -> None:
        self._looking = threading.Lock()
        self._seen: Mapping[bytes, Mapping[bytes, int]] = {}
        self._read = self._written = 0

    def look(self, io: Io, host: Host) -> tuple[int, int]:
        """Return how many bytes it read and wrote.

        What a stacked disk, such as LVM's, was asked for is counted again where it went, and so only there. Of each
        direction, what is not counted there counts all the same: cgroup v1 counts nothing of disks without limits, and
        what dm-crypt writes is the kernel's own.
        """
        with self._looking:
            disks = io.stat()
            self._read += self._grown(disks, b"rbytes", host)
            self._written += self._grown(disks, b"wbytes", host)
            self._seen = disks
            return self._read, self._written

    def _grown(self, disks: Mapping[bytes, Mapping[bytes, int]], key: bytes, host: Host) -> int:
        """Return by how much all together have grown since the last look."""
        grown = {
            device: more
            for device, counts in disks.items()
            if (more := counts.get(key, 0) - self._seen.get(device, _NONE).get(key, 0)) > 0
        }
        if len(grown) < 2:
            return sum(grown.values())
        return sum(
            max(more - sum(grown.get(below, 0) for below in host.disks_below(device)), 0)
            for device, more in grown.items()
        )
