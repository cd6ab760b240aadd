"""/proc/meminfo: the container's memory, in the running kernel's own layout."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Optional

from lxcfs_py.cgroup import Cgroup, Hugetlb, Memory
from lxcfs_py.cgroup.tree import Room
from lxcfs_py.container.containers import Container
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.syscalls import Sysinfo

if TYPE_CHECKING:
    from lxcfs_py.config import Config

# Of the kernel itself, the same for everybody.
_CONSTANT = (b"VmallocTotal", b"Hugepagesize")

# A label of 16 characters and a number flush right in 8, unless that has more digits.
_NUMBER_END = 24


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text; sizes in KiB. It is the host's where nobody counts the container's memory."""
    memory = container.cgroup.memory
    if memory is None:
        text = host.text("proc/meminfo")
        return text if config.memory.swap else _without_swap(text)
    amounts = figures(container.cgroup, memory, host, config)
    template, fields = _template(host.meminfo_layout, tuple(amounts))
    return template % tuple([amounts[name] >> shift for name, shift in fields])


def figures(cgroup: Cgroup, memory: Memory, host: Host, config: Config) -> dict[str, int]:
    """Return the fields that are known, in bytes, but for the counts of huge pages.

    MemTotal is the smallest limit along the cgroup, its ancestors, the NUMA nodes that it may use and the host, MemFree
    what is free in the tightest of them, MemAvailable that and what can be reclaimed there: file pages and, on v2,
    slab. The usage figures are those of memory.stat.
    """
    amounts = memory.stat()
    reclaimable = amounts.get("SReclaimable", 0)
    machine = host.memory()
    room = room_in(cgroup, memory, amounts, machine, host, config)
    total = amounts["MemTotal"] = room.limit
    free = amounts["MemFree"] = min(room.free, total)
    available = amounts["MemAvailable"] = min(room.available, total)
    # Programs without MemAvailable add MemFree, Cached and SReclaimable up to it. So where the tightest level is not
    # the container's own, Cached has what others cached there, which the container can have as well.
    cached = max(amounts["Cached"], available - free - reclaimable)
    amounts["Cached"] = max(min(cached, total - free - reclaimable), 0)
    amounts["Active"] = amounts["Active(anon)"] + amounts["Active(file)"]
    amounts["Inactive"] = amounts["Inactive(anon)"] + amounts["Inactive(file)"]
    amounts["SwapTotal"], amounts["SwapFree"] = swap_in(memory, machine) if config.memory.swap else (0, 0)
    amounts["CommitLimit"] = host.commit_limit(total) + amounts["SwapTotal"]
    amounts["KReclaimable"] = reclaimable
    amounts["Slab"] = reclaimable + amounts.get("SUnreclaim", 0)
    if host.huge_page_size:
        amounts.update(_huge_pages(cgroup.hugetlb, host))
    return amounts


def room_in(
    cgroup: Cgroup, memory: Memory, amounts: Mapping[str, int], machine: Sysinfo, host: Host, config: Config
) -> Room:
    """Return the limit of a container's memory and what is free, of which no more than the limit is its own.

    `amounts` are those of memory.stat, `machine` what the host says of its memory.
    """
    reclaimable = amounts["Active(file)"] + amounts["Inactive(file)"] + amounts.get("SReclaimable", 0)
    room = memory.room(reclaimable, config.memory.high)
    room = room.within(machine.total, machine.free, lambda: max(host.available() - machine.free, 0))
    nodes = allowed_nodes(cgroup, host)
    if nodes is not None:
        total, free, reclaimable = host.memory_on(nodes)
        room = room.within(total, free, lambda: reclaimable)
    return room


def allowed_nodes(cgroup: Cgroup, host: Host) -> Optional[tuple[int, ...]]:
    """Return the NUMA nodes whose memory alone a container may use, None where it may use the memory of all."""
    nodes = host.nodes()
    if len(nodes) < 2 or cgroup.cpuset is None:  # as on most machines
        return None
    listed = cpu_list.parse(cgroup.cpuset.mems() or b"")
    allowed = tuple(node for node in nodes if node in listed)
    return allowed if allowed and allowed != nodes else None


def swap_in(memory: Memory, machine: Sysinfo) -> tuple[int, int]:
    """Return a container's swap where it sees any, and how much of it is free, in bytes."""
    if not machine.swap_total:
        return 0, 0
    room, used = memory.swap()
    # What was swapped out before the limit was lowered stays there.
    total = min(max(room.limit, used), machine.swap_total)
    # What others use, along the ancestors or on the host, cannot be used once more.
    return total, min(room.free, machine.swap_free, max(total - used, 0))


def _huge_pages(hugetlb: Optional[Hugetlb], host: Host) -> Iterator[tuple[str, int]]:
    """Yield the fields of the default size's pages, where the host has any; without limits it may have all of them."""
    pages = host.huge_pages()
    if pages:
        size = host.huge_page_size
        room, own = hugetlb.room(_size_name(size)) if hugetlb else (Room(), 0)
        used = own // size
        total = max(min(room.limit // size, pages), used)
        yield "HugePages_Total", total
        # What others use, along the ancestors or on the host, cannot be used once more.
        yield "HugePages_Free", min(total - used, room.free // size, host.free_huge_pages())
        yield "Hugetlb", total * size


_SWAP = re.compile(rb"(?m)^(SwapTotal|SwapFree|CommitLimit):( *\d+)")


def _without_swap(text: bytes) -> bytes:
    """Return a text of the host's, as it would be there without swap."""
    sizes = {name: int(size) for name, size in _SWAP.findall(text)}
    left = {b"CommitLimit": sizes.get(b"CommitLimit", 0) - sizes.get(b"SwapTotal", 0)}
    return _SWAP.sub(lambda match: b"%s:%*d" % (match[1], len(match[2]), max(left.get(match[1], 0), 0)), text)


def _size_name(size: int) -> str:
    """Return what the kernel calls a size of huge pages: 2MB, 1GB, 64KB."""
    for shift, unit in ((30, "GB"), (20, "MB")):
        if size >> shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}KB"


@functools.lru_cache(maxsize=16)
def _template(layout: bytes, figures: tuple[str, ...]) -> tuple[bytes, tuple[tuple[str, int], ...]]:
    """Return the kernel's layout with room for these figures and 0 for all others, and what goes there in its order.

    That is each figure's name, and by how many bits it is to be shifted: the layout has sizes in KiB.
    """
    lines, fields = [], []
    for line in layout.splitlines(keepends=True):
        name, _, rest = line.partition(b":")
        if name not in _CONSTANT:
            # "MemTotal:       24684092 kB", "HardwareCorrupted:     0 kB": the numbers end in the same column
            number = b"%%%dd" % (_NUMBER_END - len(name) - 1)
            unit, shift = (b" kB\n", 10) if rest.endswith(b"kB\n") else (b"\n", 0)
            if name.decode() in figures:
                fields.append((name.decode(), shift))
            else:
                number %= 0
            line = name + b":" + number + unit
        lines.append(line)
    return b"".join(lines), tuple(fields)
