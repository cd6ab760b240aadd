"""Who is asking: from the pid of a reader to its container.

A container is a pid namespace and the cgroup of its init. In the host's own pid namespace it is a mount namespace
other than the host's (a `--pid=host` container, a systemd service with files bound over its /proc) and the reader's
own cgroup. All of it comes from the host's /proc and the kernel's namespaces, nothing through the container's root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

from lxcfs_py.cgroup import Cgroup, open_cgroup
from lxcfs_py.cgroup.layout import Layout, Paths, parse_paths
from lxcfs_py.container.cpu_time import Account, Ledger
from lxcfs_py.container.load import Load, Sampler
from lxcfs_py.linux import syscalls
from lxcfs_py.linux.host import NS_PER_TICK
from lxcfs_py.linux.kernel_files import KernelDirectory

log = logging.getLogger(__name__)

# <linux/nsfs.h>: _IOR(0xb7, 0x6, int), Linux 6.11
_NS_GET_PID_FROM_PIDNS = 0x8004B706

# One container is some kilobytes and up to 20 descriptors.
MAX_CONTAINERS = 4096

# What the kernel says of a process that is gone, or that only its parent has still to be told of.
_ENDED = (ProcessLookupError, FileNotFoundError)

_REFRESH_SECONDS = 1.0
_MAX_PROCESSES_EXAMINED = 64


class Container:
    """A container, as long as its init lives."""

    __slots__ = (
        "_cgroup_hash",
        "_layout",
        "_proc",
        "account",
        "cgroup",
        "checked",
        "init",
        "load",
        "namespace",
        "pidfd",
        "reads",
        "start",
    )

    def __init__(self, pid: int, layout: Layout, ledger: Ledger, sampler: Sampler) -> None:
        """Open the container whose init has that pid. OSError when there is no such process any more."""
        self.pidfd = self.namespace = -1
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # before Linux 5.3, it stays -1
                raise
        self.namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self.init = pid
        self.reads = 0
        self._proc = KernelDirectory(f"/proc/{pid}")
        self._layout = layout
        self._cgroup_hash = 0
        self.cgroup: Cgroup
        self.refresh()
        self.start = _start_time(self._proc.read("stat"))
        self.account = Account(ledger, f"{os.fstat(self.namespace).st_ino}:{pid}:{self.start}")
        self.load = Load(sampler)

    def __del__(self) -> None:
        for fd in (self.pidfd, self.namespace):
            if fd >= 0:
                os.close(fd)

    def key(self) -> int:
        """Return a descriptor that no other container has: the pidfd, where the kernel knows pidfds."""
        return self.pidfd if self.pidfd >= 0 else self.namespace

    def namespace_name(self) -> str:
        """Return the name of its pid namespace, "pid:[4026531836]"."""
        return os.readlink(f"/proc/self/fd/{self.namespace}")

    def refresh(self) -> None:
        """Look again which cgroup init is in. OSError when it has ended."""
        text = self._proc.read("cgroup")
        if not self.is_in(text):
            self.cgroup = open_cgroup(self._layout, container_paths(self.init, text))
            self._cgroup_hash = hash(text)  # the text itself is most of what a container would take
        self.checked = time.monotonic()

    def is_in(self, text: bytes) -> bool:
        """Tell whether its init was in the cgroups of that /proc/PID/cgroup when it was looked at last."""
        return hash(text) == self._cgroup_hash

    def has_ended(self) -> bool:
        """Tell whether its init has ended."""
        if self.pidfd < 0:
            try:
                return not self._proc.read("stat")
            except OSError:
                return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def states(self) -> tuple[int, int, int]:
        """Return how many of the container's tasks run, are blocked, and exist."""
        return self.cgroup.tasks.states() if self.cgroup.tasks else (0, 0, 0)


