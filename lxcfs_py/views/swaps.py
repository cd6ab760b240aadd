"""/proc/swaps: the header, and one line for the container's share of the host's swap."""

from __future__ import annotations

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host
from lxcfs_py.views.meminfo import swap_in


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text; sizes in KiB. Where nobody counts the container's memory it is the host's, as meminfo is."""
    memory = container.cgroup.memory
    if memory is None and config.memory.swap:
        return host.text("proc/swaps")
    total, free = swap_in(memory, host.memory()) if memory and config.memory.swap else (0, 0)
    if not total:
        return host.swaps_header + b"\n"
    figures = b"".join(map(_column, (total >> 10, (total >> 10) - (free >> 10))))
    return b"%s\n%-40s%-16s%s0\n" % (host.swaps_header, b"none", b"virtual", figures)


def _column(number: int) -> bytes:
    return b"%d%s" % (number, b"\t\t" if number < 10_000_000 else b"\t")
