"""What the kernel's control groups say of one container, the same for cgroup v1, v2 and a mix of both.

Each controller may be in a hierarchy of either version, so a `Cgroup` is put together controller by controller.
Every method reads the kernel anew. A limit is the smallest along the cgroup and its ancestors; None means no limit.
A method raises OSError when the cgroup is gone, and ValueError when a file holds what the kernel never writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional, Protocol, TypeVar, Union

from lxcfs_py.cgroup import taskstats, v1, v2
from lxcfs_py.cgroup.layout import CONTROLLERS, Layout, Paths
from lxcfs_py.cgroup.tasks import Tasks
from lxcfs_py.cgroup.tree import Levels, Quota, Room, Used, processes
from lxcfs_py.linux import aside
from lxcfs_py.linux.kernel_files import Group, KernelDirectory, present

A = TypeVar("A")
B = TypeVar("B")


class Memory(Protocol):
    """The memory controller. All figures in bytes."""

    def is_counted(self) -> bool:
        """Tell whether the memory of the cgroup, or of one above it, is counted as of the last second."""

    def room(self, reclaimable: int = 0, high: bool = False) -> Room:
        """Return what the limits leave. `reclaimable` is how much of the cgroup's own usage can be reclaimed.

        With `high`, cgroup v2's memory.high counts as a limit too.
        """

    def stat(self) -> dict[str, int]:
        """Return what memory.stat says of the cgroup and those below it, under the names of /proc/meminfo."""

    def swap(self) -> tuple[Room, int]:
        """Return what the limits leave of swap, of which nothing can be reclaimed, and the swap in use."""

    def events(self) -> dict[str, int]:
        """Return what is counted of the events of /proc/vmstat, by their names there."""

    def go_on_from(self, before: Any) -> None:
        """Let the events be counted on from those of the cgroup where the container was before."""

    def numa_stat(self) -> Mapping[str, Mapping[int, int]]:
        """Return what is counted by NUMA node: bytes by the names of /proc/meminfo, and by node."""

    def slabinfo(self) -> Optional[bytes]:
        """Return the kernel's slabinfo of the cgroup, None where it has none."""


class Cpu(Protocol):
    """CPU bandwidth and CPU time."""

    def quota(self) -> Optional[Quota]:
        """Return the smallest quota; of several that are, the one that the fewest share."""

    def shares(self, weights: str) -> float:
        """Return the cgroup's shares of CPU time, as cgroup v1 has them: 1024 where nobody has set them.

        Many shares have the same weight of cgroup v2: these are the least that have this one. `weights` says by which
        formula its runtime makes them, "linear" or "quadratic", as cpu.weights of the configuration does.
        """

    def path(self) -> str:
        """Return the path in its hierarchy of the cgroup whose CPU time this is."""

    def is_counted(self) -> bool:
        """Tell whether the CPU time used is counted: v1 may have quotas alone for a cgroup."""

    def usage(self, level: int = 0) -> Used:
        """Return the CPU time used, by all below the cgroup that is so many levels above."""

    def usage_per_cpu(self, cpus: tuple[int, ...]) -> Optional[list[Used]]:
        """Return the same for each of these CPUs, None where the kernel does not count by CPU."""

    def counted_cpus(self) -> tuple[int, ...]:
        """Return the CPUs that are counted each by itself, none where the kernel does not count by CPU."""


class Cpuset(Protocol):
    """The CPUs a cgroup may run on."""

    def cpus(self) -> Optional[bytes]:
        """Return the effective list as the kernel writes it ("0-3,8"), None where there is none."""

    def mems(self) -> Optional[bytes]:
        """Return the effective list of NUMA nodes, None where there is none."""


class Io(Protocol):
    """Block I/O."""

    def stat(self) -> Mapping[bytes, Mapping[bytes, int]]:
        """Return for each device ("8:0") rbytes, wbytes, rios, wios, dbytes and dios, as far as counted."""

    def go_on_from(self, before: Any) -> None:
        """Let them be counted on from those of the cgroup where the container was before."""


class Hugetlb(Protocol):
    """Huge pages."""

    def room(self, size: str) -> tuple[Room, int, int]:
        """Return what the limits on pages of a size ("2MB") leave, what is in use, and what is reserved beside.

        In bytes. What is reserved is not free for others, but for this cgroup.
        """


class Pressure(Protocol):
    """Pressure stall information."""

    def read(self, resource: str) -> Optional[bytes]:
        """Return the kernel's text for "cpu", "io" or "memory", None where it has none."""

    def path(self) -> str:
        """Return the path in its hierarchy of the cgroup whose pressure this is."""

    def go_on_from(self, before: Any) -> None:
        """Let the totals be counted on from those of the cgroup where the container was before."""