class Containers:
    """The containers that have asked, found again by the pid of a reader."""

    def __init__(self, layout: Layout, ledger: Ledger, sampler: Sampler) -> None:
        self._layout = layout
        self._ledger = ledger
        self._sampler = sampler
        self._by_namespace: dict[str, Container] = {}
        self._by_cgroup: dict[bytes, Container] = {}
        self._host_pids = os.readlink("/proc/self/ns/pid")
        self._host_mounts = {os.readlink("/proc/self/ns/mnt"), _namespace("/proc/1/ns/mnt")}
        self._adding = threading.Lock()
        self._exits = select.epoll()
        self._watched: dict[int, Container] = {}  # by Container.key
        self.unplaced = 0

    def __len__(self) -> int:
        return len(self._watched)

    def all(self) -> list[Container]:
        """Return those known by now."""
        return list(self._watched.values())

    def fileno(self) -> int:
        """Return a descriptor that is readable when `reap` has something to do."""
        return self._exits.fileno()

    def of(self, pid: int) -> Optional[Container]:
        """Return the container that a process or thread is in, None for the host and who cannot be placed."""
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/pid")  # its name; stat takes twice as long
            if namespace == self._host_pids:
                return self._of_host_process(pid)
            container = self._by_namespace.get(namespace)
            if container is None:
                return self._add_namespace(pid, namespace)
            if time.monotonic() - container.checked > _REFRESH_SECONDS:
                with contextlib.suppress(OSError):  # it is ending, or cannot be looked at now: it is known as it was
                    container.refresh()
        except OSError as error:
            self._count_unplaced(pid, error)
            return None
        return container

    def forget(self, pid: int) -> None:
        """Look the container of a process up anew when it asks next: what was known of it no longer holds."""
        with self._adding:
            container = self._by_namespace.get(_namespace(f"/proc/{pid}/ns/pid"))
            if container is not None:
                self._drop(container)

    def reap(self) -> None:
        """Drop the containers whose init has ended."""
        for fd, _ in self._exits.poll(0):
            with self._adding:
                container = self._watched.get(fd)
                # The descriptor's number may be that of another container by now.
                if container is not None and container.has_ended():
                    self._end(container)

    def _of_host_process(self, pid: int) -> Optional[Container]:
        if os.readlink(f"/proc/{pid}/ns/mnt") in self._host_mounts:
            return None
        text = Path(f"/proc/{pid}/cgroup").read_bytes()
        container = self._by_cgroup.get(text)
        if container is not None and time.monotonic() - container.checked > _REFRESH_SECONDS:
            with contextlib.suppress(*_ENDED):  # others in its cgroup go on
                container.refresh()
                if container.is_in(text):
                    return container
            self._drop(container)
            container = None
        return container or self._add_cgroup(pid, text)

    def _add_namespace(self, pid: int, namespace: str) -> Container:
        with self._adding:
            container = self._by_namespace.get(namespace)
            if container is None:
                init = find_init(pid, namespace)
                container = Container(init, self._layout, self._ledger, self._sampler)
                if container.namespace_name() != namespace:
                    raise ProcessLookupError(f"process {init} ended while it was looked at")
                self._watch(container)
                self._by_namespace[namespace] = container
        return container

    def _add_cgroup(self, pid: int, text: bytes) -> Optional[Container]:
        paths = container_paths(pid, text)
        if all(path == "/" for path in paths.values()):
            return None
        with self._adding:
            container = self._by_cgroup.get(text)
            if container is None:
                tasks = open_cgroup(self._layout, paths).tasks
                init = _oldest(tasks.pids() if tasks else [pid], text, default=pid)
                container = Container(init, self._layout, self._ledger, self._sampler)
                self._watch(container)
                self._by_cgroup[text] = container
        return container

    def _watch(self, container: Container) -> None:
        if container.pidfd < 0:  # then nothing tells of the end of any
            for known in [known for known in self._watched.values() if known.has_ended()]:
                self._end(known)
        while len(self._watched) >= MAX_CONTAINERS:
            self._drop(min(list(self._watched.values()), key=lambda known: known.checked))
        if container.pidfd >= 0:
            self._exits.register(container.pidfd, select.EPOLLIN)
        self._watched[container.key()] = container

    def _end(self, container: Container) -> None:
        self._drop(container)
        container.account.close()

    def _drop(self, container: Container) -> None:
        """Forget a container. What reads it still keeps its descriptors until it is done."""
        if self._watched.pop(container.key(), None) is None:
            return
        if container.pidfd >= 0:
            self._exits.unregister(container.pidfd)
        self._by_namespace.pop(container.namespace_name(), None)
        # Its init may have moved to another cgroup than the one that it was found by.
        for text, known in list(self._by_cgroup.items()):
            if known is container:
                self._by_cgroup.pop(text, None)
        container.load.close()

    def _count_unplaced(self, pid: int, error: OSError) -> None:
        self.unplaced += 1
        if self.unplaced == 1:
            log.warning(
                "process %d cannot be placed and sees the host's files: %s (said once, counted from now on)", pid, error
            )


