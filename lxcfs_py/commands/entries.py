"""What is told of each field of a file: its figure, the host's, and where it comes from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Callable, NamedTuple

from lxcfs_py import files
from lxcfs_py.commands import fields
from lxcfs_py.commands.sources import Subject, size, why_cpus, why_limit
from lxcfs_py.linux import cpu_list
from lxcfs_py.views.allowed_nodes import allowed_nodes
from lxcfs_py.views.host_tree import Sight

_CPU_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_BLOCK = ("sys/block", "sys/class/block", "sys/dev/block")


class Entry(NamedTuple):
    """A field of a file, as a container sees it now."""

    label: str
    figure: str
    source: str
    host: str = ""
    """The host's figure, "" where the source tells it, or where there is nothing to compare."""

    at_a_glance: bool = True
    """True for what is told where no field is named: not for what is 0 for everybody, and what is the host's."""

    def answers_to(self, field: str) -> bool:
        """Tell whether somebody who names a field means this one."""
        return field.lower() in (self.label.lower(), *self.label.lower().split(", "))


def of(subject: Subject, name: str, text: str) -> Iterator[Entry]:
    """Yield every field of a file. `text` is what the container sees of it, or of a directory's file `online`."""
    known = _KNOWN.get(name)
    if known:
        yield from known(subject, text)
    else:
        yield Entry("text", _shown(text), files.FILES[name].shows)


def inside(subject: Subject, directory: str, path: str, text: str) -> Entry:
    """Return what is told of a file in a directory."""
    version = subject.version("cpuset")
    with contextlib.suppress(OSError):
        host = subject.host.directory(directory).text(path).decode()
        return Entry(path, _shown(text), _source(directory, path, version), _shown(host))
    return Entry(path, _shown(text), _source(directory, path, version))


def _shown(text: str) -> str:
    """Return a short text, or how long it is."""
    lines = text.splitlines()
    return lines[0].strip() if len(lines) == 1 else f"{len(lines)} lines"


def _source(name: str, field: str, version: int) -> str:
    return fields.source(name, field, version) or "the host's"


def _memory_source(subject: Subject, name: str, field: str) -> str:
    if subject.container and subject.container.cgroup.memory is None:
        return "the host's: no memory controller counts for its cgroup, nor for one above it"
    return _source(name, field, subject.version("memory"))


def _sized(figure: str) -> str:
    number, _, unit = figure.partition(" ")
    return size(int(number) << 10) if unit == "kB" else figure


def _meminfo(subject: Subject, text: str) -> Iterator[Entry]:
    host = _labelled(subject.host.text("proc/meminfo").decode())
    told = {"MemTotal": why_limit(subject.memory_limits(), _machine_memory(subject), size), "SwapTotal": _swap(subject)}
    for field, figure in _labelled(text).items():
        source = told.get(field) or _memory_source(subject, "proc/meminfo", field)
        seen = field in told or (not figure.startswith("0") and source != "the kernel's constant")
        beside = "" if field in told else _sized(host.get(field, ""))
        yield Entry(field, _sized(figure), source, beside, seen)


def _machine_memory(subject: Subject) -> str:
    """Return how much memory the host has, and how much of it is on nodes that the container may use."""
    total = size(subject.host.memory().total)
    nodes = allowed_nodes(subject.container.cgroup, subject.host) if subject.container else None
    if nodes is None:
        return total
    listed, allowed = cpu_list.render(nodes).decode().strip(), size(subject.host.memory_on(nodes)[0])
    return f"{total}, of which {allowed} on NUMA nodes that its cpuset allows: {listed}"


def _labelled(text: str) -> dict[str, str]:
    """Return lines such as "MemTotal:   256 kB" by their labels."""
    found = (line.partition(":") for line in text.splitlines())
    return {label.strip(): figure.strip() for label, colon, figure in found if colon}


def _swap(subject: Subject) -> str:
    total = subject.host.memory().swap_total
    if not subject.config.memory.swap:
        return "memory.swap is false: containers are shown none"
    if total and subject.is_never_swapped():
        return f"memory.swappiness of its cgroup is 0: no more than it has swapped already; the host has {size(total)}"
    return why_limit(subject.swap_limits(), size(total), size) if total else "the host has none"