@dataclass(frozen=True)
class Cgroup:
    """One container's cgroup. None where a controller is not mounted, or the container has no cgroup of its own."""

    __slots__ = ("cpu", "cpuset", "hugetlb", "io", "memory_controller", "pressure", "tasks")
    memory_controller: Optional[Memory]
    cpu: Optional[Cpu]
    cpuset: Optional[Cpuset]
    io: Optional[Io]
    hugetlb: Optional[Hugetlb]
    tasks: Optional[Tasks]
    pressure: Optional[Pressure]

    @property
    def memory(self) -> Optional[Memory]:
        """The memory controller, None too as long as it is enabled neither for the cgroup nor for one above it."""
        memory = self.memory_controller
        return memory if memory and memory.is_counted() else None

    @property
    def cpu_time(self) -> Optional[Cpu]:
        """What counts the CPU time, None where nobody does."""
        return self.cpu if self.cpu and self.cpu.is_counted() else None

    def go_on_from(self, before: Cgroup) -> None:
        """Let the counters go on from those of the cgroup where the container was before; CPU time has its own way."""
        if self.memory_controller and before.memory_controller:
            self.memory_controller.go_on_from(before.memory_controller)
        if self.io and before.io:
            self.io.go_on_from(before.io)
        if self.tasks and before.tasks:
            self.tasks.go_on_from(before.tasks)
        if self.pressure and before.pressure:
            self.pressure.go_on_from(before.pressure)


def open_cgroup(layout: Layout, paths: Paths, proc: Optional[str] = None, whose: str = "") -> Cgroup:
    """Return the cgroup at `paths`; its files are opened when they are first read.

    `whose` it is, who may keep waiting whoever opens them (`linux/aside.py`): the container, by whatever name. `proc`
    is where the states of its threads are read, the machine's own /proc for None.
    """
    own: dict[str, KernelDirectory] = {}
    group = Group(whose, (".", *v1.FILES, *v2.FILES)) if whose else None

    # All are known before the first file of one is opened, and so looked for together.
    known = {controller: layout.levels(controller, paths, own, group) for controller in (*CONTROLLERS, "")}

    def levels(controller: str, version: int) -> Levels:
        return known[controller] if layout.version(controller) == version else ()

    def pick(old: Callable[[Levels], A], name1: str, new: Callable[[Levels], B], name2: str) -> Union[A, B, None]:
        if levels(name1, 1):
            return old(levels(name1, 1))
        return new(levels(name2, 2)) if levels(name2, 2) else None

    # In the unified hierarchy, cpu.stat, cgroup.threads and the pressure files need no controller.
    unified = levels("", 2) if layout.has_own_unified(paths) else ()
    return Cgroup(
        memory_controller=pick(v1.Memory, "memory", v2.Memory, "memory"),
        cpu=_cpu(levels, unified),
        cpuset=pick(v1.Cpuset, "cpuset", lambda own: v2.Cpuset((*own, layout.top("cpuset"))), "cpuset"),
        io=pick(v1.Io, "blkio", v2.Io, "io"),
        hugetlb=pick(v1.Hugetlb, "hugetlb", v2.Hugetlb, "hugetlb"),
        tasks=_tasks(levels, unified, proc),
        pressure=v2.Pressure(unified) if unified else None,
    )


def look_aside() -> None:
    """Have what is looked at of cgroups be looked at by other processes from now on: see `aside.start`. OSError."""
    aside.start((present, processes, v1.killed_below, v1.states_in, v2.cpus_in, v2.states_in), taskstats.connect)


def try_to_look_aside() -> None:
    """Do the same, and nothing where no process can be had."""
    with contextlib.suppress(OSError):
        look_aside()


def _cpu(levels: Callable[[str, int], Levels], unified: Levels) -> Optional[Cpu]:
    """Return the CPU time of either version; of v1, cpu and cpuacct may have a cgroup each, or one of them alone."""
    quotas, accounts, new = levels("cpu", 1), levels("cpuacct", 1), levels("cpu", 2)
    if quotas or (accounts and not new):
        return v1.Cpu(quotas, accounts)
    return v2.Cpu(new or unified) if new or unified else None


def _tasks(levels: Callable[[str, int], Levels], unified: Levels, proc: Optional[str]) -> Optional[Tasks]:
    """Return the tasks of either version; where v1 has no pids controller, another one has them too."""
    if unified and not levels("pids", 1):
        return v2.Tasks(unified, proc)
    found = (levels(controller, 1) for controller in ("pids", "cpuacct", "memory", "cpu", "cpuset", "blkio"))
    return next((v1.Tasks(each) for each in found if each), None)
