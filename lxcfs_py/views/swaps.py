"""/proc/swaps: the header, and one line for the container's share of the host's swap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host
from lxcfs_py.views.meminfo import swap

if TYPE_CHECKING:
    from lxcfs_py.config import Config


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text; sizes in KiB."""
    header, _, _ = host.text("proc/swaps").partition(b"\n")
    total, free = swap(container.cgroup, host, config)
    if not total:
        return header + b"\n"
    figures = b"".join(map(_column, (total >> 10, (total >> 10) - (free >> 10))))
    return b"%s\n%-40s%-16s%s0\n" % (header, b"none", b"virtual", figures)


def _column(number: int) -> bytes:
    return b"%d%s" % (number, b"\t\t" if number < 10_000_000 else b"\t")
