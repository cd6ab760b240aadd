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

        What a stacked disk, such as LVM's, was asked for is counted again where it went, and so only there; unless
        nothing is counted there, as cgroup v1 does for disks without limits.
        """
        with self._looking:
            disks = io.stat()
            counted = {device for device, counts in disks.items() if any(counts.values())}
            for device in counted:
                if len(counted) > 1 and counted & host.disks_below(device):
                    continue
                now, before = disks[device], self._seen.get(device, _NONE)
                self._read += max(now.get(b"rbytes", 0) - before.get(b"rbytes", 0), 0)
                self._written += max(now.get(b"wbytes", 0) - before.get(b"wbytes", 0), 0)
            self._seen = disks
            return self._read, self._written
