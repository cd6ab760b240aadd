"""Where each figure of a file comes from: the cgroup whose limit holds, the parents, the host."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from lxcfs_py.cgroup import layout, try_to_look_aside, v1, v2
from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container, Containers
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler
from lxcfs_py.daemon.policies import applied, matching
from lxcfs_py.linux import aside, cpu_list
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.kernel_files import KernelDirectory
from lxcfs_py.printable import printable

_NO_LIMIT_V1 = 1 << 62  # memory.limit_in_bytes shows the largest multiple of a page that fits 63 bits


class Limit(NamedTuple):
    """A limit that one cgroup of a container's, or one above it, has."""

    cgroup: str
    """What it is called, "its cgroup" where it is the container's own."""

    file: str
    value: float
    """Bytes, or CPUs."""


class Subject:
    """A container whose figures are to be explained, as it is now."""

    def __init__(self, pid: int, config: Config) -> None:
        """Place a process. UnplacedError where it cannot be told where it is, OSError when it has ended."""
        self._layout = layout.find()
        try_to_look_aside()
        self.config = config
        sampler = Sampler(config.loadavg.interval)
        containers = Containers(self._layout, Ledger(), sampler)
        self.container: Optional[Container] = containers.placed(pid)
        self.init = self.container.init if self.container else pid
        self.host = Host().with_clock(containers.boottime_offset(pid))
        self.policies = []
        if self.container:
            self.policies = matching(self.container, config)
            self.config = applied(self.container, config)
        self._paths = layout.parse_paths(Path(f"/proc/{self.init}/cgroup").read_bytes())

    def cgroup(self, controller: str = "memory") -> str:
        """Return the path of the cgroup that its init is in, of a controller."""
        return self._paths.get(controller) or self._paths.get("", "/")

    def version(self, controller: str) -> int:
        """Return on which version of cgroups a controller is, 2 where there is none."""
        return self._layout.version(controller) or 2

    def called(self, path: str) -> str:
        """Return what to call a cgroup: its path, unless it is the container's own."""
        return "its cgroup" if path == self.cgroup() else printable(path)

    def memory_limits(self) -> list[Limit]:
        """Return the limits of memory along its cgroup and those above, its own first."""
        limits = list(self._limits("memory", ("memory.limit_in_bytes", "memory.max"), _bytes))
        if self.config.memory.high and self.version("memory") == 2:
            limits += self._limits("memory", ("", "memory.high"), _bytes)
        return limits

    def swap_limits(self) -> list[Limit]:
        """Return the limits of swap: on cgroup v1, of memory and swap together."""
        return list(self._limits("memory", ("memory.memsw.limit_in_bytes", "memory.swap.max"), _bytes))

    def is_never_swapped(self) -> bool:
        """Tell whether its limits make the kernel swap nothing of it out: cgroup v1's memory.swappiness of 0."""
        levels = ((directory, version) for _, directory, version in self._levels("memory"))
        directory, version = next(levels, ("", 2))
        return version == 1 and _read(os.path.join(directory, "memory.swappiness")) == "0"

    def quotas(self) -> list[Limit]:
        """Return the CPU quotas along its cgroup and those above, in CPUs."""
        return list(self._limits("cpu", ("cpu.cfs_quota_us", "cpu.max"), _cpus))

    def cpusets(self) -> list[tuple[str, str]]:
        """Return the effective cpuset of its cgroup, "0-3", with the cgroup that says so; none where there is none."""
        for path, directory, version in self._levels("cpuset"):
            cpuset = (v2 if version == 2 else v1).Cpuset((KernelDirectory(directory, whose=directory),))
            with contextlib.suppress(OSError):
                text = cpuset.cpus()
                if text:
                    return [(self.called(path), text.decode().strip())]
        hierarchy = self._layout.hierarchies.get("cpuset")
        if hierarchy and hierarchy.version == 2:  # the root has those that no partition has taken
            text = _read(hierarchy.directory("/") + "/cpuset.cpus.effective")
            if text and cpu_list.parse(text.encode()) != self.host.online():
                return [("/", text)]
        return []

    def directories(self) -> set[str]:
        """Return the directories of its init's cgroups, in all hierarchies."""
        hierarchies = self._layout.hierarchies.items()
        return {
            hierarchy.directory(self._paths[name if hierarchy.version == 1 else ""])
            for name, hierarchy in hierarchies
            if (name if hierarchy.version == 1 else "") in self._paths
        }

    def visible(self) -> visible_cpus.Visible:
        """Return the CPUs that it sees."""
        assert self.container
        return visible_cpus.visible(self.container.cgroup, self.host, self.config.cpu)

    def _levels(self, controller: str) -> Iterator[tuple[str, str, int]]:
        """Yield path, directory and version of the cgroup of a controller, and of those above it but the root.

        Of memory, these are those whose limits hold for it.
        """
        hierarchy = self._layout.hierarchies.get(controller)
        if hierarchy is None:
            return
        path = self._paths.get(controller if hierarchy.version == 1 else "", "/")
        while path != "/":
            yield path, hierarchy.directory(path), hierarchy.version
            path = os.path.dirname(path)
            above = hierarchy.directory(path)
            if (
                controller == "memory"
                and hierarchy.version == 1
                and not v1.counts_those_below(KernelDirectory(above, whose=above))
            ):
                return

    def _limits(
        self, controller: str, names: tuple[str, str], parse: Callable[[str, str], Optional[float]]
    ) -> Iterator[Limit]:
        for path, directory, version in self._levels(controller):
            name = names[version - 1]
            value = parse(directory, _read(os.path.join(directory, name)))
            if value is not None:
                yield Limit(self.called(path), name, value)