def container_paths(pid: int, text: bytes) -> Paths:
    """Return the cgroup paths of a container from those of its init, given as /proc/PID/cgroup.

    They are the root of init's cgroup namespace where it has one of its own, else init's cgroup, without the
    `init.scope` in which a systemd puts itself.
    """
    paths = parse_paths(text)
    if _namespace(f"/proc/{pid}/ns/cgroup") == _namespace("/proc/self/ns/cgroup"):
        return {controller: _without(path, "/init.scope") for controller, path in paths.items()}
    inside = parse_paths(_read_in_cgroup_namespace(pid))
    return {controller: _without(path, inside.get(controller, "/")) for controller, path in paths.items()}


def find_init(pid: int, namespace: str) -> int:
    """Return the pid of the init of a process's pid namespace, which has that name. OSError if it has ended."""
    fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fcntl.ioctl(fd, _NS_GET_PID_FROM_PIDNS, 1)
    except OSError:
        pass  # before Linux 6.11
    finally:
        os.close(fd)
    candidates = [*_ancestors(pid), *(int(name) for name in os.listdir("/proc") if name.isdigit())]
    for candidate in candidates:
        if _namespace(f"/proc/{candidate}/ns/pid") == namespace and _is_init(candidate):
            return candidate
    raise ProcessLookupError(f"the init of the pid namespace of process {pid} cannot be found")


def _read_in_cgroup_namespace(pid: int) -> bytes:
    """Read /proc/PID/cgroup as a process in its cgroup namespace does. OSError when it has ended."""

    def read() -> bytes:
        fd = os.open(f"/proc/{pid}/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.setns(fd, syscalls.CLONE_NEWCGROUP)
        finally:
            os.close(fd)
        return Path(f"/proc/{pid}/cgroup").read_bytes()

    # A namespace is entered by one thread alone, which ends with the pool.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read).result()


def _without(path: str, suffix: str) -> str:
    if suffix != "/" and path.endswith(suffix):
        return path[: -len(suffix)] or "/"
    return path


def _namespace(path: str) -> str:
    """Return the name of a namespace, "" when there is no such process or it cannot be looked at."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _ancestors(pid: int) -> Iterator[int]:
    """Yield a process or thread and its ancestors, as far as they can be seen."""
    while pid > 0:
        yield pid
        try:
            pid = int(_stat_fields(Path(f"/proc/{pid}/stat").read_bytes())[1])
        except OSError:
            return


def _is_init(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return False
    _, _, rest = status.partition(b"\nNSpid:")
    return rest.partition(b"\n")[0].split()[-1:] == [b"1"]


def _stat_fields(stat: bytes) -> list[bytes]:
    """Split /proc/PID/stat behind the process's name, which may hold anything: state, parent, …"""
    return stat.rpartition(b") ")[2].split()


def _start_time(stat: bytes) -> int:
    """Return when a process was started, in nanoseconds since boot, from /proc/PID/stat."""
    return int(_stat_fields(stat)[19]) * NS_PER_TICK


def _oldest(pids: list[int], cgroup: bytes, default: int) -> int:
    """Return the process that was started first, of those whose /proc/PID/cgroup is that text."""
    oldest, first = default, None
    for pid in pids[:_MAX_PROCESSES_EXAMINED]:
        try:
            if Path(f"/proc/{pid}/cgroup").read_bytes() != cgroup:
                continue
            start = _start_time(Path(f"/proc/{pid}/stat").read_bytes())
        except OSError:
            continue
        if first is None or start < first:
            oldest, first = pid, start
    return oldest
