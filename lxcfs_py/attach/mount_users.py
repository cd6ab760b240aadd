"""Who has files of a mount of this kind mounted: what is to be known before such a mount ends."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, Optional

from lxcfs_py.attach import servers
from lxcfs_py.attach.visits import Visits
from lxcfs_py.linux import mount_table, roots
from lxcfs_py.linux.mountpoint import FSTYPE

SECONDS = 5.0
"""For so long all mount namespaces together are looked at: who makes many mounts holds no command up."""

_ROUNDS = (64 << 10, 16 << 20)
"""Bytes of each one's mounts that are read: of all a little first, so that one with many mounts hides no other."""

_PART = 1 << 20


class User(NamedTuple):
    """A mount namespace in which files of one such mount are mounted."""

    pid: int
    """Its first process."""

    command: str
    device: str
    """Of which mount they are, "0:45"."""

    path: str
    """One of the files, as the process sees it."""


class Found(NamedTuple):
    """Who was found, and how many may have been missed."""

    users: list[User]
    passed_over: int
    """Mount namespaces that were not looked at to their end: they have too many mounts, or there was no more time."""

    @property
    def missing(self) -> str:
        """What to say of those."""
        return f"mount namespaces with too many mounts to look at all: {self.passed_over}" if self.passed_over else ""


def find(mountpoint: str, device: Optional[str] = None) -> Found:
    """Return the mount namespaces where such a filesystem, or that device, is mounted.

    Mounts where the host has the whole of one, at the mountpoint or elsewhere, are nobody's. Every service with a mount
    namespace of its own has a copy of them: it does not use them, and they go when the host's go.
    """
    until = time.monotonic() + SECONDS
    hosts = {mount.mountpoint for mount in mount_table.read() if (mount.fstype, mount.root) == (FSTYPE, "/")}
    hosts.add(mountpoint)
    found: dict[tuple[int, str], User] = {}
    waiting = list(_first_processes())
    for most in _ROUNDS:
        left = []
        for pid in waiting:
            try:
                command = _read(pid, "comm").decode(errors="replace").strip()
                lines, is_all = _lines(pid, most, until)
            except OSError:  # it has ended, or is not for us to see
                continue
            for mount in _one_of_each_device(lines, hosts, device, until):
                found[pid, mount.device] = User(pid, command, mount.device, mount.mountpoint)
            if not is_all or time.monotonic() >= until:
                left.append(pid)
        waiting = left
    return Found(sorted(found.values(), key=lambda user: user.pid), len(waiting))


def _first_processes() -> Iterator[int]:
    """Yield the first process of each mount namespace."""
    namespaces = set()
    for pid in roots.pids():
        try:
            namespace = os.stat(f"{roots.PROC}/{pid}/ns/mnt").st_ino
        except OSError:
            continue
        if namespace not in namespaces:
            namespaces.add(namespace)
            yield pid


def _read(pid: int, name: str) -> bytes:
    with open(f"{roots.PROC}/{pid}/{name}", "rb", buffering=0) as file:
        return file.read(_PART)


def _lines(pid: int, most: int, until: float) -> tuple[list[bytes], bool]:
    """Return what a process's mountinfo says of such filesystems, in about so many bytes, and whether that is all."""
    kept: list[bytes] = []
    rest = b""
    with open(f"{roots.PROC}/{pid}/mountinfo", "rb", buffering=0) as file:
        while most > 0 and time.monotonic() < until:
            part = file.read(min(most, _PART))
            if not part:
                return kept, True
            most -= len(part)
            *lines, rest = (rest + part).split(b"\n")
            kept += [line for line in lines if f" - {FSTYPE} ".encode() in line]
    return kept, False


def _one_of_each_device(
    lines: Iterable[bytes], left_out: Collection[str], device: Optional[str], until: float
) -> Iterator[mount_table.Mount]:
    """Yield a mount of each device, or of that one, from lines whose paths may be long: only what counts is read."""
    devices = set()
    for line in lines:
        its = os.fsdecode(line.split(b" ", 3)[2])
        if its in devices or device not in (None, its) or time.monotonic() >= until:
            continue
        for mount in mount_table.parse(os.fsdecode(line)):
            if mount.fstype == FSTYPE and mount.mountpoint not in left_out:
                devices.add(its)
                yield mount


def device(mountpoint: str) -> Optional[str]:
    """Return which device is mounted there, "0:45"; None when none of this kind is."""
    found = [mount.device for mount in mount_table.read() if (mount.mountpoint, mount.fstype) == (mountpoint, FSTYPE)]
    return found[-1] if found else None


def states(users: Iterable[User]) -> Mapping[str, str]:
    """Return for each device whether somebody serves it, as servers.states does."""
    return servers.states((servers.Use(user.device, user.pid, user.path) for user in users), Visits())
