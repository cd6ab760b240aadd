"""/proc/partitions: the host's disks and partitions with their sizes, those that /proc/diskstats has the I/O of."""

from __future__ import annotations

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the host's text: it says nothing of what anybody uses."""
    return host.text("proc/partitions")
