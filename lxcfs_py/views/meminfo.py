"""/proc/meminfo: the container's memory, in the running kernel's own layout."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lxcfs_py.cgroup import Cgroup, Hugetlb
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host

if TYPE_CHECKING:
    from lxcfs_py.config import Config

# Of the kernel itself, the same for everybody.
_CONSTANT = (b"VmallocTotal", b"Hugepagesize")

# A label of 16 characters and a number flush right in 8, unless that has more digits.
_NUMBER_END = 24


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text; sizes in KiB.

    MemTotal is the smallest limit along the container's cgroup and its ancestors, MemFree what the tightest of them
    has left, MemAvailable that and what can be reclaimed: file pages and, on v2, slab. The usage figures are those of
    memory.stat; what cgroups do not count is 0.
    """
    memory = container.cgroup.memory
    if memory is None:
        return host.text("proc/meminfo")
    amounts = memory.stat()
    file_pages = amounts["Active(file)"] + amounts["Inactive(file)"]
    reclaimable = amounts.get("SReclaimable", 0)
    limit, free = memory.room()
    if limit is None or limit >= host.memory_total:
        # What the host has left, its own reclaimable pages included, is all there for an unlimited container.
        text = host.text("proc/meminfo")
        total, free, available = (_field(text, name) for name in (b"MemTotal", b"MemFree", b"MemAvailable"))
    else:
        total, available = limit, free + file_pages + reclaimable
    swap_total, swap_used = swap(container.cgroup, host, config)
    amounts["MemTotal"] = total
    amounts["MemFree"] = min(free, total)
    amounts["MemAvailable"] = max(min(available, total), amounts["MemFree"])
    amounts["Active"] = amounts["Active(anon)"] + amounts["Active(file)"]
    amounts["Inactive"] = amounts["Inactive(anon)"] + amounts["Inactive(file)"]
    amounts["SwapTotal"] = swap_total
    amounts["SwapFree"] = swap_total - swap_used
    amounts["CommitLimit"] = total * host.overcommit_ratio // 100 + swap_total
    amounts["KReclaimable"] = reclaimable
    amounts["Slab"] = reclaimable + amounts.get("SUnreclaim", 0)
    if container.cgroup.hugetlb and host.huge_page_size:
        amounts.update(_huge_pages(container.cgroup.hugetlb, host))
    template, fields = _template(host.meminfo_layout, tuple(amounts))
    return template % tuple([amounts[name] >> shift for name, shift in fields])


def swap(cgroup: Cgroup, host: Host, config: Config) -> tuple[int, int]:
    """Return a container's swap and how much of it is used, in bytes."""
    host_total = host.swap_total() if config.memory.swap and cgroup.memory else 0
    if not (host_total and cgroup.memory):
        return 0, 0
    limit, used = cgroup.memory.swap()
    used = min(used, host_total)
    if limit is None or limit >= host_total:
        # What others use of the host's swap cannot be used once more.
        return host_total, max(used, 0)
    return max(limit, used), used


def _huge_pages(hugetlb: Hugetlb, host: Host) -> Iterator[tuple[str, int]]:
    """Yield the fields of the default size's pages, where the host has any."""
    pages = host.huge_pages()
    if pages:
        size = host.huge_page_size
        limit, used = hugetlb.room(_size_name(size))
        used //= size
        total = max(pages if limit is None else min(limit // size, pages), used)
        yield "HugePages_Total", total
        yield "HugePages_Free", total - used
        yield "Hugetlb", total * size


def _field(text: bytes, name: bytes) -> int:
    """Return a field of the host's /proc/meminfo: bytes of sizes, else the number; 0 if there is none."""
    _, found, rest = (b"\n" + text).partition(b"\n" + name + b":")
    number, _, unit = rest.partition(b"\n")[0].strip().partition(b" ")
    return int(number) << (10 if unit else 0) if found else 0


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
