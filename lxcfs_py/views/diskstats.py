"""/proc/diskstats: the host's devices in the host's order, with the container's own I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host

if TYPE_CHECKING:
    from lxcfs_py.config import Config

_SECTOR = 512


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text: requests, and sectors of 512 bytes.

    Cgroups count no merged requests, no times and no flushes: these columns are 0. Nor do they count by partition.
    """
    devices = container.cgroup.io.stat() if container.cgroup.io else {}
    lines = []
    for line in host.text("proc/diskstats").splitlines():
        major, minor, _, rest = line.split(None, 3)
        columns = rest.count(b" ") + 1
        io = devices.get(major + b":" + minor)
        figures = counts(io, columns) if io else b" 0" * columns
        lines.append(line[: -len(rest) - 1] + figures)
    return b"\n".join([*lines, b""])


def counts(io: Mapping[bytes, int], columns: int) -> bytes:
    """Return the figures of one disk, each with a space before it."""
    get = io.get
    text = b" %d 0 %d 0 %d 0 %d 0 0 0 0" % (
        *(get(b"rios", 0), get(b"rbytes", 0) // _SECTOR),
        *(get(b"wios", 0), get(b"wbytes", 0) // _SECTOR),
    )
    if columns > 11:  # Linux 4.18 counts discards too
        text += b" %d 0 %d 0" % (get(b"dios", 0), get(b"dbytes", 0) // _SECTOR)
    return text + b" 0" * (columns - 15)
