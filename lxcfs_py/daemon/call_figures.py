"""What system calls say in a container: what its files are made of, without their texts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Optional

from lxcfs_py.cgroup import Cgroup, Memory
from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.linux.host import Host
from lxcfs_py.syscalls.answers import Sysinfo
from lxcfs_py.views import loadavg, meminfo, uptime

_CPUS = "sys/devices/system/cpu"
_FIELDS = ("MemTotal", "MemFree", "Shmem", "Buffers", "SwapTotal", "SwapFree")
_SECONDS = 1.0
"""For how long what memory.stat says serves who asks by a system call: it takes as long to read as all else together,
and tells no more than what is shared and what can be reclaimed, which some limits of parents are measured by."""

_Sizes = tuple[int, int, int, int, int, int]


class CallFigures:
    """The figures that the files of a filesystem have."""

    def __init__(self, filesystem: Filesystem) -> None:
        """Take it with its host and its configuration, which may change."""
        self._filesystem = filesystem

    def sysinfo(self, pid: int) -> Optional[Sysinfo]:
        """Return what /proc/meminfo, loadavg and uptime say to a process; None where it is in no container."""
        return self._filesystem.computed(
            pid,
            "sysinfo(2)",
            lambda container, config: self._sysinfo(container, self._filesystem.host_of(pid), config),
            _of_the_machine,
        )

    def cpus(self, pid: int) -> Optional[Sequence[int]]:
        """Return the CPUs online in /sys for a process; None where these are the machine's."""
        return self._filesystem.computed(pid, "sched_getaffinity(2)", self._cpus, _of_the_machine)

    def _cpus(self, container: Container, config: Config) -> Optional[Sequence[int]]:
        if _CPUS not in config.files.enabled:
            return None
        return visible_cpus.visible(container.cgroup, self._filesystem.host, config.cpu).cpus

    def _sysinfo(self, container: Container, host: Host, config: Config) -> Sysinfo:
        """Return the container's figures; the machine's for a file that is not enabled."""
        enabled = config.files.enabled
        memory = container.cgroup.memory
        sizes = self._memory(container, memory, config) if memory and "proc/meminfo" in enabled else _of_the_host(host)
        if "proc/meminfo" in enabled and not config.memory.swap:
            sizes = (*sizes[:4], 0, 0)
        if "proc/loadavg" in enabled and config.loadavg.enabled:
            loads, _, threads = loadavg.figures(container)
        else:
            one, five, fifteen, counts, _ = host.text("proc/loadavg").split()
            loads, threads = (float(one), float(five), float(fifteen)), int(counts.partition(b"/")[2])
        age = uptime.uptime(container, host, config) if "proc/uptime" in enabled else host.now() + host.boottime_offset
        return Sysinfo(age / 1e9, loads, *sizes, threads)

    def _memory(self, container: Container, memory: Memory, config: Config) -> _Sizes:
        host, cgroup = self._filesystem.host, container.cgroup
        amounts = dict(_amounts(container, cgroup, memory))
        machine = host.memory()
        meminfo.fit(amounts, meminfo.room_in(cgroup, memory, amounts, machine, host, config))
        return amounts["MemTotal"], amounts["MemFree"], amounts["Shmem"], 0, *meminfo.swap_in(memory, machine)


def _amounts(container: Container, cgroup: Cgroup, memory: Memory) -> Mapping[str, int]:
    until, asked, amounts = container.amounts
    now = time.monotonic()
    if now >= until or asked is not cgroup:
        amounts = memory.stat()
        container.amounts = now + _SECONDS, cgroup, amounts
    return amounts


def _of_the_host(host: Host) -> _Sizes:
    fields = host.meminfo()
    total, free, shared, buffers, swap_total, swap_free = (fields.get(name, 0) for name in _FIELDS)
    return total, free, shared, buffers, swap_total, swap_free


def _of_the_machine() -> None:
    """Leave it to the kernel."""
