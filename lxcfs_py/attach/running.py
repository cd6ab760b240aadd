"""Which containers run on this machine, which mount namespaces are in them, and which are to be left alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Union

from lxcfs_py.attach.errors import EndedError
from lxcfs_py.linux import mount_table, roots, serving
from lxcfs_py.linux.mount_table import Mount
from lxcfs_py.linux.mountpoint import FSTYPE
from lxcfs_py.linux.process_texts import pids_within

# A container's processes are asked for a session's memory up to these.
_MAX_PROCESSES = 64
_MAX_DESCRIPTORS = 2048

_MAX_MOUNTINFO = 1 << 20  # bytes


class Process(NamedTuple):
    """A process, and where it is."""

    pid: int
    parent: int
    pids: int
    """Its pid namespace."""

    mounts: int
    """Its mount namespace."""

    depth: int
    """In how many pid namespaces below this one it is."""

    is_init: bool


def processes() -> list[Process]:
    """Return all processes that can be seen from here, by their pids."""
    found = []
    for pid in roots.pids():
        with contextlib.suppress(OSError, IndexError):  # it has ended, or is not for us to see
            text = Path(f"/proc/{pid}/status").read_bytes()
            pids = pids_within(text)
            parent = int(text.partition(b"\nPPid:")[2].split(None, 1)[0])
            pid_namespace, mount_namespace = (os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in ("pid", "mnt"))
            found.append(Process(pid, parent, pid_namespace, mount_namespace, len(pids) - 1, pids[-1] == 1))
    return found


def containers(among: Iterable[Process]) -> Iterator[Process]:
    """Yield the first processes of the pid namespaces below this one that have a mount namespace of their own."""
    known = host_mount_namespaces()
    for process in among:
        if process.depth and process.is_init and process.mounts not in known:
            known.add(process.mounts)
            yield process


def within(container: Process, among: Sequence[Process], deep: bool) -> Iterator[Process]:
    """Yield a process of each other mount namespace of a container that has a /proc or /sys of the kernel's.

    They are those of its pid namespace, and with `deep` those of the pid namespaces below it too. A systemd in a
    container gives services mount namespaces, and with ProtectProc= or ProtectKernelTunables= a /proc of their own.
    In the machine's own pid namespace, where services are too, only its descendants are in a container.
    """
    known = {container.mounts, *host_mount_namespaces()}
    parents = {process.pid: process.parent for process in among}
    for process in among:
        shares = container.depth > 0 and process.pids == container.pids
        is_inside = shares or (deep and container.pid in _ancestors(process.pid, parents))
        if is_inside and process.mounts not in known:
            known.add(process.mounts)
            with contextlib.suppress(EndedError):
                if any(map(_is_kernels, mounts(process.pid))):
                    yield process


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while pid in parents and pid not in found:  # the list may hold processes of different moments
        found.add(pid)
        pid = parents[pid]
    return found


def cgroup(pid: int) -> str:
    """Return the cgroup of the container with this init, of several that by which it is known. OSError."""
    # Here, as the processes that enter containers are to be small.
    from lxcfs_py.container.processes import container_paths, place

    return place(container_paths(pid, Path(f"/proc/{pid}/cgroup").read_bytes()))


def _is_kernels(mount: Mount) -> bool:
    return (mount.mountpoint, mount.fstype, mount.root) in (("/proc", "proc", "/"), ("/sys", "sysfs", "/"))


def host_mount_namespaces() -> set[int]:
    """Return the mount namespaces in which there is no container: this process's, and that of process 1."""
    namespaces = set()
    for pid in ("self", "1"):
        with contextlib.suppress(OSError):
            namespaces.add(os.stat(f"/proc/{pid}/ns/mnt").st_ino)
    return namespaces


def mounts(pid: Union[int, str]) -> list[Mount]:
    """Return what a process, or "self", sees mounted, as far as a bounded look goes. EndedError."""
    try:
        with open(f"/proc/{pid}/mountinfo", "rb") as file:
            text = file.read(_MAX_MOUNTINFO)
    except OSError:
        raise EndedError(f"process {pid} has ended") from None
    return list(mount_table.parse(os.fsdecode(text[: text.rindex(b"\n") + 1] if text else b"")))


def serves(pid: int) -> str:
    """Return why a container may be a server's own, "" if it is none. EndedError.

    A server that has its own files over those that it reads waits for itself. A container in which a whole mount
    stands is taken for a server's, whichever version serves it; and so is one that holds a session.
    """
    whole = whole_mount(mounts(pid))
    if whole:
        return f"a whole mount of lxcfs stands in the container, at {ascii(whole)[1:-1]}: its server may be in there"
    if any(map(_holds_session, _descendants(pid))):
        return "the container holds the session of a mount of lxcfs"
    return ""


def whole_mount(seen: Iterable[Mount], root: str = "") -> str:
    """Return where all of a server's mount stands below a root, "" if it does nowhere."""
    found = (each.mountpoint for each in seen if (each.fstype, each.root) == (FSTYPE, "/"))
    return next((place for place in found if place.startswith(f"{root}/")), "")


def _descendants(pid: int) -> Iterator[int]:
    """Yield some of a process's descendants, itself first."""
    found = [pid]
    for each in found:
        yield each
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_bytes().split())
        del found[_MAX_PROCESSES:]


def _holds_session(pid: int) -> bool:
    return any(target == serving.SESSION_MEMORY for _, target in serving.descriptors(pid, _MAX_DESCRIPTORS))
