"""The NUMA nodes whose memory a container may use."""

from __future__ import annotations

from typing import Optional

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host


def allowed_nodes(cgroup: Cgroup, host: Host) -> Optional[tuple[int, ...]]:
    """Return the nodes whose memory alone a container may use, None where it may use the memory of all."""
    if not host.has_nodes or cgroup.cpuset is None:
        return None
    nodes = host.nodes()
    if len(nodes) < 2:
        return None
    listed = cpu_list.parse(cgroup.cpuset.mems() or b"")
    allowed = tuple(node for node in nodes if node in listed)
    return allowed if allowed and allowed != nodes else None
