"""What the kernel says of one process: its namespaces, its cgroups, its start, its init. Nothing is kept.

All of it comes from the host's /proc and the kernel's namespaces, nothing through a container's root.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Optional, Union

from lxcfs_py.cgroup.layout import Paths, parse_paths
from lxcfs_py.linux import roots, syscalls, threads
from lxcfs_py.linux.host import NS_PER_TICK
from lxcfs_py.linux.process_texts import pids_within, start_ticks, stat_fields

# <linux/nsfs.h>: _IO(0xb7, 0x2); _IOR(0xb7, 0x6, int) and _IOR(0xb7, 0x8, int), Linux 6.11
_NS_GET_PARENT = 0xB702
_NS_GET_PID_FROM_PIDNS = 0x8004B706
_NS_GET_PID_IN_PIDNS = 0x8004B708

INIT_SCOPE = "/init.scope"
"""What a systemd puts itself into, below its container's cgroup."""

_MAX_PROCESSES_EXAMINED = 64
_MAX_ANCESTORS_ASKED = 16  # for their clock
_READ_BYTES = 1 << 16


def read(pid: int, name: str) -> bytes:
    """Return the text of /proc/PID/NAME. OSError when there is no such process any more."""
    fd = os.open(f"{roots.PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _READ_BYTES)
    finally:
        os.close(fd)


def namespace(pid: Union[int, str], kind: str) -> str:
    """Return the name of a process's namespace, "pid:[4026531836]". OSError when it cannot be looked at."""
    return os.readlink(f"{roots.PROC}/{pid}/ns/{kind}")


def namespace_or_none(pid: Union[int, str], kind: str) -> str:
    """Return the same, "" when it cannot be looked at."""
    try:
        return namespace(pid, kind)
    except OSError:
        return ""


def container_paths(pid: int, text: bytes) -> Paths:
    """Return the cgroup paths of a process's container from its own, given as /proc/PID/cgroup.

    They are the root of its cgroup namespace where that came with its pid namespace and it is in it, else its own
    cgroup, without the `init.scope` in which a systemd puts itself.
    """
    paths = parse_paths(text)
    inside = parse_paths(_read_in_cgroup_namespace(pid)) if _has_own_cgroup_namespace(pid) else {}
    return {controller: without(path, inside.get(controller, INIT_SCOPE)) for controller, path in paths.items()}


def place(paths: Paths) -> str:
    """Return by which of its cgroup paths a container is known: that of memory on v1, else the unified one."""
    return paths.get("memory") or paths.get("", "/")


def find_init(pid: int, namespace_name: str) -> int:
    """Return the pid of the init of a process's pid namespace, which has that name. OSError if it has ended."""
    with _open_namespace(pid, "pid") as pid_namespace:
        return find_init_of(pid_namespace, pid, namespace_name)


def find_init_of(pid_namespace: int, pid: int, namespace_name: str) -> int:
    """Return the same of a namespace that a process is in, or in one within it, by a descriptor and by its name."""
    try:
        return fcntl.ioctl(pid_namespace, _NS_GET_PID_FROM_PIDNS, 1)
    except OSError:
        pass  # before Linux 6.11
    for candidate in _ancestors_and_all(pid):
        if namespace_or_none(candidate, "pid") == namespace_name and _pids(candidate)[-1:] == [1]:
            return candidate
    raise ProcessLookupError(f"the init of the pid namespace of process {pid} cannot be found")


def pid_inside(pid: int, pid_namespace: int) -> int:
    """Return what pid a process has in its own pid namespace, of which there is a descriptor. OSError if it ended."""
    try:
        return fcntl.ioctl(pid_namespace, _NS_GET_PID_IN_PIDNS, pid)
    except OSError:  # before Linux 6.11
        return (_pids(pid) or [0])[-1]


def boottime_offset(pid: int, init: int = 0, others: Iterable[int] = ()) -> int:
    """Return by how many nanoseconds a process's clock of the time since boot is ahead of the host's.

    That is 0 but in a time namespace (Linux 5.6). OSError when the process has ended. Of one that has made another
    namespace for its children the kernel tells the offset of that: then one in its own namespace is asked, its
    container's init, an ancestor or one of the others. Where there is none, it is taken to have init's clock.
    """
    name = namespace_or_none(pid, "time")
    if name == _own_time_namespace():
        return 0
    candidates = itertools.chain(
        (pid, init),
        itertools.islice(ancestors(pid), 1, _MAX_ANCESTORS_ASKED),
        others,
    )
    told = next((each for each in candidates if namespace_or_none(each, "time_for_children") == name), None)
    if told is None:
        return boottime_offset(init) if init not in (0, pid) else 0
    for line in read(told, "timens_offsets").splitlines():
        clock, seconds, nanoseconds = line.split()
        if clock in (b"boottime", b"7"):  # a number before Linux 5.7
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return 0


def start_time(stat: bytes) -> int:
    """Return when a process was started, in nanoseconds since boot, from /proc/PID/stat."""
    return start_ticks(stat) * NS_PER_TICK


def ancestors(pid: int) -> Iterator[int]:
    """Yield a process or thread and its ancestors, as far as they can be seen."""
    while pid > 0:
        yield pid
        try:
            pid = int(stat_fields(read(pid, "stat"))[1])
        except OSError:
            return


def _ancestors_and_all(pid: int) -> Iterator[int]:
    """Yield the same, and then all that there are, which are not listed before."""
    yield from ancestors(pid)
    yield from roots.pids()


def oldest(pids: Iterable[int]) -> Optional[int]:
    """Return the process that was started first, of the first 64 that are still there; None where there is none."""
    starts: dict[int, int] = {}
    for pid, _ in zip(pids, range(_MAX_PROCESSES_EXAMINED)):
        with contextlib.suppress(OSError):
            starts[pid] = start_time(read(pid, "stat"))
    return min(starts, key=starts.__getitem__, default=None)


@functools.lru_cache(maxsize=1)
def _own_time_namespace() -> str:
    return namespace_or_none("self", "time")


def begin_to_visit() -> None:
    """Start the thread that enters cgroup namespaces. OSError EAGAIN where none can be had.

    It is started when it is needed, too: where there may be no more threads by then, no container could be found.
    """
    _visit(lambda: b"")


def require_visit(pid: int) -> None:
    """Do nothing where this process may enter another one's cgroup namespace. PermissionError where it may not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # or the kernel has no such namespaces
        _read_in_cgroup_namespace(pid)


@functools.lru_cache(maxsize=1)
def _visitor(_process: int) -> ThreadPoolExecutor:
    """Return a process's one thread that enters the namespaces of others, and its own again: a fork has none yet."""
    return ThreadPoolExecutor(1, "visitor")


def _visit(look: Callable[[], bytes]) -> bytes:
    try:
        return _visitor(os.getpid()).submit(look).result()
    except RuntimeError as error:
        raise threads.none_to_be_had(error) from None


def _has_own_cgroup_namespace(pid: int) -> bool:
    """Tell whether a process's cgroup namespace is neither this process's nor one of a pid namespace around its own."""
    name = namespace_or_none(pid, "cgroup")
    if name == namespace_or_none("self", "cgroup"):
        return False
    return all(namespace_or_none(init, "cgroup") != name for init in _inits_around(pid))


def _inits_around(pid: int) -> Iterator[int]:
    """Yield the init of each pid namespace around a process's own, from the nearest to this process's."""
    with contextlib.ExitStack() as opened:
        pid_namespace = opened.enter_context(_open_namespace(pid, "pid"))
        while True:
            try:
                pid_namespace = fcntl.ioctl(pid_namespace, _NS_GET_PARENT)
            except PermissionError:  # the one around cannot be seen from here
                return
            opened.callback(os.close, pid_namespace)
            yield find_init_of(pid_namespace, pid, os.readlink(f"{roots.PROC}/self/fd/{pid_namespace}"))


def _read_in_cgroup_namespace(pid: int) -> bytes:
    """Read /proc/PID/cgroup as a process in its cgroup namespace does.

    OSError when it has ended; EAGAIN when no thread can be started.
    """

    def inside() -> bytes:
        with _open_namespace("self", "cgroup") as own, _open_namespace(pid, "cgroup") as its:
            syscalls.setns(its, syscalls.CLONE_NEWCGROUP)
            try:
                return read(pid, "cgroup")
            finally:
                syscalls.setns(own, syscalls.CLONE_NEWCGROUP)

    return _visit(inside)


@contextlib.contextmanager
def _open_namespace(pid: Union[int, str], kind: str) -> Iterator[int]:
    fd = os.open(f"{roots.PROC}/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def without(path: str, suffix: str) -> str:
    """Return the path of a cgroup, of its parent where that is the end of it."""
    if suffix != "/" and path.endswith(suffix):
        return path[: -len(suffix)] or "/"
    return path


def _pids(pid: int) -> list[int]:
    """Return a process's pid in each pid namespace that it is in, from the outermost; none when it has ended."""
    try:
        return pids_within(read(pid, "status"))
    except OSError:
        return []
