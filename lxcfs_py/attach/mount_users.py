"""Who has files of a mount of this kind mounted: what is to be known before such a mount ends."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional

from lxcfs_py.attach import servers
from lxcfs_py.attach.visits import Visits
from lxcfs_py.linux import mount_table, roots
from lxcfs_py.linux.mountpoint import FSTYPE


class User(NamedTuple):
    """A mount namespace in which files of one such mount are mounted."""

    pid: int
    """Its first process."""

    command: str
    device: str
    """Of which mount they are, "0:45"."""

    path: str
    """One of the files, as the process sees it."""


def find(mountpoint: str) -> Iterator[User]:
    """Yield the mount namespaces where such a filesystem is mounted elsewhere than at the mountpoint.

    Every service with a mount namespace of its own has a copy of the host's mounts, that at the mountpoint too: it does
    not use them, and they go when the host's go.
    """
    namespaces = set()
    for pid in roots.pids():
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in namespaces:
                continue
            text = Path(f"/proc/{pid}/mountinfo").read_text(errors="surrogateescape")
            command = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
        except OSError:  # it has ended, or is not for us to see
            continue
        namespaces.add(namespace)
        devices = set()
        for mount in mount_table.parse(text):
            if mount.fstype == FSTYPE and mount.mountpoint != mountpoint and mount.device not in devices:
                devices.add(mount.device)
                yield User(pid, command, mount.device, mount.mountpoint)


def device(mountpoint: str) -> Optional[str]:
    """Return which device is mounted there, "0:45"; None when none of this kind is."""
    found = [mount.device for mount in mount_table.read() if (mount.mountpoint, mount.fstype) == (mountpoint, FSTYPE)]
    return found[-1] if found else None


def served(users: Iterable[User]) -> dict[str, str]:
    """Return for each device whether somebody serves it: "served", "unserved", or "silent" if he does not answer."""
    found = servers.states((servers.Use(user.device, user.pid, user.path) for user in users), Visits())
    words = {servers.LIVE: "served", servers.DEAD: "unserved", servers.SILENT: "silent"}
    return {device: words[state] for device, state in found.items()}
