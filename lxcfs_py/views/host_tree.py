"""Directories of the host's sysfs that containers see too, with some of it hidden and some computed.

Everything that a tree's rules do not name is passed through as the host has it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Callable, Optional

from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import MEMORY, MEMORY_BLOCK, NODES, Host
from lxcfs_py.views import meminfo
from lxcfs_py.views.allowed_nodes import allowed_nodes


class Sight:
    """What one container sees of the machine's parts: each is worked out once, when it is asked for."""

    def __init__(self, container: Container, host: Host, config: Config) -> None:
        self.container = container
        self.host = host
        self.config = config

    @cached_property
    def cpus(self) -> frozenset[int]:
        """The numbers of the CPUs."""
        return frozenset(visible_cpus.visible(self.container.cgroup, self.host, self.config.cpu).cpus)

    @cached_property
    def nodes(self) -> frozenset[int]:
        """The numbers of the NUMA nodes with a visible CPU, or with memory that the container may use."""
        directory, cpuset = self.host.directory(NODES), self.container.cgroup.cpuset
        online = cpu_list.parse(directory.text("online"))
        listed = cpuset.mems() if cpuset else None
        allowed = cpu_list.parse(listed) if listed else online
        return frozenset(
            node
            for node in online
            if node in allowed or not self.cpus.isdisjoint(cpu_list.parse(directory.text(f"node{node}/cpulist")))
        )

    @cached_property
    def memory_nodes(self) -> frozenset[int]:
        """The numbers of those of these nodes whose memory the container may use."""
        allowed = allowed_nodes(self.container.cgroup, self.host)
        if allowed is not None:
            return frozenset(allowed)
        return self.nodes.intersection(self.host.nodes()) if self.host.has_nodes else self.nodes

    def has_memory_block(self, block: int) -> bool:
        """Tell whether a block of memory is one of the first that the container may use, as many as it needs."""
        return self._memory_blocks is None or block in self._memory_blocks

    @cached_property
    def _memory_blocks(self) -> Optional[frozenset[int]]:
        """The numbers of these blocks, None where they are all."""
        cgroup, memory = self.container.cgroup, self.container.cgroup.memory
        if memory is None:
            return None
        directory, nodes = self.host.directory(MEMORY), allowed_nodes(cgroup, self.host)
        total = meminfo.figures(cgroup, memory, self.host, self.config)["MemTotal"]
        if nodes is None:
            whole = self.host.memory().total
            if total >= whole:
                return None
            names = directory.names("")
        else:
            whole, _, _ = self.host.memory_on(nodes)
            names = [name for node in nodes for name in self.host.directory(NODES).names(f"node{node}")]
        # A block that has memory of two nodes is in the directories of both.
        blocks = sorted({int(block[1]) for block in map(MEMORY_BLOCK.fullmatch, names) if block})
        if total < whole:  # which the kernel's own memory is not part of, as it is of the blocks
            count = -(-total // int(directory.text("block_size_bytes"), 16))
            offline = self.host.offline_memory()
            blocks = [block for block in blocks if block not in offline][: max(count, 1)]
        return frozenset(blocks)


Hidden = Callable[[Sight, int], bool]
"""Tells whether the part with that number is hidden: a CPU, a node, a block of memory."""

Computed = Callable[[Sight, str, bytes], bytes]
"""Returns a file's text from its path in the tree and the host's text. OSError or ValueError as for a View."""


@dataclass(frozen=True)
class HostTree:
    """One directory, by its name as in files.py; paths are relative to it, "" for itself."""

    name: str

    hidden: Mapping[str, Hidden] = field(default_factory=dict)
    """By a pattern for the beginning of a path, with the number as its group. What is below is hidden as well."""

    computed: Mapping[str, Computed] = field(default_factory=dict)
    """By a pattern for the path of a file."""

    @cached_property
    def _hidden(self) -> list[tuple[re.Pattern[str], Hidden]]:
        return [(re.compile(f"{pattern}(?:/|$)"), rule) for pattern, rule in self.hidden.items()]

    @cached_property
    def _computed(self) -> list[tuple[re.Pattern[str], Computed]]:
        return [(re.compile(pattern), rule) for pattern, rule in self.computed.items()]

    def has(self, path: str, sight: Optional[Sight]) -> bool:
        """Tell whether a path is there for a container, if the host has it; for the host (None) all of it is."""
        if sight is None:
            return True
        matches = ((pattern.match(path), rule) for pattern, rule in self._hidden)
        return not any(match and rule(sight, int(match[1])) for match, rule in matches)

    def view(self, path: str) -> Optional[Computed]:
        """Return what computes a file's text, None for one that is passed through."""
        return next((rule for pattern, rule in self._computed if pattern.fullmatch(path)), None)

    # What the host has there. OSError when it has nothing.

    def names(self, host: Host, path: str) -> list[str]:
        """Return the names in a directory. One that begins with a dot is there, but not to be listed."""
        return host.directory(self.name).names(path)

    def mode(self, host: Host, path: str) -> int:
        """Return the type and mode of what is at a path."""
        return host.directory(self.name).mode(path)

    def link(self, host: Host, path: str) -> str:
        """Return the target of a symbolic link."""
        return host.directory(self.name).link(path)

    def text(self, host: Host, path: str) -> bytes:
        """Return the host's text of a file."""
        return host.directory(self.name).text(path)

    def walk(self, host: Host) -> Iterator[str]:
        """Yield all paths in it."""
        waiting = [""]
        while waiting:
            directory = waiting.pop()
            try:
                names = self.names(host, directory)
            except OSError:  # it is none, or is gone
                continue
            waiting += [os.path.join(directory, name) for name in names]
            yield from waiting[-len(names) :] if names else ()


def listed_cpus(sight: Sight, _path: str, text: bytes) -> bytes:
    """Return those of a list of CPUs ("0-3,8") that are visible."""
    return cpu_list.only(text, sight.cpus)


def masked_cpus(sight: Sight, _path: str, text: bytes) -> bytes:
    """Return those of a mask of CPUs ("ff,ffffffff") that are visible."""
    return cpu_list.masked(text, sight.cpus)
