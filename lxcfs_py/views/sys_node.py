"""/sys/devices/system/node: the host's directory, with the NUMA nodes, CPUs and memory that the container sees."""

from __future__ import annotations

import re

from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import NODES
from lxcfs_py.views import meminfo
from lxcfs_py.views.host_tree import HostTree, Sight, listed_cpus, masked_cpus

# A node's name for what /proc/meminfo has under another one.
_OTHER_NAMES = {"FilePages": "Cached"}

# What is counted by node in parts only.
_SUMS = {
    "Active": ("Active(anon)", "Active(file)"),
    "Inactive": ("Inactive(anon)", "Inactive(file)"),
    "Slab": ("SReclaimable", "SUnreclaim"),
    "KReclaimable": ("SReclaimable",),
}

_FIELD = re.compile(rb"(?m)^(Node (\d+) ([^:]+):)( *\d+)")
_NUMBER = re.compile(rb"(?m)\d+$")


def is_hidden(sight: Sight, node: int) -> bool:
    """Tell whether a container sees nothing of a node."""
    return node not in sight.nodes


def _cpu_is_hidden(sight: Sight, cpu: int) -> bool:
    return cpu not in sight.cpus


def _memory_is_hidden(sight: Sight, block: int) -> bool:
    return not sight.has_memory_block(block)


def _nodes(sight: Sight, _path: str, text: bytes) -> bytes:
    return cpu_list.only(text, sight.nodes)


def _nodes_with_memory(sight: Sight, _path: str, text: bytes) -> bytes:
    return cpu_list.only(text, sight.memory_nodes)


def _nodes_with_cpus(sight: Sight, _path: str, text: bytes) -> bytes:
    directory = sight.host.directory(NODES)
    cpus = {node: cpu_list.parse(directory.text(f"node{node}/cpulist")) for node in sight.nodes}
    return cpu_list.only(text, [node for node in sight.nodes if not sight.cpus.isdisjoint(cpus[node])])


def _distances(sight: Sight, _path: str, text: bytes) -> bytes:
    """Return the columns of the visible nodes; the kernel has one for each node that is online."""
    online = cpu_list.parse(sight.host.directory(NODES).text("online"))
    return b" ".join(distance for node, distance in zip(online, text.split()) if node in sight.nodes) + b"\n"


def _zeros(_sight: Sight, _path: str, text: bytes) -> bytes:
    """Return the layout alone: cgroups count nothing of this by node."""
    return _NUMBER.sub(b"0", text)


def _meminfo(sight: Sight, _path: str, text: bytes) -> bytes:
    """Return the node's part of what the container's /proc/meminfo says: nothing where it may not use its memory.

    It is what memory.numa_stat counts on this node, as far as it does, or counts the parts of. Of all else, MemTotal
    and MemFree too, it is a part in proportion to the node's size.
    """
    memory = sight.container.cgroup.memory
    if memory is None:
        return text
    sizes = {node: sight.host.memory_on([node])[0] for node in sight.memory_nodes}
    amounts = meminfo.figures(sight.container.cgroup, memory, sight.host, sight.config)
    amounts["MemUsed"] = amounts["MemTotal"] - amounts["MemFree"]
    counted = dict(memory.numa_stat())
    for name, parts in _SUMS.items():
        if all(part in counted for part in parts):
            counted[name] = {node: sum(counted[part].get(node, 0) for part in parts) for node in counted[parts[0]]}

    def field(match: re.Match[bytes]) -> bytes:
        node, name = int(match[2]), match[3].decode()
        name = _OTHER_NAMES.get(name, name)
        amount = counted.get(name, {}).get(node)
        if amount is None:
            amount = amounts.get(name, 0) * sizes.get(node, 0) // max(sum(sizes.values()), 1)
        unit = 0 if name.startswith("HugePages_") else 10
        return match[1] + b"%*d" % (len(match[4]), amount >> unit)

    return _FIELD.sub(field, text)


TREE = HostTree(
    NODES,
    hidden={r"node(\d+)": is_hidden, r"node\d+/cpu(\d+)": _cpu_is_hidden, r"node\d+/memory(\d+)": _memory_is_hidden},
    computed={
        r"online|possible|has_generic_initiator": _nodes,
        r"has_(\w+_)?memory": _nodes_with_memory,
        r"has_cpu": _nodes_with_cpus,
        r"node\d+/cpulist": listed_cpus,
        r"node\d+/cpumap": masked_cpus,
        r"node\d+/distance": _distances,
        r"node\d+/meminfo": _meminfo,
        r"node\d+/(numastat|vmstat)": _zeros,
    },
)
