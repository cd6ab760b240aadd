"""What sysinfo(2) and sched_getaffinity(2) say in a container: what the files say, in the kernel's structures.

The figures are those of the container's own /proc/meminfo, loadavg, uptime and /sys/devices/system/cpu/online, taken
from the texts that it would read just then: so the two ways can never disagree. None stands for "let the kernel
answer", errors included: a wrong address, a thread that does not exist, a mask that is too short.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import struct
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from lxcfs_py.linux import cpu_list, roots, seccomp, syscalls
from lxcfs_py.linux.seccomp import Notification

Render = Callable[[int, str], bytes]
"""Gives the text of a file, by its path ("/proc/meminfo"), as a process sees it. OSError when there is none."""


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
_PAGE = 4096  # up to which a 32-bit sysinfo counts in larger units
_MOST_MASK_BYTES = 65536 // 8

_NS_GET_PID_FROM_PIDNS = 0x8004B706  # <linux/nsfs.h>, Linux 6.11


def sysinfo(call: Notification, render: Render) -> Optional[Answer]:
    """Answer sysinfo(struct sysinfo *info)."""
    values = _figures(call.pid, render)
    memory = _sysinfo_32(*values) if call.arch in _32_BIT else _SYSINFO_64.pack(*values, 0, 0, 0, 1)
    return Answer(call.arguments[0], memory, 0)


def sched_getaffinity(call: Notification, render: Render) -> Optional[Answer]:
    """Answer sched_getaffinity(pid_t pid, size_t cpusetsize, cpu_set_t *mask).

    A thread's own affinity, cut to as many CPUs as the container sees: those that it sees first of all.
    """
    thread, size, address = call.arguments[:3]
    target = _thread(call.pid, thread & 0xFFFFFFFF)
    mask = _affinity(target, size & 0xFFFFFFFF) if target else None
    if mask is None:
        return None
    allowed = int.from_bytes(mask, "little")
    seen = 0
    visible = cpu_list.parse(render(call.pid, "/sys/devices/system/cpu/online"))
    for cpu in visible:
        seen |= 1 << cpu
    if allowed & ~seen:
        allowed = allowed & seen or _first(allowed, len(visible))
    return Answer(address, allowed.to_bytes(len(mask), "little"), len(mask))


_32_BIT = (seccomp.I386, seccomp.ARM)

ANSWERS: dict[tuple[int, int], Callable[[Notification, Render], Optional[Answer]]] = {
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


def _figures(pid: int, render: Render) -> tuple[int, ...]:
    """Return uptime, three loads, six amounts of memory in bytes and the count of threads."""
    sizes = {}
    for line in render(pid, "/proc/meminfo").splitlines():
        name, _, rest = line.partition(b":")
        sizes[name] = int(rest.split()[0]) << 10
    one, five, fifteen, counts, _ = render(pid, "/proc/loadavg").split()
    seconds = float(render(pid, "/proc/uptime").split()[0])
    return (
        math.ceil(seconds),
        *(round(float(load) * _LOAD_SCALE) for load in (one, five, fifteen)),
        *(sizes.get(name, 0) for name in (b"MemTotal", b"MemFree", b"Shmem", b"Buffers", b"SwapTotal", b"SwapFree")),
        min(int(counts.partition(b"/")[2]), 0xFFFF),
    )


def _sysinfo_32(uptime: int, one: int, five: int, fifteen: int, *rest: int) -> bytes:
    """Return the structure of 32-bit programs, with memory in units that let it fit, as the kernel chooses them."""
    *memory, threads = rest
    shift = 0
    total, _, _, _, swap, _ = memory
    if (total | swap) >> 32:
        shift = _PAGE.bit_length() - 1
    sizes = [min(size >> shift, 0xFFFFFFFF) for size in memory]
    return _SYSINFO_32.pack(uptime, one, five, fifteen, *sizes, threads, 0, 0, 0, 1 << shift)


def _affinity(thread: int, size: int) -> Optional[bytes]:
    """Return what the kernel itself says of a thread for a mask of that size, None for an error."""
    try:
        return syscalls.sched_getaffinity(thread, min(size, _MOST_MASK_BYTES))
    except OSError:
        return None


def _first(mask: int, count: int) -> int:
    """Return a mask's lowest CPUs."""
    cut = 0
    for _ in range(count):
        lowest = mask & -mask
        cut, mask = cut | lowest, mask & ~lowest
    return cut


def _thread(caller: int, named: int) -> Optional[int]:
    """Return the thread that a caller names in its own pid namespace, None when it is not found; 0 is itself."""
    if named == 0:
        return caller
    with contextlib.suppress(OSError):
        if named == _number_within(f"{roots.PROC}/{caller}/status"):
            return caller
        namespace = os.open(f"{roots.PROC}/{caller}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(namespace, _NS_GET_PID_FROM_PIDNS, named)
        except OSError:
            pass  # before Linux 6.11, the threads of its own process are found
        finally:
            os.close(namespace)
        for thread in os.listdir(f"{roots.PROC}/{caller}/task"):
            if named == _number_within(f"{roots.PROC}/{caller}/task/{thread}/status"):
                return int(thread)
    return None


def _number_within(status: str) -> int:
    """Return a thread's number in its innermost pid namespace, from its /proc/PID/status."""
    _, _, rest = Path(status).read_bytes().partition(b"\nNSpid:")
    return int(rest.partition(b"\n")[0].split()[-1])
