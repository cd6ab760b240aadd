"""/sys/devices/system/memory: the host's directory, with as many blocks of memory as the container's is large."""

from __future__ import annotations

from lxcfs_py.linux.host import MEMORY
from lxcfs_py.views import sys_node
from lxcfs_py.views.host_tree import HostTree, Sight


def _is_hidden(sight: Sight, block: int) -> bool:
    return not sight.has_memory_block(block)


TREE = HostTree(MEMORY, hidden={r"memory(\d+)": _is_hidden, r"memory\d+/node(\d+)": sys_node.is_hidden})
