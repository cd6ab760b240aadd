"""/proc/slabinfo: the header, and the container's slabs where the kernel still counts them by cgroup."""

from __future__ import annotations

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return cgroup v1's memory.kmem.slabinfo (Linux before 5.9), else the header alone."""
    memory = container.cgroup.memory
    slabs = memory.slabinfo() if memory else None
    return slabs or host.text("proc/slabinfo")
