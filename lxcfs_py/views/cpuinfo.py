"""/proc/cpuinfo: the blocks of the CPUs that the container sees."""

from __future__ import annotations

import functools
import re

from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host

# Four neighbouring lines of arch/x86/kernel/cpu/proc.c; other architectures have none of them.
_TOPOLOGY = re.compile(rb"(physical id\t: (\d+)\nsiblings\t: )\d+(\ncore id\t\t: (\d+)\ncpu cores\t: )\d+\n")

# arch/s390/kernel/processor.c
_COUNT = re.compile(rb"(?m)^(# processors +: )\d+$")
_LINE_OF_A_CPU = re.compile(rb"(?m)^processor (\d+): .*\n")


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text; `siblings` and `cpu cores` count what is visible of a package."""
    visible = visible_cpus.visible(container.cgroup, host, config.cpu)
    head, found, tail = host.cpuinfo(visible.cpus[-1] + 1)
    blocks = tuple([found[cpu] for cpu in visible.cpus if cpu in found])
    if not blocks:
        raise ValueError(f"the host has none of the CPUs {visible.cpus} that the cgroup may run on")
    return _join(head, blocks, tail)


@functools.lru_cache(maxsize=8)
def _join(head: bytes, blocks: tuple[bytes, ...], tail: bytes) -> bytes:
    """Return a text of blocks, in which each package has as many CPUs and cores as there are blocks of it."""
    cores: dict[bytes, list[bytes]] = {}
    for block in blocks:
        topology = _TOPOLOGY.search(block)
        if topology:
            cores.setdefault(topology[2], []).append(topology[4])
    texts = []
    for block in blocks:
        topology = _TOPOLOGY.search(block)
        if topology:
            package = cores[topology[2]]
            lines = b"%s%d%s%d\n" % (topology[1], len(package), topology[3], len(set(package)))
            block = block[: topology.start()] + lines + block[topology.end() :]
        texts.append(block)
    return _summary(head, blocks) + b"\n\n".join(texts) + tail


def _summary(head: bytes, blocks: tuple[bytes, ...]) -> bytes:
    """Return what is said of the machine, with the number and the lines of these CPUs where s390x has such."""
    numbers = {block.partition(b"\n")[0].rpartition(b" ")[2] for block in blocks}
    head = _LINE_OF_A_CPU.sub(lambda line: line[0] if line[1] in numbers else b"", head)
    return _COUNT.sub(b"\\g<1>%d" % len(blocks), head)
