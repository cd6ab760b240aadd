"""The CPUs that a container sees."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple, Optional

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.cgroup.tree import Quota
from lxcfs_py.config import Cpu
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host


class Visible(NamedTuple):
    """The CPUs a container sees."""

    cpus: tuple[int, ...]
    """The kernel's numbers, in ascending order; at least one."""

    quota: Optional[Quota]
    """None when it may use all the time of all CPUs that it may run on."""

    whole: bool = True
    """True when these are all the CPUs that it may run on, False when a quota shows it fewer."""

    def worth(self) -> float:
        """Return how many CPUs' worth of time it may use."""
        return self.quota.cpus if self.quota else len(self.cpus)


# Weights of cgroup v2 are whole numbers: what one says of shares is not exact. The least that it may be is up to 0.03
# CPUs below what was asked for, and hardly above.
_INEXACT = 0.01


def visible(cgroup: Cgroup, host: Host, cpu: Cpu) -> Visible:
    """Return the CPUs a container sees, by the kernel's numbers.

    In mode "cpuset" these are all that it may run on. In mode "quota" they are the first of those, as many as the
    smallest CPU quota allows time for, rounded up and at least one. In mode "requests" they are as many as its shares
    of CPU time ask for, where it has no quota.
    """
    listed = cgroup.cpuset.cpus() if cgroup.cpuset else None
    cpus = (cpu_list.parse(listed) if listed else ()) or host.online()
    quota = cgroup.cpu.quota() if cgroup.cpu and cpu.mode != "cpuset" else None
    if quota is None and cgroup.cpu and cpu.mode == "requests":
        count = max(1, math.ceil(cgroup.cpu.shares(cpu.weights) / cpu.shares_per_cpu - _INEXACT))
        return Visible(cpus[:count], None, count >= len(cpus))
    return _within(quota, cpus)


@functools.lru_cache(maxsize=1024)
def _within(quota: Optional[Quota], cpus: tuple[int, ...]) -> Visible:
    if quota is None or quota.cpus >= len(cpus):
        return Visible(cpus, None)
    count = max(1, math.ceil(quota.cpus))
    return Visible(cpus[:count], quota, count == len(cpus))
