"""/sys/block, /sys/class/block and /sys/dev/block: the host's disks, with the container's own I/O.

In the kernel's /sys/block are links to the disks' directories below /sys/devices, each with a file `stat`. Here they
lead to the same paths below a directory `.devices` beside them, where `stat` says what /proc/diskstats does. All else
there is a link to the host's own file: it has the host's modes, and can be written where the container may write it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator

from lxcfs_py.linux.host import Host
from lxcfs_py.views import diskstats
from lxcfs_py.views.host_tree import HostTree, Sight

_DEVICES = ".devices"


def _is_link(host: Host, disk: str, inside: str) -> bool:
    """Tell whether what is in a disk's directory is shown as a link: all but `stat`, partitions and theirs."""
    if inside in ("", "stat"):
        return False
    partition, _, below = inside.partition("/")
    return below not in ("", "stat") or not _exists(host, f"{disk}/{partition}/partition")


def _exists(host: Host, path: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(host.devices.mode(path))
    return False


def _place(host: Host, path: str) -> tuple[str, str]:
    """Split a path below /sys/devices into a disk's directory and what is inside it; "" for one in no disk's."""
    names = path.split("/")
    for end in range(len(names), 0, -1):
        disk = "/".join(names[:end])
        with contextlib.suppress(OSError):
            if host.directory(TREE.name).link(names[end - 1]) == f"../devices/{disk}":
                return disk, "/".join(names[end:])
    return "", path


def _stat(sight: Sight, path: str, text: bytes) -> bytes:
    """Return what /proc/diskstats says of a disk or a partition, as wide as the kernel writes it here.

    One path of several to a disk (NVMe multipath) is a disk without a number, of which no cgroup counts any I/O.
    """
    device = b""
    with contextlib.suppress(FileNotFoundError):
        device = sight.host.devices.text(f"{_real(path)[: -len('stat')]}dev").strip()
    io = sight.container.cgroup.io
    counts = diskstats.counts(io.stat().get(device, {}) if io else {}, len(text.split()))
    return b" ".join(b"%8s" % count for count in counts.split()) + b"\n"


def _real(path: str) -> str:
    """Return where below /sys/devices the host has what is at a path below .devices."""
    return path[len(_DEVICES) + 1 :]


class _Disks(HostTree):
    """The tree sys/block."""

    def names(self, host: Host, path: str) -> list[str]:
        if not path:
            return [_DEVICES, *host.directory(self.name).names("")]
        disk, inside = _place(host, _real(path))
        if not disk:  # on the way to one
            return []
        if _is_link(host, disk, inside):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return host.devices.names(_real(path))

    def mode(self, host: Host, path: str) -> int:
        if not path.startswith(_DEVICES):
            return host.directory(self.name).mode(path)
        mode = host.devices.mode(_real(path))
        disk, inside = _place(host, _real(path))
        if not disk and not stat.S_ISDIR(mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return stat.S_IFLNK | 0o777 if disk and _is_link(host, disk, inside) else mode

    def link(self, host: Host, path: str) -> str:
        if path.startswith(_DEVICES):
            return os.path.relpath(f"/devices/{_real(path)}", f"/block/{os.path.dirname(path)}")
        return host.directory(self.name).link(path).replace("../devices", _DEVICES, 1)

    def text(self, host: Host, path: str) -> bytes:
        return host.devices.text(_real(path))

    def walk(self, host: Host) -> Iterator[str]:
        """Yield the disks, the way to each, and what is inside them."""
        for name in host.directory(self.name).names(""):
            directory = self.link(host, name)
            yield from (name, *(directory[:end] for end, letter in enumerate(directory) if letter == "/"))
            waiting = [directory]
            while waiting:
                path = waiting.pop()
                yield path
                with contextlib.suppress(OSError):
                    waiting += [f"{path}/{inside}" for inside in self.names(host, path)]


class _Links(HostTree):
    """The trees sys/class/block and sys/dev/block: their links lead to the disks and partitions of sys/block."""

    def link(self, host: Host, path: str) -> str:
        target = host.directory(self.name).link(path)
        disk, inside = _place(host, target.replace("../../devices/", "", 1))
        return os.path.join("../../block", os.path.basename(disk), inside).rstrip("/") if disk else target


TREE = _Disks("sys/block", computed={rf"{re.escape(_DEVICES)}/.+/stat": _stat})
BY_NAME = _Links("sys/class/block")
BY_NUMBER = _Links("sys/dev/block")
