"""The controllers of cgroup v2 (Documentation/admin-guide/cgroup-v2.rst). The interface is described in the package.

A controller that is not enabled for a cgroup has no files there; its ancestors' files, where they are, still hold.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from functools import partial
from typing import Optional

from lxcfs_py.cgroup import tasks
from lxcfs_py.cgroup.counting import Counting, Counts
from lxcfs_py.cgroup.tree import (
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
from lxcfs_py.linux import aside, cpu_list, roots
from lxcfs_py.linux.kernel_files import KernelDirectory

_MAX = b"max\n"
_WEIGHT = 100  # of CPU time, where nobody has set it
_SHARES = 1024  # of cgroup v1, where nobody has set them

FILES = (
    *("memory.max", "memory.current", "memory.stat", "memory.swap.max", "memory.swap.current", "memory.events"),
    *("cpu.max", "cpu.stat", "cpuset.cpus.effective", "cpuset.cpus.exclusive.effective", "cpuset.cpus.partition"),
    *("cpuset.mems.effective", "io.stat", "pids.current", "pids.peak"),
)
"""Those that are mostly wanted."""

_TOTAL = re.compile(rb"(?m)^(\w+)( .*\btotal=)(\d+)$")  # "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"

# A container may have very many threads; what is looked at for one sample is bounded.
_MAX_THREADS = 1024


class Memory(Counting):
    """The memory controller."""

    __slots__ = ("_counted", "_levels")

    fields = Fields(
        {
            "SwapCached": b"swapcached",
            "Cached": b"file",
            "Active(anon)": b"active_anon",
            "Inactive(anon)": b"inactive_anon",
            "Active(file)": b"active_file",
            "Inactive(file)": b"inactive_file",
            "Unevictable": b"unevictable",
            "Zswap": b"zswap",
            "Zswapped": b"zswapped",
            "Dirty": b"file_dirty",
            "Writeback": b"file_writeback",
            "AnonPages": b"anon",
            "Mapped": b"file_mapped",
            "Shmem": b"shmem",
            "SReclaimable": b"slab_reclaimable",
            "SUnreclaim": b"slab_unreclaimable",
            "KernelStack": b"kernel_stack",
            "PageTables": b"pagetables",
            "SecPageTables": b"sec_pagetables",
            "Percpu": b"percpu",
            "AnonHugePages": b"anon_thp",
            "ShmemHugePages": b"shmem_thp",
            "FileHugePages": b"file_thp",
        }
    )
    _reclaimed = Fields({name: name.encode() for name in ("active_file", "inactive_file", "slab_reclaimable")})

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self._counted = False
        self._levels = levels

    def is_counted(self) -> bool:
        # A controller may be enabled later. Once it is, nobody looks again until a read has missed it.
        if not self._counted:
            self._counted = any(level.get("memory.current") is not None for level in self._levels)
        return self._counted

    def room(self, reclaimable: int = 0, high: bool = False) -> Room:
        names = ("memory.max", "memory.high") if high else ("memory.max",)
        room = Room()
        for level in self._levels:
            limits = [limit for name in names if (limit := _limit(level, name)) is not None]
            if limits:
                limit = min(limits)
                free = max(limit - int(level.read("memory.current")), 0)
                room = room.within(limit, free, partial(self._reclaimable, level, reclaimable))
        return room

    def _reclaimable(self, level: KernelDirectory, own: int) -> int:
        return own if level is self._levels[0] else sum(self._reclaimed.pick(level.read("memory.stat")).values())

    def stat(self) -> dict[str, int]:
        text = self._levels[0].get("memory.stat")
        self._counted = text is not None
        return self.fields.pick(text or b"")

    def swap(self) -> tuple[Room, int]:
        room = Room()
        for level in self._levels:
            limit = _limit(level, "memory.swap.max")
            if limit is not None:
                room = room.within(limit, max(limit - int(level.read("memory.swap.current")), 0), int)
        return room, int(self._levels[0].get("memory.swap.current") or 0)

    def events(self) -> dict[str, int]:
        return dict(self._read()["events"])

    def _count(self) -> Counts:
        # Where memory.stat counts events, it calls them as /proc/vmstat does.
        counted = stat_fields(self._levels[0].get("memory.stat") or b"")
        killed = stat_fields(self._levels[0].get("memory.events") or b"").get(b"oom_kill", 0)
        events = {**{name.decode(): int(count) for name, count in counted.items()}, "oom_kill": int(killed)}
        return {"events": events}

    def numa_stat(self) -> Mapping[str, Mapping[int, int]]:
        names = {key: name for name, key in self.fields.wanted.items()}
        nodes: dict[str, dict[int, int]] = {}
        for line in (self._levels[0].get("memory.numa_stat") or b"").splitlines():
            key, _, counts = line.partition(b" ")  # "anon N0=4096 N1=0"
            if key in names:
                pairs = (count.split(b"=") for count in counts.split())
                nodes[names[key]] = {int(node[1:]): int(number) for node, number in pairs}
        return nodes

    def slabinfo(self) -> Optional[bytes]:
        return None


class Cpu:
    """The cpu controller's quotas, and the CPU time that cpu.stat counts whether or not the controller is enabled."""

    __slots__ = ("_levels",)

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def quota(self) -> Optional[Quota]:
        smallest = None
        for number, level in enumerate(self._levels):
            quota, _, period = (level.get("cpu.max") or b"max 100000").partition(b" ")
            if quota != b"max":
                found = quota_of(int(quota), int(period), number)
                if smallest is None or found.cpus < smallest.cpus:
                    smallest = found
        return smallest

    def shares(self, weights: str) -> float:
        weight = int(self._levels[0].get("cpu.weight") or _WEIGHT)
        return _shares_if_quadratic(weight) if weights == "quadratic" else _shares_if_linear(weight)

    def path(self) -> str:
        return self._levels[0].below

    def is_counted(self) -> bool:
        return True

    def usage(self, level: int = 0) -> Used:
        stat = stat_fields(self._levels[level].read("cpu.stat"))
        user = int(stat.get(b"user_usec", 0)) * 1000
        # Since Linux 6.12, and counted by ticks of the timer: it may seem to be more than the user time it is part of.
        nice = min(int(stat.get(b"nice_usec", 0)) * 1000, user)
        return (user - nice, nice, int(stat.get(b"system_usec", 0)) * 1000)

    def usage_per_cpu(self, cpus: tuple[int, ...]) -> Optional[list[Used]]:
        return None

    def counted_cpus(self) -> tuple[int, ...]:
        return ()