def _read(path: str) -> str:
    """Return a cgroup's file, "" where there is none."""
    directory, name = os.path.split(path)
    try:
        with open(aside.open_file(directory, directory, name), encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def _bytes(directory: str, text: str) -> Optional[float]:
    limit = int(text) if text.isdecimal() else _NO_LIMIT_V1
    return limit if limit < _NO_LIMIT_V1 else None


def _cpus(directory: str, text: str) -> Optional[float]:
    quota, _, period = text.partition(" ")
    period = period or _read(os.path.join(directory, "cpu.cfs_period_us"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def size(number: float) -> str:
    """Return bytes for people: "256 MiB", "1.5 GiB"."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= unit:
            return f"{number / unit:.4g} {name}"
    return f"{number:.0f} bytes"


def why_limit(limits: list[Limit], host: str, show: Callable[[float], str]) -> str:
    """Say which of the limits holds, what the others are, and what the host has."""
    if not limits:
        return f"neither its cgroup nor one above it has a limit; the host has {host}"
    tightest = min(limits, key=lambda limit: limit.value)
    others = [
        f"{limit.cgroup} has {show(limit.value)}"
        if limit.file == tightest.file
        else f"{limit.file} of {limit.cgroup} is {show(limit.value)}"
        for limit in limits
        if limit is not tightest
    ]
    rest = "; ".join(others) if others else "no other cgroup around it has a limit"
    return f"{tightest.file} of {tightest.cgroup} is {show(tightest.value)}; {rest}; the host has {host}"


def why_cpus(subject: Subject) -> str:
    """Say why a container sees the CPUs that it sees."""
    visible = subject.visible()
    online = subject.host.online()
    allowed = subject.cpusets()
    whole = cpu_list.render(online).decode().strip()
    if allowed:
        plural = "" if allowed[0][1].isdecimal() else "s"
        text = f"the cpuset of {allowed[0][0]} allows CPU{plural} {allowed[0][1]} of the host's {whole}"
    else:
        text = f"no cpuset: it may run on the host's CPUs {whole}"
    quotas = subject.quotas()
    cpu = subject.config.cpu
    if cpu.mode == "cpuset":
        return f'{text}; quotas do not count, as cpu.mode is "cpuset"'
    if not quotas and cpu.mode == "requests" and subject.container and subject.container.cgroup.cpu:
        shares = subject.container.cgroup.cpu.shares(cpu.weights)
        return (
            f"{text}; no CPU quota, and about {shares:.0f} shares of CPU time, of which {cpu.shares_per_cpu} are a CPU"
        )
    if not quotas:
        return f"{text}; no CPU quota"
    least = min(quotas, key=lambda limit: limit.value)
    count = max(1, math.ceil(least.value))
    effect = f"rounded up to {count}" if visible.quota is not None else "no less than it may run on"
    return f"{text}; {least.file} of {least.cgroup} allows {least.value:g} CPUs' worth of time, {effect}"
