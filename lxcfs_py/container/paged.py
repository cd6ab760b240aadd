"""What a container read from disks and wrote to them in all: sums that never go down while it lives."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from lxcfs_py.cgroup import Io
from lxcfs_py.linux.host import Host

_KEYS = (b"rbytes", b"wbytes")
_NONE: Mapping[bytes, int] = {}


class Paged:
    """One container's sums. They take what each disk has counted since the last look, and keep it where a disk goes."""

    __slots__ = ("_alone", "_below", "_looking", "_seen", "_shown")

    def __init__(self) -> None:
        self._looking = threading.Lock()
        self._seen: Mapping[bytes, Mapping[bytes, int]] = {}
        self._alone: dict[bytes, tuple[int, ...]] = {}
        """Of each disk, how much was read and written there that those below it have not counted, now or later."""

        self._below: dict[bytes, set[bytes]] = {}
        """Those below each when it grew last beside another, to which it passes on what is under way."""

        self._shown: tuple[int, ...] = (0, 0)

    def look(self, io: Io, host: Host) -> tuple[int, ...]:
        """Return how many bytes it read and wrote.

        What a stacked disk, such as LVM's, was asked for is counted again where it went, at once or after a while, and
        so only there. Of each direction, what is not counted there counts all the same: cgroup v1 counts nothing of
        disks without limits, and what dm-crypt writes is the kernel's own. What the container writes to the disk below
        that one by itself cannot be told from it, and counts where it is more.
        """
        with self._looking:
            disks = io.stat()
            grown = self._grown(disks)
            for device in disks if grown else ():
                if device in grown or device in self._alone:
                    others = len(grown) > (device in grown)
                    if others and (device in grown or device not in self._below):
                        self._below[device] = host.disks_below(device)
                    below = (grown[disk] for disk in self._below.get(device, ()) if disk in grown)
                    counts = zip(self._alone.get(device, (0, 0)), grown.get(device, (0, 0)), *below)
                    self._alone[device] = tuple(max(alone + more - sum(on), 0) for alone, more, *on in counts)
            self._seen = disks
            # Of disks that share one below them, what that counts is taken off each.
            self._shown = tuple(map(max, self._shown, map(sum, zip(*self._alone.values())))) or self._shown
            return self._shown

    def _grown(self, disks: Mapping[bytes, Mapping[bytes, int]]) -> dict[bytes, tuple[int, ...]]:
        """Return by how much those have grown since the last look that have."""
        grown = {}
        for device, counts in disks.items():
            seen = self._seen.get(device, _NONE)
            more = tuple(max(counts.get(key, 0) - seen.get(key, 0), 0) for key in _KEYS)
            if any(more):
                grown[device] = more
        return grown