class Cpuset:
    """The cpuset controller. Its levels end with the root, which has what partitions have left, also for those below.

    So the root says which CPUs there are where the controller is enabled for no level.
    """

    __slots__ = ("_divided", "_levels")

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._divided: tuple[Optional[bytes], Looks[tuple[int, ...]]] = None, Looks()

    def cpus(self) -> Optional[bytes]:
        own = self._levels[0].get("cpuset.cpus.effective")
        looked_at, looks = self._divided
        if own != looked_at:  # which it also is when a partition below takes CPUs, or gives them back
            looks = Looks()
            self._divided = own, looks
        divided = looks.found(partial(self._look, own or b""))
        if divided:
            return cpu_list.render(divided)
        return own if own and own.strip() else _nearest(self._levels[1:], "cpuset.cpus.effective")

    def _look(self, effective: bytes) -> tuple[int, ...]:
        """Return the CPUs of its tasks and of those in cgroups below; none where no partition can have any of them.

        What a partition below has is in no effective list above it, but in each cpuset.cpus.exclusive.effective. That
        does not tell whose it is: what is in there belongs to others too, as long as no partition has it.
        """
        own = self._levels[0]
        exclusive = own.get("cpuset.cpus.exclusive.effective")
        if exclusive is None:  # before Linux 6.7, there are partitions below others alone
            is_undivided = not (own.get("cpuset.cpus.partition") or b"").replace(b"member", b"").strip()
        else:
            is_undivided = set(cpu_list.parse(exclusive)).issubset(cpu_list.parse(effective))
        if is_undivided:
            return ()
        return tuple(aside.look(own.whose, cpus_in, own.path))

    def mems(self) -> Optional[bytes]:
        return _nearest(self._levels, "cpuset.mems.effective")


class Io(Counting):
    """The io controller."""

    __slots__ = ("_levels",)

    def __init__(self, levels: Levels) -> None:
        super().__init__()
        self._levels = levels

    def stat(self) -> Mapping[bytes, Mapping[bytes, int]]:
        return self._read()

    def _count(self) -> Counts:
        devices: dict[bytes, dict[bytes, int]] = {}
        text = self._levels[0].get("io.stat") or b""
        for line in text.splitlines():
            # "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0", and more where io.cost or io.latency is in use.
            # Linux 5.15 puts devices without figures on the next one's line: "7:1 7:0 8:0 rbytes=…"
            counts: dict[bytes, int] = {}
            for word in line.split():
                key, is_count, value = word.partition(b"=")
                if not is_count:
                    counts = devices[word] = {}
                elif value.isdigit():
                    counts[key] = int(value)
        return devices


class Hugetlb:
    """The hugetlb controller."""

    __slots__ = ("_levels",)

    def __init__(self, levels: Levels) -> None:
        self._levels = levels

    def room(self, size: str) -> tuple[Room, int, int]:
        used = int(self._levels[0].get(f"hugetlb.{size}.current") or 0)  # where it is not enabled, nobody counts it
        # Reservations are counted since Linux 5.7, with what is in use of them.
        reserved = max(int(self._levels[0].get(f"hugetlb.{size}.rsvd.current") or 0) - used, 0)
        room = Room()
        for level in self._levels:
            for kind, own in ((f"hugetlb.{size}", 0), (f"hugetlb.{size}.rsvd", reserved)):
                limit = _limit(level, f"{kind}.max")
                if limit is not None:
                    free = max(limit - int(level.read(f"{kind}.current")), 0)
                    room = room.within(limit, free + own, int)
        return room, used, reserved


