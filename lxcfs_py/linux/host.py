"""The machine's own /proc and /sys."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Optional

from lxcfs_py.files import DIRECTORIES, FILES, NAMES
from lxcfs_py.linux import cpu_list, roots, syscalls
from lxcfs_py.linux.cpuinfo import Cpuinfo, CpuinfoFile
from lxcfs_py.linux.kernel_files import HeldDirectory, KernelDirectory

TICKS = os.sysconf("SC_CLK_TCK")
"""Ticks per second, the unit of /proc/stat and of start times (USER_HZ)."""

NS_PER_TICK = 1_000_000_000 // TICKS

NODES = "sys/devices/system/node"
"""The directory of the NUMA nodes."""

MEMORY = "sys/devices/system/memory"
"""The directory of the blocks of memory."""

MEMORY_BLOCK = re.compile(r"memory(\d+)")
"""What a block of memory is called there, and in the directories of the nodes that have it."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SETTINGS_SECONDS = 1.0
_SECOND = 1_000_000_000
_CLOCK_WAS_SET_NS = 1_000_000  # a process that is preempted between two clocks sees less, or looks once more
_MAX_CLOCKS = 64


class _Booted(NamedTuple):
    """When the machine was booted, in nanoseconds since 1970: what two clocks said, and what is said by btime."""

    looked: int
    at: int


