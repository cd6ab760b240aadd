"""Whose a request is, where containers share what there is: told by the cgroup of its process.

It costs little to look up, and cannot be left by making namespaces.
"""

from __future__ import annotations

import time

from lxcfs_py.engine import protocol
from lxcfs_py.linux import roots

_KNOWN_SECONDS = 1.0
_MAX_KNOWN = 16384
_MAX_NAME = 4096


class Owners:
    """Whose a request is, by the pid of who made it. It is looked up anew each second."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], str] = {}
        self._until = 0.0

    def of(self, pid: int, uid: int) -> str:
        """Return the process's cgroup, its user where that is the root; "" when there is no such process any more."""
        now = time.monotonic()
        if now > self._until or len(self._known) > _MAX_KNOWN:
            self._known, self._until = {}, now + _KNOWN_SECONDS
        owner = self._known.get((pid, uid))
        if owner is None:
            owner = self._known[pid, uid] = _cgroup(pid) or f"user {uid}"
        return owner


def _cgroup(pid: int) -> str:
    try:
        with open(f"{roots.PROC}/{pid}/cgroup", "rb", buffering=0) as file:
            text = file.read(1 << 16)
    except OSError:
        return ""
    # The deepest one says most; v1 has some hierarchies in which a container has no cgroup of its own.
    path = max((line.split(b":", 2)[2] for line in text.splitlines()), key=len, default=b"")
    return path[:_MAX_NAME].decode(errors="replace").rstrip("/")


def owner_in(request: memoryview) -> tuple[int, int]:
    """Return the pid and uid in a request."""
    pid: int
    uid: int
    uid, pid = protocol.OWNER.unpack_from(request, protocol.OWNER_OFFSET)
    return pid, uid
