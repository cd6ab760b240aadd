"""/proc/meminfo: the container's memory, in the running kernel's own layout."""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Iterator, Mapping

from lxcfs_py.cgroup import Cgroup, Memory
from lxcfs_py.cgroup.tree import Room
from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.syscalls import Sysinfo
from lxcfs_py.views import huge_pages
from lxcfs_py.views.allowed_nodes import allowed_nodes

# Of the kernel itself, the same for everybody.
_CONSTANT = (b"VmallocTotal", b"Hugepagesize")

# What is in swap, or was there and still has its place in it.
_IN_SWAP = ("SwapCached", "Zswap", "Zswapped")

# What all pages of a cgroup are in, those of the kernel left out, and what the kernel has for it.
_lists = operator.itemgetter("Active(anon)", "Inactive(anon)", "Active(file)", "Inactive(file)", "Unevictable")
_OF_THE_KERNEL = ("SReclaimable", "SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu")

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
    """Return the fields that are known, of vmstat and nodes too, in bytes, but for the counts of huge pages.

    The usage figures are those of memory.stat, as far as they fit into what the container has.
    """
    amounts = memory.stat()
    machine = host.memory()
    fit(amounts, room_in(cgroup, memory, amounts, machine, host, config))
    total, reclaimable = amounts["MemTotal"], amounts.get("SReclaimable", 0)
    amounts["Active"] = amounts["Active(anon)"] + amounts["Active(file)"]
    amounts["Inactive"] = amounts["Inactive(anon)"] + amounts["Inactive(file)"]
    swap, free = swap_in(memory, machine) if config.memory.swap else (0, 0)
    amounts["SwapTotal"], amounts["SwapFree"] = swap, free
    for name in _IN_SWAP:
        if amounts.get(name):
            amounts[name] = min(amounts[name], swap - free)
    huge, ordinary = host.huge_pages(), total
    if huge:  # a limit of memory leaves them out, and the machine's memory has them in it
        ordinary = min(total, machine.total - sum(size * pages for size, pages in huge.items()))
    amounts["CommitLimit"] = host.commit_limit(total, ordinary) + swap
    amounts["KReclaimable"] = reclaimable
    amounts["Slab"] = reclaimable + amounts.get("SUnreclaim", 0)
    # As vmstat and nodes have it; what others have in the cache may be in the first.
    amounts["FilePages"] = min(amounts["Cached"] + amounts.get("SwapCached", 0), total)
    if huge:
        amounts.update(_huge_pages(cgroup, host))
    return amounts


def fit(amounts: dict[str, int], room: Room) -> None:
    """Add what room there is to what memory.stat counts, and cut down what does not fit.

    A limit may have been lowered below what is in use, and memory.high may be exceeded for long: then all are cut down
    in the same proportion, so that parts stay parts, and sums sums.

    MemTotal is the smallest limit along the cgroup, its ancestors, the NUMA nodes that it may use and the host, MemFree
    what is free in the tightest of them, MemAvailable that and what can be reclaimed there: file pages and, on v2,
    slab. Programs subtract some of these from others, as unsigned numbers.
    """
    total = room.limit
    if room.free < total // 8:  # else all fits that is in use, though memory.stat may be a little behind
        used = max(sum(_lists(amounts)), amounts["AnonPages"] + amounts["Cached"])
        used += sum(map(amounts.get, _OF_THE_KERNEL, itertools.repeat(0)))
        if used > total:
            amounts.update({name: amount * total // used for name, amount in amounts.items()})
    amounts["MemTotal"] = total
    free = amounts["MemFree"] = min(room.free, total)
    available = amounts["MemAvailable"] = min(room.available, total)
    reclaimable = 0
    if "SReclaimable" in amounts:
        reclaimable = amounts["SReclaimable"] = min(amounts["SReclaimable"], total - free)
    # Programs without MemAvailable add MemFree, Cached and SReclaimable up to it. So where the tightest level is not
    # the container's own, Cached has what others cached there, which the container can have as well.
    cached = amounts["Cached"] = min(max(amounts["Cached"], available - free - reclaimable), total - free - reclaimable)
    amounts["Shmem"] = min(amounts["Shmem"], cached)


def _huge_pages(cgroup: Cgroup, host: Host) -> Iterator[tuple[str, int]]:
    """Yield the fields of huge pages: those of the default size are counted, those of all sizes summed."""
    kinds = list(huge_pages.of(cgroup, host))
    yield "Hugetlb", sum(kind.total * kind.size for kind in kinds)
    yield "HugetlbUsed", sum(kind.used * kind.size for kind in kinds)
    for kind in kinds:
        if kind.size == host.huge_page_size:
            yield "HugePages_Total", kind.total
            yield "HugePages_Free", kind.free
            yield "HugePages_Rsvd", kind.reserved


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


def swap_in(memory: Memory, machine: Sysinfo) -> tuple[int, int]:
    """Return a container's swap where it sees any, and how much of it is free, in bytes."""
    if not machine.swap_total:
        return 0, 0
    room, used = memory.swap()
    # What was swapped out before the limit was lowered stays there.
    total = min(max(room.limit, used), machine.swap_total)
    # What others use, along the ancestors or on the host, cannot be used once more.
    return total, min(room.free, machine.swap_free, max(total - used, 0))


_SWAP = re.compile(rb"(?m)^(SwapTotal|SwapFree|SwapCached|Zswap|Zswapped|CommitLimit):( *\d+)")


def _without_swap(text: bytes) -> bytes:
    """Return a text of the host's, as it would be there without swap."""
    sizes = {name: int(size) for name, size in _SWAP.findall(text)}
    left = {b"CommitLimit": sizes.get(b"CommitLimit", 0) - sizes.get(b"SwapTotal", 0)}
    return _SWAP.sub(lambda match: b"%s:%*d" % (match[1], len(match[2]), max(left.get(match[1], 0), 0)), text)


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
