"""The controllers of cgroup v1 (Documentation/admin-guide/cgroup-v1). The interface is described in the package."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from functools import partial
from typing import Optional

from lxcfs_py.cgroup import tasks, taskstats
from lxcfs_py.cgroup.counting import Counting, Counts
from lxcfs_py.cgroup.tree import (
    NOTHING_USED,
    Fields,
    Levels,
    Looks,
    Quota,
    Room,
    Used,
    quota_of,
    read_in,
    read_pids,
    stat_fields,
    subtree,
)
from lxcfs_py.linux import aside
from lxcfs_py.linux.kernel_files import KernelDirectory

# "No limit" is the largest number of whole pages in a signed long, which depends on the page size.
_UNLIMITED = 1 << 62
_SHARES = 1024  # of CPU time, where nobody has set them

FILES = (
    *("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "memory.use_hierarchy", "memory.swappiness"),
    *("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes", "memory.oom_control"),
    *("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuacct.usage_all", "cpuset.effective_cpus", "cpuset.effective_mems"),
    *("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
)
"""Those that are mostly wanted."""

_MOST_KNOWN = 4096
"""Cgroups below one of which it is remembered how many of their tasks were killed."""


class Memory(Counting):
    """The memory controller; its usage counts the cgroups below, as the `total_` fields of memory.stat do."""

    __slots__ = ("_killed_in", "_levels", "_looks")

    forgets = True
    fields = Fields(
        {
            "SwapCached": b"total_swapcached",
            "Cached": b"total_cache",
            "Active(anon)": b"total_active_anon",
            "Inactive(anon)": b"total_inactive_anon",
            "Active(file)": b"total_active_file",
            "Inactive(file)": b"total_inactive_file",
            "Unevictable": b"total_unevictable",
            "Dirty": b"total_dirty",
            "Writeback": b"total_writeback",
            "AnonPages": b"total_rss",
            "Mapped": b"total_mapped_file",
            "Shmem": b"total_shmem",
            "AnonHugePages": b"total_rss_huge",
        }
    )
    # total_pgpgin and total_pgpgout are other things than pgpgin and pgpgout: pages that the cgroup was charged with.
    _events = Fields({name: b"total_" + name.encode() for name in ("pgfault", "pgmajfault")})
    _file_pages = Fields({"active": b"total_active_file", "inactive": b"total_inactive_file"})

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self._levels = (levels[0], *itertools.takewhile(counts_those_below, levels[1:]))
        self._looks: Looks[int] = Looks()
        self._killed_in: dict[int, int] = {}  # by the inode number of a cgroup below

    def is_counted(self) -> bool:
        return True

    def room(self, reclaimable: int = 0, high: bool = False) -> Room:
        room = Room()
        for level in self._levels:
            limit = int(level.read("memory.limit_in_bytes"))
            if limit < _UNLIMITED:
                free = max(limit - int(level.read("memory.usage_in_bytes")), 0)
                room = room.within(limit, free, partial(self._reclaimable, level, reclaimable))
        return room

    def _reclaimable(self, level: KernelDirectory, own: int) -> int:
        return own if level is self._levels[0] else sum(self._file_pages.pick(level.read("memory.stat")).values())

    def stat(self) -> dict[str, int]:
        return self.fields.pick(self._levels[0].read("memory.stat"))

    def swap(self) -> tuple[Room, int]:
        # memsw counts memory and swap together; without swap accounting (swapaccount=0) its files are not there.
        counted = self._levels[0].get("memory.memsw.limit_in_bytes") is not None
        if int(self._levels[0].get("memory.swappiness") or 1) == 0:  # for such a cgroup's limits the kernel never swaps
            return Room(0, 0, 0), _swap_usage(self._levels[0]) if counted else 0
        room = Room()
        if not counted:
            return room, 0
        used = _swap_usage(self._levels[0])
        both = [int(level.read("memory.memsw.limit_in_bytes")) for level in self._levels]
        if min(both) < _UNLIMITED:
            # The kernel holds memory to each limit of it, and both to each limit of both, on whatever levels these are.
            memory = min(int(level.read("memory.limit_in_bytes")) for level in self._levels)
            for level, most in zip(self._levels, both):
                if most < _UNLIMITED:
                    limit = max(most - memory, 0) if memory < _UNLIMITED else most
                    swapped = used if level is self._levels[0] else _swap_usage(level)
                    room = room.within(limit, max(limit - swapped, 0), int)
        return room, used

    def events(self) -> dict[str, int]:
        return dict(self._read()["events"])

    def _count(self) -> Counts:
        killed = _killed(self._levels[0].get("memory.oom_control") or b"") + self._looks.found(self._killed_below)
        return {"events": {**self._events.pick(self._levels[0].read("memory.stat")), "oom_kill": killed}}

    def _killed_below(self) -> int:
        """Return how many tasks were killed for want of memory in cgroups below: this alone, v1 does not sum.

        Those that are gone count on, and so do those that are not seen this time: not all of very many are looked at.
        """
        known, own = self._killed_in, self._levels[0]
        with contextlib.suppress(OSError):
            for number, killed in aside.look(own.whose, killed_below, own.path):
                if number in known or len(known) < _MOST_KNOWN:
                    known[number] = max(killed, known.get(number, 0))
        return sum(known.values())

    def numa_stat(self) -> Mapping[str, Mapping[int, int]]:
        return {}  # memory.numa_stat counts by kinds of pages that no field of /proc/meminfo is

    def slabinfo(self) -> Optional[bytes]:
        # Linux 5.9 took the counting away, and left the file for a while.
        try:
            if self._levels[0].get("memory.kmem.slabinfo") is None:
                return None
            return self._levels[0].read_records("memory.kmem.slabinfo")
        except OSError:
            return None


def killed_below(path: str) -> list[tuple[int, int]]:
    """Return of cgroups below one their inode numbers, and how many tasks of each were killed, if any. OSError."""
    directories = itertools.islice(subtree(path), 1, None)
    counts = ((os.fstat(each).st_ino, _killed(read_in(each, "memory.oom_control"))) for each in directories)
    return [(number, killed) for number, killed in counts if killed]


def counts_those_below(level: KernelDirectory) -> bool:
    """Tell whether a cgroup's memory is also that of those below, for which its limits hold then.

    Where memory.use_hierarchy is 0 it is not, as it was up to Linux 5.10 where nobody had changed that. It stays as it
    is as long as there are any.
    """
    try:
        return level.get("memory.use_hierarchy") != b"0\n"
    except OSError:
        return True


def _killed(text: bytes) -> int:
    # "oom_kill_disable 0\nunder_oom 0\noom_kill 3"
    return int(stat_fields(text).get(b"oom_kill", 0))


def _swap_usage(level: KernelDirectory) -> int:
    # The two are read one after the other.
    return max(int(level.read("memory.memsw.usage_in_bytes")) - int(level.read("memory.usage_in_bytes")), 0)


class Cpu:
    """The cpu controller's quotas, and the cpuacct controller's counts where it is mounted."""

    __slots__ = ("_accounts", "_levels")

    def __init__(self, levels: Levels, accounts: Levels) -> None:
        self._levels = levels
        self._accounts = accounts

    def quota(self) -> Optional[Quota]:
        smallest = None
        for number, level in enumerate(self._levels):
            quota = int(level.get("cpu.cfs_quota_us") or -1)
            if quota > 0:
                found = quota_of(quota, int(level.read("cpu.cfs_period_us")), number)
                if smallest is None or found.cpus < smallest.cpus:
                    smallest = found
        return smallest

    def shares(self, weights: str) -> float:
        own = self._levels[0].get("cpu.shares") if self._levels else None
        return float(own or _SHARES)

    def path(self) -> str:
        return (self._accounts or self._levels)[0].below

    def is_counted(self) -> bool:
        return bool(self._accounts)

    def usage(self, level: int = 0) -> Used:
        numbers = self._usage_all(level)
        return (sum(map(int, numbers[1::3])), 0, sum(map(int, numbers[2::3])))

    def usage_per_cpu(self, cpus: tuple[int, ...]) -> Optional[list[Used]]:
        numbers = self._usage_all()
        if len(numbers) < 3:
            return None
        possible = len(numbers) // 3
        places = cpus
        if int(numbers[-3]) != possible - 1:  # most machines leave no number out
            known = {int(cpu): place for place, cpu in enumerate(numbers[::3])}
            places = tuple(known.get(cpu, possible) for cpu in cpus)
        return [
            (int(numbers[3 * place + 1]), 0, int(numbers[3 * place + 2])) if place < possible else NOTHING_USED
            for place in places
        ]

    def counted_cpus(self) -> tuple[int, ...]:
        return tuple(map(int, self._usage_all()[::3]))

    def _usage_all(self, level: int = 0) -> list[bytes]:
        """Return for each possible CPU its number and, in nanoseconds, its user and system time; nice is not told."""
        if not self._accounts:
            return []
        account = self._accounts[0]
        if level:  # the hierarchy of cpuacct may be another one, which may not have it
            place = self._levels[level].below
            account = next((each for each in self._accounts if each.below == place), account)
        # "cpu user system", then a line for each CPU
        numbers = account.read("cpuacct.usage_all").split()[3:]
        if len(numbers) % 3:
            raise ValueError("cpuacct.usage_all has no three numbers for each CPU")
        return numbers


class Cpuset:
    """The cpuset controller."""

    __slots__ = ("_levels",)

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def cpus(self) -> Optional[bytes]:
        own = self._levels[0]
        return own.get("cpuset.effective_cpus") or own.read("cpuset.cpus")

    def mems(self) -> Optional[bytes]:
        own = self._levels[0]
        return own.get("cpuset.effective_mems") or own.read("cpuset.mems")


class Io(Counting):
    """The blkio controller's counts, kept by its throttling layer.

    Since Linux 6.10 or so it counts the I/O of a disk only once some cgroup has had a limit for that disk.
    """

    __slots__ = ("_levels",)

    forgets = True

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self._levels = levels

    def stat(self) -> Mapping[bytes, Mapping[bytes, int]]:
        return self._read()

    def _count(self) -> Counts:
        devices: dict[bytes, dict[bytes, int]] = {}
        for name, unit in (("io_service_bytes", b"bytes"), ("io_serviced", b"ios")):
            # "8:0 Read 4096", …, and last "Total 4096"
            own = self._levels[0]
            text = own.get(f"blkio.throttle.{name}_recursive") or own.get(f"blkio.throttle.{name}") or b""
            for line in text.splitlines():
                words = line.split()
                if len(words) == 3 and words[1] in (b"Read", b"Write", b"Discard"):
                    devices.setdefault(words[0], {})[words[1][:1].lower() + unit] = int(words[2])
        return devices


class Hugetlb:
    """The hugetlb controller."""

    __slots__ = ("_levels",)

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def room(self, size: str) -> tuple[Room, int, int]:
        used = int(self._levels[0].read(f"hugetlb.{size}.usage_in_bytes"))
        # Reservations are counted since Linux 5.7, with what is in use of them.
        reserved = max(int(self._levels[0].get(f"hugetlb.{size}.rsvd.usage_in_bytes") or 0) - used, 0)
        room = Room()
        for level in self._levels:
            for kind, own in ((f"hugetlb.{size}", 0), (f"hugetlb.{size}.rsvd", reserved)):
                limit = int(level.get(f"{kind}.limit_in_bytes") or _UNLIMITED)
                if limit < _UNLIMITED:
                    free = max(limit - int(level.read(f"{kind}.usage_in_bytes")), 0)
                    room = room.within(limit, free + own, int)
        return room, used, reserved


class Tasks(tasks.Tasks):
    """The tasks, counted by the kernel itself, by state with one netlink call for each cgroup."""

    __slots__ = ()

    def _look(self) -> tuple[int, int, int]:
        own = self._levels[0]
        is_counted = own.get("pids.current") is not None
        running, blocked, listed = aside.look(own.whose, states_in, own.path, is_counted)
        return running, blocked, listed


def states_in(path: str, is_counted: bool) -> list[int]:
    """Return how many tasks in a cgroup and below run, are blocked, and are listed, 0 where others count. OSError."""
    running = blocked = listed = 0
    for directory in subtree(path):
        with contextlib.suppress(OSError):  # a kernel without CONFIG_TASKSTATS
            count = taskstats.count(directory)
            running += count.running
            blocked += count.blocked
        if not is_counted:
            listed += len(read_pids(directory, "tasks"))
    return [running, blocked, listed]
