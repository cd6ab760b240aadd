"""What sysinfo(2) and sched_getaffinity(2) say in a container: what the files say, in the kernel's structures.

The figures are those of the container's own /proc/meminfo, loadavg, uptime and /sys/devices/system/cpu/online, from
what these are made of: so the two ways can never disagree. None stands for "let the kernel answer", errors included: a
wrong address, a thread that does not exist, a mask that is too short.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Protocol

from lxcfs_py.linux import cpu_list, process_texts, roots, seccomp, syscalls
from lxcfs_py.linux.seccomp import Notification


class Sysinfo(NamedTuple):
    """What sysinfo(2) says, as the files have it: memory in bytes."""

    uptime: float
    loads: Sequence[float]
    total: int
    free: int
    shared: int
    buffers: int
    swap_total: int
    swap_free: int
    threads: int


class Figures(Protocol):
    """Where the figures come from. None: those of the machine, which the kernel tells."""

    def sysinfo(self, pid: int) -> Optional[Sysinfo]:
        """Return what the files say to a process."""

    def cpus(self, pid: int) -> Optional[Sequence[int]]:
        """Return the CPUs that a process's container sees, in ascending order."""


class Answer(NamedTuple):
    """What to write into the caller's memory, and what the call returns."""

    address: int
    memory: bytes
    value: int


# struct sysinfo: uptime, loads, totalram, freeram, sharedram, bufferram, totalswap, freeswap, procs, (pad), totalhigh,
# freehigh, mem_unit
_SYSINFO_64 = struct.Struct("=q3Q6QHH4x2QI4x")
_SYSINFO_32 = struct.Struct("=i3I6IHH2II8x")
_LOAD_SCALE = 1 << 16  # SI_LOAD_SHIFT
_KIB = -1 << 10  # the files have sizes in whole KiB
_WORD = 8  # bytes of the kernel's own words, of which a mask is made

_NS_GET_PID_FROM_PIDNS = 0x8004B706  # <linux/nsfs.h>, Linux 6.11


def sysinfo(call: Notification, figures: Figures) -> Optional[Answer]:
    """Answer sysinfo(struct sysinfo *info)."""
    said = figures.sysinfo(call.pid)
    if said is None:
        return None
    uptime, loads, *memory, threads = said
    times = (math.ceil(uptime), *(round(load * _LOAD_SCALE) for load in loads))
    sizes = [size & _KIB for size in memory]
    threads = min(threads, 0xFFFF)
    if call.arch not in _32_BIT:
        return Answer(call.arguments[0], _SYSINFO_64.pack(*times, *sizes, threads, 0, 0, 0, 1), 0)
    # In units that let it fit, as the kernel chooses them.
    unit = mmap.PAGESIZE if (said.total | said.swap_total) >> 32 else 1
    sizes = [min(size // unit, 0xFFFFFFFF) for size in sizes]
    return Answer(call.arguments[0] & 0xFFFFFFFF, _SYSINFO_32.pack(*times, *sizes, threads, 0, 0, 0, unit), 0)


def sched_getaffinity(call: Notification, figures: Figures) -> Optional[Answer]:
    """Answer sched_getaffinity(pid_t pid, size_t cpusetsize, cpu_set_t *mask).

    A thread's own affinity, cut to as many CPUs as the container sees: those that it sees first of all.
    """
    named, size, address = (argument & 0xFFFFFFFF for argument in call.arguments[:3])
    if call.arch not in _32_BIT:
        address = call.arguments[2]
    visible = figures.cpus(call.pid)
    target = _thread(call.pid, named) if visible else None
    mask = _affinity(target, size, call.arch in _32_BIT) if target else None
    if mask is None or not visible:
        return None
    allowed = int.from_bytes(mask, "little")
    seen = allowed & sum(1 << cpu for cpu in visible)
    cut = seen | _first(allowed & ~seen, len(visible) - bin(seen).count("1"))
    return Answer(address, cut.to_bytes(len(mask), "little"), len(mask)) if cut != allowed else None


_32_BIT = (seccomp.I386, seccomp.ARM)

ANSWERS: dict[tuple[int, int], Callable[[Notification, Figures], Optional[Answer]]] = {
    (seccomp.X86_64, 99): sysinfo,
    (seccomp.X86_64, 204): sched_getaffinity,
    (seccomp.AARCH64, 179): sysinfo,
    (seccomp.AARCH64, 123): sched_getaffinity,
    (seccomp.I386, 116): sysinfo,
    (seccomp.I386, 242): sched_getaffinity,
    (seccomp.ARM, 116): sysinfo,
    (seccomp.ARM, 242): sched_getaffinity,
}
"""By architecture and number of the system call."""


def _affinity(thread: int, size: int, is_32_bit: bool) -> Optional[bytes]:
    """Return what the kernel itself says of a thread for a mask of that size, None for an error."""
    whole = size
    if is_32_bit and size % _WORD == _WORD // 2:  # which would be an error for us, but is none for the caller
        if (size * 8) & 0xFFFFFFFF < _possible_cpus():
            return None
        whole += _WORD // 2
    try:
        return syscalls.sched_getaffinity(thread, whole)[:size]
    except OSError:
        return None


def _possible_cpus() -> int:
    """Return how many CPUs this kernel counts with."""
    return cpu_list.parse(Path(f"{roots.SYS}/devices/system/cpu/possible").read_bytes())[-1] + 1


def _first(mask: int, count: int) -> int:
    """Return a mask's lowest CPUs, as far as there are so many."""
    cut = 0
    for _ in range(count):
        lowest = mask & -mask
        cut, mask = cut | lowest, mask & ~lowest
    return cut


def _thread(caller: int, named: int) -> Optional[int]:
    """Return the thread that a caller names in its own pid namespace, None when it is not found; 0 is itself."""
    if named == 0:
        return caller
    if named >> 31:  # a negative number
        return None
    with contextlib.suppress(OSError):
        namespace = os.open(f"{roots.PROC}/{caller}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(namespace, _NS_GET_PID_FROM_PIDNS, named)
        except ProcessLookupError:
            return None
        except OSError:
            pass  # before Linux 6.11, the threads of its own process are found
        finally:
            os.close(namespace)
        if named == _number_within(f"{roots.PROC}/{caller}/status"):
            return caller
        for thread in os.listdir(f"{roots.PROC}/{caller}/task"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if named == _number_within(f"{roots.PROC}/{caller}/task/{thread}/status"):
                    return int(thread)
    return None


def _number_within(status: str) -> int:
    """Return a thread's number in its innermost pid namespace, from its /proc/PID/status."""
    return process_texts.pids_within(Path(status).read_bytes())[-1]
