"""The CPUs that a container sees."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host


class Visible(NamedTuple):
    """The CPUs a container sees."""

    cpus: tuple[int, ...]
    """As the host numbers them, in ascending order; at least one."""

    numbers: tuple[int, ...]
    """As the container sees them numbered, in the same order."""

    whole: bool
    """True when these are all the CPUs that the container may run on, False when a quota shows it fewer."""


def visible(cgroup: Cgroup, host: Host, mode: str) -> Visible:
    """Return the CPUs a container sees.

    In mode "cpuset" these are its effective cpuset's, with the host's numbers. In mode "quota" they are as many of
    them as the smallest CPU quota allows time for, rounded up and at least one, numbered from 0.
    """
    listed = cgroup.cpuset.cpus() if cgroup.cpuset else None
    cpus = (cpu_list.parse(listed) if listed else ()) or host.online()
    if mode == "cpuset":
        return Visible(cpus, cpus, True)
    quota = cgroup.cpu.quota() if cgroup.cpu else None
    count = len(cpus) if quota is None else max(1, min(len(cpus), math.ceil(quota)))
    return Visible(cpus[:count], _first_numbers(count), count == len(cpus))


@functools.lru_cache(maxsize=256)
def _first_numbers(count: int) -> tuple[int, ...]:
    return tuple(range(count))
