"""Whose a request is, where containers share what there is: told by the cgroup of its container's init.

A container is what is in a pid namespace of the machine's own processes, with all the namespaces and cgroups that it
makes for itself: it has one share, however many they are. Who is in no pid namespace is told by its own cgroup, which
cannot be left by making namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import Optional

from lxcfs_py.container import processes
from lxcfs_py.linux import roots

_KNOWN_SECONDS = 1.0
_MAX_KNOWN = 16384
_MAX_NAME = 4096
_DEEPEST = 32
"""Pid namespaces within one another, as the kernel allows them."""

_NS_GET_PARENT = 0xB702  # <linux/nsfs.h>


class Owners:
    """Whose a request is, by the pid of who made it. It is looked up anew each second."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], str] = {}
        self._namespaces: dict[str, str] = {}
        self._inits: dict[str, int] = {}  # of the outermost namespaces: to find one costs much before Linux 6.11
        self._until = 0.0
        self._own = processes.namespace_or_none("self", "pid")

    def of(self, pid: int, uid: int) -> str:
        """Return the cgroup of a process's container, its user where that is the root or the process has ended."""
        now = time.monotonic()
        if now > self._until or len(self._known) > _MAX_KNOWN:
            self._known, self._namespaces, self._until = {}, {}, now + _KNOWN_SECONDS
            if len(self._inits) > _MAX_KNOWN:
                self._inits = {}
        owner = self._known.get((pid, uid))
        if owner is None:
            owner = self._known[pid, uid] = self._look_up(pid) or f"user {uid}"
        return owner

    def _look_up(self, pid: int) -> str:
        namespace = processes.namespace_or_none(pid, "pid")
        if namespace == self._own:
            return _cgroup(pid)
        owner = self._namespaces.get(namespace)
        if owner is None:
            owner = self._namespaces[namespace] = _cgroup(self._outermost_init(pid) or pid)
        return owner

    def _outermost_init(self, pid: int) -> Optional[int]:
        """Return the init of the namespace around a process's that is right below this one's, None if it has none."""
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            name, outermost = "", os.open(f"{roots.PROC}/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            for _ in range(_DEEPEST):
                stack.callback(os.close, outermost)
                name = f"pid:[{os.fstat(outermost).st_ino}]"
                parent = fcntl.ioctl(outermost, _NS_GET_PARENT)
                if f"pid:[{os.fstat(parent).st_ino}]" == self._own:
                    stack.callback(os.close, parent)
                    return self._init_of(outermost, pid, name)
                outermost = parent
        return None

    def _init_of(self, namespace: int, pid: int, name: str) -> int:
        """Return the init of a namespace around a process's. OSError if there is none."""
        known = self._inits.get(name)
        if known is None or processes.namespace_or_none(known, "pid") != name:
            known = self._inits[name] = processes.find_init_of(namespace, pid, name)
        return known


def _cgroup(pid: int) -> str:
    try:
        with open(f"{roots.PROC}/{pid}/cgroup", "rb", buffering=0) as file:
            text = file.read(1 << 16)
    except OSError:
        return ""
    # The deepest one says most; v1 has some hierarchies in which a container has no cgroup of its own.
    path = max((line.split(b":", 2)[2] for line in text.splitlines()), key=len, default=b"")
    return path[:_MAX_NAME].decode(errors="replace").rstrip("/")