def _swaps(subject: Subject, text: str) -> Iterator[Entry]:
    rows = [row.split() for row in text.splitlines()[1:]]
    machine = subject.host.memory()
    shown = size(int(rows[0][2]) << 10) if rows else "none"
    used = size(int(rows[0][3]) << 10) if rows else "none"
    yield Entry("Size", shown, _swap(subject))
    yield Entry("Used", used, _source("proc/swaps", "Used", 2), size(machine.swap_total - machine.swap_free))
    yield Entry("Filename, Type, Priority", "", _source("proc/swaps", "Type", 2), "", at_a_glance=False)


def _vmstat(subject: Subject, text: str) -> Iterator[Entry]:
    host = dict(line.split() for line in subject.host.text("proc/vmstat").decode().splitlines())
    for field, figure in (line.split() for line in text.splitlines()):
        source = _memory_source(subject, "proc/vmstat", field)
        yield Entry(field, figure, source, host.get(field, ""), figure != "0")


def _cpus(subject: Subject) -> Entry:
    return Entry("CPUs", cpu_list.render(subject.visible().cpus).decode().strip(), why_cpus(subject))


def _cpuinfo(subject: Subject, text: str) -> Iterator[Entry]:
    yield _cpus(subject)
    host = _labelled(subject.host.text("proc/cpuinfo").decode().partition("\n\n")[0])
    for field, figure in _labelled(text.partition("\n\n")[0]).items():
        seen = field in ("siblings", "cpu cores")
        yield Entry(field, figure, _source("proc/cpuinfo", field, 2), host.get(field, ""), seen)


def _cpu_tree(subject: Subject, text: str) -> Iterator[Entry]:
    yield _cpus(subject)
    yield inside(subject, "sys/devices/system/cpu", "online", text)


def _stat(subject: Subject, text: str) -> Iterator[Entry]:
    yield _cpus(subject)
    own, host = _stat_lines(text), _stat_lines(subject.host.text("proc/stat").decode())
    version = subject.version("cpu")
    ticks, of_host = (f"{rows['cpu']} 0 0 0".split() for rows in (own, host))
    for field, figure, beside in zip(_CPU_COLUMNS, ticks, of_host):
        source = _source("proc/stat", field, version)
        if field in _CPU_COLUMNS[:4] and subject.container and not subject.container.cgroup.cpu_time:
            source = "the host's on the visible CPUs: nobody counts CPU time for its cgroup"
        yield Entry(field, f"{figure} ticks", source, f"{beside} ticks", figure != "0")
    for field, figures in own.items():
        first = figures.split()[0]
        beside = host.get(field, "").partition(" ")[0]
        if field.startswith("cpu"):
            spread = "the columns of cpu" if field == "cpu" else "this CPU's part of cpu"
            yield Entry(field, figures, f"{spread}: user, nice, system, idle, and zeros", host.get(field, ""), False)
        elif field not in _CPU_COLUMNS:
            yield Entry(field, first, _source("proc/stat", field, version), beside, field not in ("intr", "ctxt"))


def _stat_lines(text: str) -> dict[str, str]:
    return {name: figures.strip() for name, _, figures in (line.partition(" ") for line in text.splitlines())}


def _uptime(subject: Subject, text: str) -> Iterator[Entry]:
    own, host = text.split(), subject.host.text("proc/uptime").decode().split()
    if subject.config.uptime.source == "host":
        source = 'the host\'s: uptime.source is "host"'
    elif subject.host.boottime_offset:
        source = "the clock since boot of its time namespace"
    else:
        source = f"since its init, process {subject.init}, was started"
    yield Entry("uptime", f"{own[0]} s", source, f"{host[0]} s")
    source = "summed over its CPUs: what it could have used since then, and has not"
    yield Entry("idle", f"{own[1]} s", source, f"{host[1]} s")


def _loadavg(subject: Subject, text: str) -> Iterator[Entry]:
    own, host = text.split(), subject.host.text("proc/loadavg").decode().split()
    if not subject.config.loadavg.enabled:
        yield Entry("averages", " ".join(own[:3]), "the host's: loadavg.enabled is false")
        return
    interval = subject.config.loadavg.interval
    yield Entry(
        "averages",
        " ".join(own[:3]),
        f"its tasks that run or wait for a disk, counted by the daemon every {interval:g} s from the first read on; "
        "0.00 at first",
        " ".join(host[:3]),
    )
    yield Entry("tasks", own[3], "those that run now, with the reader, and all of its cgroup and below it", host[3])
    yield Entry("last pid", own[4], _source("proc/loadavg", "last pid", 2), host[4])


