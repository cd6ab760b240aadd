"""/proc/diskstats: the host's devices in the host's order, with the container's own I/O."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host

_SECTOR = 512


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text: requests, and sectors of 512 bytes.

    Cgroups count no merged requests, no times and no flushes: these columns are 0. Nor do they count by partition.
    """
    devices = container.cgroup.io.stat() if container.cgroup.io else {}
    lines = []
    for line in host.text("proc/diskstats").splitlines():
        device, start, columns, unused = _parse(line)
        lines.append(start + counts(devices[device], columns) if devices.get(device) else unused)
    return b"\n".join([*lines, b""])


@functools.lru_cache(maxsize=512)  # a machine may have hundreds of disks, most of which are idle
def _parse(line: bytes) -> tuple[bytes, bytes, int, bytes]:
    """Return a line's device ("8:0"), what stands before its figures, how many these are, and the line with zeros."""
    major, minor, _, rest = line.split(None, 3)
    start, columns = line[: -len(rest) - 1], rest.count(b" ") + 1
    return major + b":" + minor, start, columns, start + b" 0" * columns


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
