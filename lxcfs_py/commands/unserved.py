"""What is said of files whose server has ended or does not answer, and what helps."""

from __future__ import annotations

from lxcfs_py.attach.servers import DEAD, SILENT
from lxcfs_py.config import Config
from lxcfs_py.linux import mount_table, mountpoint, serving

EFFECTS = {DEAD: "has ended: reading them fails", SILENT: "does not answer: who reads them waits"}
"""What becomes of a server's files, by how it is."""


def where(device: str) -> str:
    """Return where the host has the whole mount of that device, "" where it has none."""
    there = (mount.mountpoint for mount in mount_table.read() if (mount.device, mount.root) == (device, "/"))
    return next(there, "")


def cure(state: str, device: str, whose: str, config: Config) -> str:
    """Say what helps those whose files are of a server that is DEAD or SILENT; `whose` is as for attach: "--pid 7"."""
    serves = mountpoint.is_mounted(config.mountpoint) and mountpoint.answers(config.mountpoint)
    if state == DEAD:
        return f"lxcfs-py attach --dead {whose}" + ("" if serves else f", once a daemon serves {config.mountpoint}")
    place = where(device)
    resume = serving.cure(place) if place else "resume or end its server"
    return resume + (f"; or give them this daemon's: lxcfs-py attach --replace {whose}" if serves else "")
