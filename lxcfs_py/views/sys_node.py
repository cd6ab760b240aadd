"""/sys/devices/system/node: the host's directory, with the NUMA nodes, CPUs and memory that the container sees."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import NODES
from lxcfs_py.views import huge_pages, meminfo
from lxcfs_py.views.host_tree import HostTree, Sight, listed_cpus, masked_cpus

# What is counted by node in parts only.
_SUMS = {
    "FilePages": ("Cached", "SwapCached"),
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

    It is what memory.numa_stat counts on this node, as far as it does, or counts the parts of. All else, MemTotal and
    MemFree too, and what others have in the file pages, or it has itself on nodes that it may not use, is divided in
    proportion to the nodes' sizes; huge pages in proportion to how many the nodes have. So the nodes together have what
    /proc/meminfo says.
    """
    memory = sight.container.cgroup.memory
    if memory is None:
        return text
    sizes = {node: sight.host.memory_on([node])[0] for node in sight.memory_nodes}
    amounts = meminfo.figures(sight.container.cgroup, memory, sight.host, sight.config)
    amounts["MemUsed"] = amounts["MemTotal"] - amounts["MemFree"]
    counted = {
        name: {node: amount for node, amount in on_nodes.items() if node in sizes}
        for name, on_nodes in memory.numa_stat().items()
    }
    for name, parts in _SUMS.items():
        if parts[0] in counted:
            counted[name] = {
                node: sum(counted.get(part, {}).get(node, 0) for part in parts) for node in counted[parts[0]]
            }

    def shown(name: str, node: int) -> int:
        if name.startswith("HugePages_"):
            total, free = _huge_pages_on(sight, node, sight.host.huge_page_size)
            return {"HugePages_Total": total, "HugePages_Free": free}.get(name, 0)
        amount, on_nodes = amounts.get(name, 0), counted.get(name, {})
        uncounted = amount - sum(on_nodes.values())
        if uncounted < 0:
            return _part(amount, on_nodes, node) >> 10
        return (on_nodes.get(node, 0) + _part(uncounted, sizes, node)) >> 10

    def field(match: re.Match[bytes]) -> bytes:
        return match[1] + b"%*d" % (len(match[4]), shown(match[3].decode(), int(match[2])))

    return _FIELD.sub(field, text)


def _huge_pages(sight: Sight, path: str, text: bytes) -> bytes:
    """Return the node's part of the container's huge pages of a size."""
    if sight.container.cgroup.memory is None:
        return text
    node, kib = map(int, re.findall(r"\d+", path))
    total, free = _huge_pages_on(sight, node, kib << 10)
    return b"%d\n" % {"nr": total, "free": free}.get(os.path.basename(path).partition("_")[0], 0)


def _huge_pages_on(sight: Sight, node: int, size: int) -> tuple[int, int]:
    """Return how many huge pages of a size are the container's on a node, and how many of them are free."""
    for kind in huge_pages.of(sight.container.cgroup, sight.host):
        if kind.size == size:
            there = {node: sight.host.huge_pages_on([node], size)[0] for node in sight.memory_nodes}
            total = _part(kind.total, there, node)
            return total, min(_part(kind.free, there, node), total)
    return 0, 0


def _part(amount: int, weights: Mapping[int, int], node: int) -> int:
    """Return a node's part of an amount that is divided by weights: all parts together are the amount."""
    if not weights.get(node):
        return 0
    below = sum(weight for other, weight in weights.items() if other < node)
    whole = sum(weights.values())
    return amount * (below + weights[node]) // whole - amount * below // whole


TREE = HostTree(
    NODES,
    hidden={
        r"node(\d+)": is_hidden,
        r"node\d+/access\d+/(?:initiators|targets)/node(\d+)": is_hidden,
        r"node\d+/cpu(\d+)": _cpu_is_hidden,
        r"node\d+/memory(\d+)": _memory_is_hidden,
    },
    computed={
        r"online|possible|has_generic_initiator": _nodes,
        r"has_(\w+_)?memory": _nodes_with_memory,
        r"has_cpu": _nodes_with_cpus,
        r"node\d+/cpulist": listed_cpus,
        r"node\d+/cpumap": masked_cpus,
        r"node\d+/distance": _distances,
        r"node\d+/meminfo": _meminfo,
        r"node\d+/(numastat|vmstat)": _zeros,
        r"node\d+/hugepages/hugepages-\d+kB/(nr|free|surplus)_hugepages": _huge_pages,
    },
)