class Host:
    """The machine that containers run on.

    The files are opened at once and stay open: what is mounted over them later, this program's own files included,
    is never read.
    """

    def __init__(self, root: str = "", proc: Optional[str] = None, sys: Optional[str] = None) -> None:
        """Open the host's files.

        `root` is put before every path: the directory of a recorded system, "" for this one. `proc` and `sys` are where
        its /proc and /sys are to be read, in place of where this process reads them otherwise.
        """
        self.root = root
        self.sys = sys or (f"{root}/sys" if root else roots.SYS)
        self._proc = KernelDirectory(proc or (f"{root}/proc" if root else roots.PROC))
        self._cpu = KernelDirectory(f"{self.sys}/devices/system/cpu")
        self.devices = HeldDirectory(f"{self.sys}/devices")
        """Where the links of sysfs lead to."""

        self._directories = {name: HeldDirectory(f"{self.sys}/{name[4:]}") for name in DIRECTORIES}
        for name in filter(_is_in_proc, NAMES):
            with contextlib.suppress(OSError):  # no PSI, no slabinfo: such a kernel just has none
                self._proc.read(name[5:])
        self._cpu.get("online")
        self.has_nodes = False
        """True where there may be more than one NUMA node: the kernel finds that out as it boots."""

        with contextlib.suppress(OSError):
            self.has_nodes = len(cpu_list.parse(self.directory(NODES).text("possible"))) > 1
        self._nodes_known: tuple[float, tuple[int, ...]] = (0.0, ())
        self._offline_known: tuple[int, frozenset[int]] = (-1, frozenset())
        self.meminfo_layout = self._proc.get("meminfo") or b""
        self.vmstat_layout: tuple[str, ...] = ()
        """The names of /proc/vmstat's fields."""

        with contextlib.suppress(OSError):
            vmstat = self._proc.read_records("vmstat").decode()
            self.vmstat_layout = tuple(line.split()[0] for line in vmstat.splitlines())
        self.huge_page_size = _meminfo_field(self.meminfo_layout, b"Hugepagesize")
        """The default size of a huge page in bytes, 0 where the kernel has none."""

        self._huge_pages: dict[int, KernelDirectory] = {}
        with contextlib.suppress(OSError):
            for kind in sorted(os.listdir(f"{self.sys}/kernel/mm/hugepages")):
                directory = KernelDirectory(f"{self.sys}/kernel/mm/hugepages/{kind}")
                self._huge_pages[int(kind[len("hugepages-") : -len("kB")]) << 10] = directory
        self.transparent_size = _PAGE * (_PAGE // 8)  # a page of page tables, on 64-bit machines
        """The size in bytes of a huge page that the kernel makes by itself, which is not the default size of others."""

        with contextlib.suppress(OSError):
            thp = KernelDirectory(f"{self.sys}/kernel/mm/transparent_hugepage")
            self.transparent_size = int(thp.read("hpage_pmd_size"))
        # Until when it is known, and what the administrator has set.
        self._huge_pages_known: tuple[float, dict[int, int]] = (0.0, {})
        self._overcommit = (0.0, 0, 0)
        self._cpuinfo = CpuinfoFile(self._proc, self._cpu)
        self._booted = _Booted(0, 0)
        self.boottime_offset = 0
        """By how many nanoseconds the clock since boot of whoever looks is ahead of the machine's."""

        self._with_clock: dict[int, Host] = {}

    @functools.cached_property
    def as_32_bit(self) -> Host:
        """The same machine, with the /proc/cpuinfo that it shows to a 32-bit personality."""
        host = copy.copy(self)
        host._cpuinfo = self._cpuinfo.as_32_bit()
        return host

    def with_clock(self, offset: int) -> Host:
        """The same machine, looked at from a time namespace whose clock since boot is so many nanoseconds ahead."""
        if not offset:
            return self
        host = self._with_clock.get(offset)
        if host is None:
            host = copy.copy(self)
            host.boottime_offset = offset
            if len(self._with_clock) >= _MAX_CLOCKS:
                self._with_clock.clear()
            self._with_clock[offset] = host
        return host

    def text(self, name: str) -> bytes:
        """Return the machine's own text of a file, by its name as in "proc/meminfo". OSError where there is none.

        Of slabinfo, which the kernel shows to root alone, it is the header.
        """
        if name == "proc/slabinfo":
            return b"".join(self._proc.read(name[5:]).splitlines(keepends=True)[:2])
        if name == "proc/cpuinfo":
            return self._cpuinfo.text()
        if FILES[name].in_records:
            return self._proc.read_records(name[5:])
        return self._proc.read(name[5:])

    @functools.cached_property
    def swaps_header(self) -> bytes:
        """The first line of /proc/swaps, which never changes. OSError where there is no such file."""
        return self.text("proc/swaps").partition(b"\n")[0]

    def cpuinfo(self, count: int) -> Cpuinfo:
        """Return the parts of /proc/cpuinfo, with the blocks of the CPUs below `count` at least."""
        return self._cpuinfo.parts(count)

    def memory(self) -> syscalls.Sysinfo:
        """Return the sizes of memory and swap and what is free of them, which /proc/meminfo would cost more to tell."""
        if not self.root:
            return syscalls.sysinfo()
        text = self._proc.read("meminfo")
        names = (b"MemTotal", b"MemFree", b"SwapTotal", b"SwapFree")
        return syscalls.Sysinfo(*(_meminfo_field(text, name) for name in names))

    def meminfo(self) -> dict[str, int]:
        """Return the sizes of /proc/meminfo in bytes, and its counts of huge pages, which mean nothing here."""
        fields = (line.split() for line in self._proc.read("meminfo").splitlines())
        return {name[:-1].decode(): int(size) << 10 for name, size, *_ in fields}

    def available(self) -> int:
        """Return MemAvailable in bytes: what is free, and what the kernel can reclaim without swapping."""
        return _meminfo_field(self._proc.read("meminfo"), b"MemAvailable")

    def nodes(self) -> tuple[int, ...]:
        """Return the numbers of the NUMA nodes that had memory within the last second."""
        until, nodes = self._nodes_known
        now = time.monotonic()
        if now > until:
            nodes = cpu_list.parse(self.directory(NODES).text("has_memory"))
            self._nodes_known = now + _SETTINGS_SECONDS, nodes
        return nodes

    def offline_memory(self) -> frozenset[int]:
        """Return the numbers of the blocks of memory that are offline.

        Each says so in a file of its own, and a large machine has thousands: they are read when its memory changes.
        """
        total, blocks = self._offline_known
        now = self.memory().total
        if now != total:
            directory, offline = self.directory(MEMORY), set()
            for block in filter(None, map(MEMORY_BLOCK.fullmatch, directory.names(""))):
                with contextlib.suppress(FileNotFoundError):  # it has just been taken out
                    if directory.text(f"{block[0]}/state") == b"offline\n":
                        offline.add(int(block[1]))
            blocks = frozenset(offline)
            self._offline_known = now, blocks
        return blocks

    def memory_on(self, nodes: Iterable[int]) -> tuple[int, int, int]:
        """Return the memory of some NUMA nodes, what is free of it, and what can be reclaimed beside, in bytes."""
        texts = [self.directory(NODES).text(f"node{node}/meminfo") for node in nodes]
        total, free, *reclaimable = (
            sum(_meminfo_field(text, name, b" ") for text in texts)
            for name in (b"MemTotal", b"MemFree", b"Active(file)", b"Inactive(file)", b"SReclaimable")
        )
        return total, free, sum(reclaimable)

    def huge_pages(self) -> Mapping[int, int]:
        """Return how many huge pages there were within the last second, by their size in bytes: mostly there are none.

        Sizes of which there are none are left out.
        """
        until, pages = self._huge_pages_known
        now = time.monotonic()
        if now > until:
            counts = {size: int(directory.read("nr_hugepages")) for size, directory in self._huge_pages.items()}
            pages = {size: count for size, count in counts.items() if count}
            self._huge_pages_known = now + _SETTINGS_SECONDS, pages
        return pages

    def free_huge_pages(self, size: int, reserved: int) -> int:
        """Return how many of the huge pages of a size nobody uses or has reserved, but for who has so many reserved."""
        directory = self._huge_pages[size]
        free = int(directory.read("free_hugepages"))
        return min(free, max(free - int(directory.read("resv_hugepages")), 0) + reserved)

    def huge_pages_on(self, nodes: Iterable[int], size: int) -> tuple[int, int]:
        """Return how many huge pages of a size some NUMA nodes have, and how many of them nobody uses."""
        kinds = [f"node{node}/hugepages/hugepages-{size >> 10}kB" for node in nodes]
        pages, free = (
            sum(int(self.directory(NODES).text(f"{kind}/{name}_hugepages")) for kind in kinds)
            for name in ("nr", "free")
        )
        return pages, free

    def commit_limit(self, total: int, ordinary: int) -> int:
        """Return how much of some memory may be promised where the kernel promises no more than it has, without swap.

        That is by vm.overcommit_kbytes, or of what are ordinary pages by vm.overcommit_ratio, which are known for a
        second.
        """
        until, kib, percent = self._overcommit
        now = time.monotonic()
        if now > until:
            kib, percent = (
                int(self._proc.get(f"sys/vm/overcommit_{name}") or default)
                for name, default in (("kbytes", 0), ("ratio", 50))
            )
            self._overcommit = (now + _SETTINGS_SECONDS, kib, percent)
        return min(kib << 10, total) if kib else max(ordinary, 0) * percent // 100

    def online(self) -> tuple[int, ...]:
        """Return the numbers of the CPUs that are online."""
        return cpu_list.parse(self._cpu.get("online") or b"0") or (0,)

    def cpu_times(self, cpus: Iterable[int]) -> list[tuple[int, int, int, int]]:
        """Return what some CPUs did since boot, in ticks: user, nice, system and idle time.

        As in cgroups, interrupts are system time; what is idle while it waits for a disk is idle.
        """
        lines = (line.split() for line in self.text("proc/stat").splitlines())
        known = {name: [*map(int, times), 0, 0, 0] for name, *times in lines if name.startswith(b"cpu")}
        times = (known.get(b"cpu%d" % cpu, [0] * 7)[:7] for cpu in cpus)
        return [
            (user, nice, system + irq + softirq, idle + iowait)
            for user, nice, system, idle, iowait, irq, softirq in times
        ]

    def disks_below(self, device: bytes) -> set[bytes]:
        """Return to which others a disk ("253:0") passes on what it is asked for, as those of LVM and RAID do.

        Of a partition that is one of them, it is the disk too.
        """
        numbers = set()
        with contextlib.suppress(OSError):  # it is gone
            path = self._device("sys/dev/block", device.decode())
            for name in self.devices.names(f"{path}/slaves"):
                disk = self._device("sys/class/block", name)
                for directory in (disk, os.path.dirname(disk)):
                    with contextlib.suppress(OSError):  # a disk is below no other
                        numbers.add(self.devices.text(f"{directory}/dev").strip())
        return numbers

    def _device(self, directory: str, name: str) -> str:
        """Return the path below /sys/devices to which a link of a directory of disks leads."""
        return self.directory(directory).link(name).replace("../../devices/", "", 1)

    def directory(self, name: str) -> HeldDirectory:
        """Return one of the directories of files.py, by its name there."""
        return self._directories[name]

    @staticmethod
    def now() -> int:
        """Return the time since boot in nanoseconds, with the time spent in suspend, as start times are counted."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @staticmethod
    def asleep() -> int:
        """Return for how long it was suspended since boot, in nanoseconds."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)

    def booted(self) -> int:
        """Return when the machine was booted by the clock of now, in nanoseconds since 1970.

        That is the same at each look, in the second of the machine's own btime, until the clock is set: which two
        clocks tell that are read one after the other. For a time of their own, they are too inexact.
        """
        looked = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        known = self._booted
        if abs(looked - known.looked) > _CLOCK_WAS_SET_NS:
            btime = int(self.text("proc/stat").partition(b"\nbtime ")[2].split(None, 1)[0]) * _SECOND
            known = self._booted = _Booted(looked, min(max(looked, btime), btime + _SECOND - 1))
        return known.at


def _is_in_proc(name: str) -> bool:
    return name.startswith("proc/")


def _meminfo_field(text: bytes, name: bytes, before: bytes = b"\n") -> int:
    """Return a size of /proc/meminfo in bytes, 0 where there is none of that name. A node's has "Node 0 " before it."""
    rest = (b"\n" + text).partition(before + name + b":")[2]
    return int(rest.split(None, 1)[0]) << 10 if rest else 0
