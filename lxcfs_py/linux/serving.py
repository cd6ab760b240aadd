"""Who serves a mount, and what helps where that one does not answer."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

from lxcfs_py.linux import peer, roots, runtime_directory

SESSION_MEMORY = "/memfd:lxcfs-py (deleted)"
"""What a descriptor is a link to that is a session's memory file, of any version of this program."""


def named(mountpoint: str) -> str:
    """Say which processes serve a mount: who is known to, else all that may; an init only keeps mounts."""
    pids = _known(mountpoint) or [pid for pid in roots.pids() if pid != 1 and _holds_fuse(pid)]
    return " or ".join(f"process {pid}" for pid in pids) or "a process that cannot be seen from here"


def cure(mountpoint: str, pid: int = 0) -> str:
    """Say what to do about a server that does not answer; 0 for one whose process is still to be found."""
    known = [pid] if pid else _known(mountpoint)
    if len(known) != 1:
        return f"resume or end its server: {named(mountpoint)}"
    (pid,) = known
    kept = ": it is started again, and the mount is kept"
    lost = ", and the mount: start it again, then lxcfs-py attach --all --dead"
    then = kept if _is_kept(pid) else lost
    return f"kill -CONT {pid} resumes it where it was stopped; kill -KILL {pid} ends it{then}"


def _known(mountpoint: str) -> list[int]:
    """Return who listens for commands there, else those with /dev/fuse open that name the mountpoint."""
    listener = _listener(mountpoint)
    if listener:
        return [listener]
    # The others' arguments are not asked for: who waits for the mount may keep whoever asks waiting, too.
    return [pid for pid in roots.pids() if _holds_fuse(pid) and roots.is_hosts(pid) and mountpoint in _arguments(pid)]


def _listener(mountpoint: str) -> int:
    """Return its pid, 0 where there is none, or none that can be seen from here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(runtime_directory.path_of(mountpoint, runtime_directory.COMMANDS))
        except OSError:
            return 0
        return 0 if peer.stranger(connection) else peer.of(connection)[0]


def _is_kept(pid: int) -> bool:
    """Tell whether another process has the memory of a server's session, too: a keeper, or systemd's store."""
    own = set(_session_memories(pid))
    return any(other != pid and not own.isdisjoint(_session_memories(other)) for other in roots.pids())


def _session_memories(pid: int) -> Iterator[int]:
    """Yield the inodes of those that a process has open."""
    for path, target in descriptors(pid):
        if target == SESSION_MEMORY:
            with contextlib.suppress(OSError):  # it has just closed it
                yield os.stat(path).st_ino


def _holds_fuse(pid: int) -> bool:
    return any(target == "/dev/fuse" for _, target in descriptors(pid))


def descriptors(pid: int, most: Optional[int] = None) -> Iterator[tuple[str, str]]:
    """Yield the path of each descriptor of a process, and what that is a link to; none of one that has ended.

    Of so many at most; None for all.
    """
    with contextlib.suppress(OSError), os.scandir(f"{roots.PROC}/{pid}/fd") as entries:
        for entry in itertools.islice(entries, most):
            with contextlib.suppress(OSError):  # it has just closed it
                yield entry.path, os.readlink(entry.path)


def _arguments(pid: int) -> list[str]:
    try:
        return os.fsdecode(Path(f"{roots.PROC}/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return []