def _diskstats(subject: Subject, text: str) -> Iterator[Entry]:
    host = _disks(subject.host.text("proc/diskstats").decode())
    source = _source("proc/diskstats", "reads", subject.version("blkio"))
    quiet = []
    for device, figures in _disks(text).items():
        if figures == _disk(["0"] * 11):
            quiet.append(device)
        yield Entry(device, figures, source, host.get(device, ""), device not in quiet)
    if quiet:
        yield Entry("no I/O", f"{len(quiet)} of the host's devices", f"{source}; partitions are not counted")
    yield Entry("merged, times, in flight", "0", _source("proc/diskstats", "merged", 2))


def _disks(text: str) -> dict[str, str]:
    return {words[2]: _disk(words[3:]) for words in map(str.split, text.splitlines())}


def _disk(columns: list[str]) -> str:
    read, written = (size(int(columns[column]) * 512) for column in (2, 6))
    return f"{columns[0]} reads of {read}, {columns[4]} writes of {written}"


def _partitions(subject: Subject, text: str) -> Iterator[Entry]:
    rows = [line.split() for line in text.splitlines()[2:]]
    source = _source("proc/partitions", "name", 2)
    yield Entry("partitions", str(len(rows)), source)
    for _, _, blocks, name in rows:
        yield Entry(name, size(int(blocks) << 10), source, "", at_a_glance=False)


def _pressure(subject: Subject, text: str) -> Iterator[Entry]:
    pressure = subject.container.cgroup.pressure if subject.container else None
    source = "zeros: cgroup v1 has no pressure"
    if pressure:
        with contextlib.suppress(OSError):
            source = "zeros: pressure is switched off, for all (psi=0) or for its cgroup (cgroup.pressure)"
            if pressure.read("memory"):
                source = "the kernel's own figures of its cgroup"
    for kind, _, figures in (line.partition(" ") for line in text.splitlines()):
        yield Entry(kind, figures.partition(" total")[0], source)


def _slabinfo(subject: Subject, text: str) -> Iterator[Entry]:
    slabs = str(max(len(text.splitlines()) - 2, 0))
    yield Entry("slabs", slabs, "the kernel lists them by cgroup only on v1 before Linux 5.9")


def _block_tree(subject: Subject, text: str) -> Iterator[Entry]:
    yield Entry("DEVICE/stat", "", "what /proc/diskstats says: lxcfs-py explain diskstats:DEVICE")
    yield Entry("all else there", "", "links to the host's own files")


def _node_tree(subject: Subject, text: str) -> Iterator[Entry]:
    yield inside(subject, "sys/devices/system/node", "online", text)
    for path in ("nodeN/cpulist", "nodeN/meminfo", "nodeN/numastat"):
        yield Entry(path, "", _source("sys/devices/system/node", path, subject.version("memory")))


def _memory_tree(subject: Subject, text: str) -> Iterator[Entry]:
    directory = subject.host.directory("sys/devices/system/memory")
    with contextlib.suppress(OSError):
        block = int(directory.text("block_size_bytes"), 16)
        blocks = [int(name[6:]) for name in directory.names("") if re.fullmatch(r"memory\d+", name)]
        count = len(blocks)
        shown = count
        if subject.container:
            sight = Sight(subject.container, subject.host, subject.config)
            shown = sum(map(sight.has_memory_block, blocks))
        source = _source("sys/devices/system/memory", "memory0", 2)
        yield Entry("blocks", f"{shown} of {size(block)}", source, str(count))
        return
    yield Entry("blocks", "none", "this kernel has no such directory")


_KNOWN: dict[str, Callable[[Subject, str], Iterator[Entry]]] = {
    "proc/cpuinfo": _cpuinfo,
    "proc/diskstats": _diskstats,
    "proc/loadavg": _loadavg,
    "proc/meminfo": _meminfo,
    "proc/partitions": _partitions,
    "proc/pressure/cpu": _pressure,
    "proc/pressure/io": _pressure,
    "proc/pressure/memory": _pressure,
    "proc/slabinfo": _slabinfo,
    "proc/stat": _stat,
    "proc/swaps": _swaps,
    "proc/uptime": _uptime,
    "proc/vmstat": _vmstat,
    **dict.fromkeys(_BLOCK, _block_tree),
    "sys/devices/system/cpu": _cpu_tree,
    "sys/devices/system/memory": _memory_tree,
    "sys/devices/system/node": _node_tree,
}
"""A file that is not among them is told of as a whole."""
