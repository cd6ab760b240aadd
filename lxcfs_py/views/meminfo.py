"""/proc/meminfo: the container's memory, in the running kernel's own layout."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.containers import Container
from lxcfs_py.host import Host

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
    text = host.text("proc/meminfo")
    memory = container.cgroup.memory
    if memory is None:
        return text
    stat = memory.stat()
    kib = {name: sum([int(stat.get(key, 0)) for key in keys]) >> 10 for name, keys in memory.fields.items()}

    total = host_total = field(text, b"MemTotal")
    limit, free = memory.room()
    if limit is None or limit >= host_total:
        # What the host has left, its own reclaimable pages included, is all there for an unlimited container.
        free, available = field(text, b"MemFree"), field(text, b"MemAvailable")
    else:
        total = limit
        available = free + sum([int(stat.get(key, 0)) for key in memory.available])
    free = min(free, total)
    swap_total, swap_used = swap(container.cgroup, text, config)
    kib["MemTotal"] = total >> 10
    kib["MemFree"] = free >> 10
    kib["MemAvailable"] = max(min(available, total), free) >> 10
    kib["SwapTotal"] = swap_total >> 10
    kib["SwapFree"] = (swap_total - swap_used) >> 10
    kib["CommitLimit"] = (total * host.overcommit_ratio // 100 + swap_total) >> 10
    kib.update(_huge_pages(container.cgroup, text))
    template, names = _template(host.meminfo_layout)
    return template % tuple([kib.get(name, 0) for name in names])


def swap(cgroup: Cgroup, text: bytes, config: Config) -> tuple[int, int]:
    """Return a container's swap and how much of it is used, in bytes; `text` is the host's /proc/meminfo."""
    host_total = field(text, b"SwapTotal")
    if not (config.memory.swap and cgroup.memory and host_total):
        return 0, 0
    limit, used = cgroup.memory.swap()
    used = min(used, host_total)
    if limit is None or limit >= host_total:
        # What others use of the host's swap cannot be used once more.
        return host_total, max(used, 0)
    return max(limit, used), used


def field(text: bytes, name: bytes) -> int:
    """Return a field of the host's /proc/meminfo: bytes of sizes, else the number; 0 if there is none."""
    _, found, rest = (b"\n" + text).partition(b"\n" + name + b":")
    words = rest[:40].split(None, 2)
    return int(words[0]) * (1024 if words[1:2] == [b"kB"] else 1) if found else 0


def _huge_pages(cgroup: Cgroup, text: bytes) -> Iterator[tuple[str, int]]:
    """Yield the fields of the default size's pages. Without the hugetlb controller there are none."""
    pages = field(text, b"HugePages_Total")
    if cgroup.hugetlb and pages:
        size = field(text, b"Hugepagesize")
        limit, used = cgroup.hugetlb.room(_size_name(size))
        used //= size
        total = max(pages if limit is None else min(limit // size, pages), used)
        yield "HugePages_Total", total
        yield "HugePages_Free", total - used
        yield "Hugetlb", total * size >> 10


def _size_name(size: int) -> str:
    """Return what the kernel calls a size of huge pages: 2MB, 1GB, 64KB."""
    for shift, unit in ((30, "GB"), (20, "MB")):
        if size >> shift:
            return f"{size >> shift}{unit}"
    return f"{size >> 10}KB"


@functools.lru_cache(maxsize=4)
def _template(layout: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Return the kernel's layout with the numbers left out, and the names of the fields in their order."""
    lines, names = [], []
    for line in layout.splitlines(keepends=True):
        name, _, rest = line.partition(b":")
        if name not in _CONSTANT:
            # "MemTotal:       24684092 kB", "HardwareCorrupted:     0 kB": the numbers end in the same column
            unit = b" kB\n" if rest.endswith(b"kB\n") else b"\n"
            line = b"%s:%%%dd" % (name.replace(b"%", b"%%"), _NUMBER_END - len(name) - 1) + unit
            names.append(name.decode())
        lines.append(line)
    return b"".join(lines), tuple(names)