class Tasks(tasks.Tasks):
    """The tasks; their states are read thread by thread, since v2 has no count of them."""

    __slots__ = ("_proc",)

    def __init__(self, levels: Levels, proc: Optional[str]) -> None:
        super().__init__(levels)
        self._proc = proc

    def _look(self) -> tuple[int, int, int]:
        own = self._levels[0]
        running, blocked, listed = aside.look(own.whose, states_in, own.path, self._proc or roots.PROC)
        return running, blocked, listed


class Pressure:
    """Pressure stall information, which each cgroup of the unified hierarchy has."""

    __slots__ = ("_directory", "_stalls")

    def __init__(self, levels: Levels) -> None:
        self._directory = levels[0]
        self._stalls: dict[str, _Stalls] = {}

    def read(self, resource: str) -> Optional[bytes]:
        return self._of(resource).text()

    def path(self) -> str:
        return self._directory.below

    def go_on_from(self, before: Pressure) -> None:
        for resource, stalls in before._stalls.items():  # nobody has seen others
            self._of(resource).go_on_from(stalls)

    def _of(self, resource: str) -> _Stalls:
        stalls = self._stalls.get(resource)
        if stalls is None:
            stalls = self._stalls.setdefault(resource, _Stalls(self._directory, f"{resource}.pressure"))
        return stalls


class _Stalls(Counting):
    """The pressure of one resource."""

    __slots__ = ("_directory", "_name")

    def __init__(self, directory: KernelDirectory, name: str) -> None:
        super().__init__()
        self._directory = directory
        self._name = name

    def text(self) -> Optional[bytes]:
        """Return the kernel's text, with totals that go on; the averages are of this cgroup. None where it has none."""
        text = self._directory.get(self._name)
        if text is None:
            return None
        totals = self._from_where_it_was({"total": {kind: int(total) for kind, _, total in _TOTAL.findall(text)}})
        return _TOTAL.sub(lambda line: b"%s%s%d" % (line[1], line[2], totals["total"][line[1]]), text)

    def _read(self) -> Counts:
        self.text()
        return self._shown


def _shares_if_linear(weight: int) -> float:
    """Return the least shares, of 2 to 262,144, that have a weight, of 1 to 10,000, as Kubernetes made it at first.

    It is 1 + (shares - 2) * 9999 / 262142, rounded down. The weight that nobody has set is that of the shares that
    nobody has set: 2598 to 2623 shares have it too, for which hardly anybody asks.
    """
    if weight == _WEIGHT:
        return _SHARES
    return 2 + (weight - 1) * 262142 / 9999


def _shares_if_quadratic(weight: int) -> float:
    """Return the least shares that have a weight as runc 1.3.2 and crun 1.23 make it, for which 1024 shares are 100.

    It is 10 ** ((l * l + 125 * l) / 612 - 7 / 34), rounded up, where l is the logarithm of the shares to the base of 2.
    """
    if weight <= 1:
        return 2
    product = 612 * (math.log10(weight - 1) + 7 / 34)  # l * (l + 125) of where the weight before this one ends
    return float(2 ** ((math.sqrt(125 * 125 + 4 * product) - 125) / 2))


def cpus_in(path: str) -> list[int]:
    """Return the CPUs of all tasks in a cgroup and below it, in order. OSError."""
    texts = (read_in(directory, "cpuset.cpus.effective") for directory in subtree(path))
    return sorted({cpu for text in texts for cpu in cpu_list.parse(text)})


def states_in(path: str, proc: str) -> list[int]:
    """Return how many tasks in a cgroup and below it run, are blocked, and are listed. OSError."""
    threads = [thread for directory in subtree(path) for thread in read_pids(directory, "cgroup.threads")]
    # Of very many threads every so many are looked at, and stand for the others.
    step = -(-len(threads) // _MAX_THREADS) or 1
    states = [_state(proc, thread) for thread in threads[::step]]
    return [states.count(b"R") * step, states.count(b"D") * step, len(threads)]


def _limit(level: KernelDirectory, name: str) -> Optional[int]:
    text = level.get(name) or _MAX
    return None if text == _MAX else int(text)


def _nearest(levels: Levels, name: str) -> Optional[bytes]:
    return next((text for level in levels if (text := level.get(name)) and text.strip()), None)


def _state(proc: str, thread: int) -> bytes:
    try:
        fd = os.open(f"{proc}/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # "4711 (name) S …"; the name may hold spaces and parentheses
            return os.read(fd, 512).rpartition(b") ")[2][:1]
        finally:
            os.close(fd)
    except OSError:
        return b""
