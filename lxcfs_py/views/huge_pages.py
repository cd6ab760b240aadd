"""Huge pages: how many of each size a container may have, and what it has of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.cgroup.tree import Room
from lxcfs_py.linux.host import Host
from lxcfs_py.views.allowed_nodes import allowed_nodes


class HugePages(NamedTuple):
    """Those of one size, as the kernel has them in /sys/kernel/mm/hugepages."""

    size: int
    """Of each, in bytes."""

    total: int
    free: int
    """With those that it has reserved."""

    reserved: int
    used: int


def of(cgroup: Cgroup, host: Host) -> Iterator[HugePages]:
    """Yield a container's by their size, where the host has any; without limits it may have all of them."""
    kinds = host.huge_pages()
    nodes = allowed_nodes(cgroup, host) if kinds else None
    for size, pages in kinds.items():
        room, used, reserved = cgroup.hugetlb.room(_name(size)) if cgroup.hugetlb else (Room(), 0, 0)
        used, reserved = used // size, reserved // size
        free = host.free_huge_pages(size, reserved)
        if nodes is not None:  # what is reserved is on no certain node
            pages, free_there = host.huge_pages_on(nodes, size)
            free = min(free, free_there)
        total = max(min(room.limit // size, pages), used)
        # What others use or have reserved, along the ancestors or on the host, cannot be used once more.
        free = min(total - used, room.free // size, free)
        yield HugePages(size, total, free, min(reserved, free), used)


def _name(size: int) -> str:
    """Return what the kernel calls a size of huge pages: 2MB, 1GB, 64KB."""
    for shift, unit in ((30, "GB"), (20, "MB")):
        if size >> shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}KB"
