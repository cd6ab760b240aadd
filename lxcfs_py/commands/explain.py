"""lxcfs-py explain: why a container sees a figure."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Callable

from lxcfs_py import files
from lxcfs_py.attach import attach
from lxcfs_py.commands.common import (
    CommandError,
    add_config,
    add_container,
    chosen_process,
    load_config,
    new_command,
    printable,
    require_root,
    text_width,
)
from lxcfs_py.commands.show import text_of
from lxcfs_py.commands.sources import Subject, size, why_cpus, why_limit
from lxcfs_py.linux import cpu_list
from lxcfs_py.runtimes.names import Names

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_INDENT = " " * 4

_SYSINFO = "A program that asks sysinfo(2) instead is told the host's, whatever files it has."
_AFFINITY = "A program that asks sched_getaffinity(2) instead is told the cpuset without the quota."


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "explain",
        _explain,
        "say why a container sees a figure",
        "Say of the figures in a file, or of one field, where each comes from: which cgroup's limit holds, what those "
        "above it have, what the host has, and which CPUs are shown and why. Say whether the container has the file "
        "mounted, and what a program asks that does not read it.",
        [
            ("lxcfs-py explain meminfo:MemTotal --container web", "why this much memory?"),
            ("lxcfs-py explain cpuinfo --pid 4711", "why one CPU?"),
        ],
    )
    parser.add_argument("file", metavar="FILE[:FIELD]", help="e.g. meminfo, meminfo:MemTotal, cpuinfo or loadavg")
    add_container(parser)
    add_config(parser)


def _explain(options: argparse.Namespace) -> int:
    require_root()
    given, _, field = options.file.partition(":")
    name = files.named(given)
    if name not in _EXPLAINED:
        raise CommandError(f"there is no file {given} to explain; there is: {', '.join(_EXPLAINED)}")
    pid = chosen_process(options)
    assert pid is not None
    config = load_config(options.config)
    try:
        subject = Subject(pid, config)
    except OSError:
        raise CommandError(f"process {pid} has ended") from None
    print(*_subject(subject, pid, name), sep="\n")
    if subject.container is None:
        return 0
    if name in files.DIRECTORIES:
        text = text_of(f"{name}/online", subject.init, options.config)
    else:
        text = text_of(name, subject.init, options.config)
    found = [entry for entry in _EXPLAINED[name](subject, text.decode()) if field in ("", entry[0])]
    if not found:
        known = ", ".join(entry[0] for entry in _EXPLAINED[name](subject, text.decode()))
        raise CommandError(f"{name} has no field {field} to explain; there is: {known}")
    for label, figure, source in found:
        print(f"{label}: {figure}".rstrip(" :"))
        print(
            textwrap.fill(
                source, text_width(), initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False
            )
        )
    if name in _INSTEAD:
        print(_INSTEAD[name])
    return 0


def _subject(subject: Subject, pid: int, name: str) -> Iterator[str]:
    """Yield who it is, and whether it has the file."""
    cgroup = subject.cgroup()
    if subject.container is None:
        yield f"Process {pid} is in no container: it has the host's own files, and /{name} shows it the host."
        return
    identity = Names().of(cgroup)
    called = f"{printable(identity.name)} ({identity.engine}), " if identity else ""
    yield f"{called}process {subject.init}, cgroup {printable(cgroup)}"
    yield f"/{name} in it: {_mounted(subject, name)}"
    for policy in subject.policies:
        whose = ", ".join(f"{key} {value}" for key, value in policy.conditions())
        yield f"a policy for {whose} has {', '.join(key for key, _ in policy.settings)} otherwise"


def _mounted(subject: Subject, name: str) -> str:
    if name not in subject.config.files.enabled:
        return "not enabled (files.enabled): whoever has it mounted sees the host's"
    states = {
        container.pid: container.files.get(name, container.error)
        for container in attach.status(subject.config.mountpoint, [name])
    }
    state = states.get(subject.init, "none")
    return {
        "live": "mounted and served",
        "other": "mounted, of another server than this",
        "dead": "mounted, but its server has ended: reading it fails. lxcfs-py attach gives it anew",
        "none": "not mounted: it sees the host's. lxcfs-py attach puts it there",
    }.get(state, state)


_Entry = tuple[str, str, str]
"""A field, its figure, and where that comes from."""


def _meminfo(subject: Subject, text: str) -> Iterator[_Entry]:
    figures = {line.split(":")[0]: line.split(":")[1].strip() for line in text.splitlines() if ":" in line}
    host = subject.host.memory()
    limits = subject.memory_limits()
    total = size(host.total)
    usage = "memory.stat of its cgroup, with all below it"
    sources = {
        "MemTotal": why_limit(limits, total, size),
        "MemFree": "what is free within the tightest of the limits along its cgroups, the host among them",
        "MemAvailable": "MemFree, and what can be reclaimed there: file pages, and slab on cgroup v2",
        "Cached": f"file pages: {usage}",
        "CommitLimit": "MemTotal by the host's vm.overcommit_ratio, and SwapTotal",
        "SwapTotal": _swap(subject, size(host.swap_total)),
        "SwapFree": "what is free of it, counting what others use along its cgroups and on the host",
    }
    for field, figure in figures.items():
        kibibytes = figure.partition(" kB")[0]
        shown = size(int(kibibytes) << 10) if figure.endswith(" kB") else figure
        if field in sources:
            yield field, shown, sources[field]
        elif int(kibibytes):
            yield field, shown, usage if subject.container and field not in _OF_KERNEL else "the kernel's own"


_OF_KERNEL = ("VmallocTotal", "Hugepagesize")


def _swap(subject: Subject, host: str) -> str:
    if not subject.config.memory.swap:
        return "memory.swap is false: containers are shown none"
    if not subject.host.memory().swap_total:
        return "the host has none"
    return why_limit(subject.swap_limits(), host, size)


def _swaps(subject: Subject, text: str) -> Iterator[_Entry]:
    rows = text.splitlines()[1:]
    shown = size(int(rows[0].split()[2]) << 10) if rows else "none"
    yield "Size", shown, _swap(subject, size(subject.host.memory().swap_total))


def _cpus(subject: Subject, text: str) -> Iterator[_Entry]:
    shown = cpu_list.render(subject.visible().cpus).decode().strip()
    yield "CPUs", shown, why_cpus(subject)


def _stat(subject: Subject, text: str) -> Iterator[_Entry]:
    yield from _cpus(subject, text)
    yield "user, nice, system", "ticks", "what its cgroup, with all below it, has used since its init was started"
    yield "idle", "ticks", "what it could have used since then, by its CPUs or its quota, and has not"
    btime = next(line.split()[1] for line in text.splitlines() if line.startswith("btime "))
    yield "btime", btime, "the kernel's own, as start times in /proc/PID/stat count from it"


def _uptime(subject: Subject, text: str) -> Iterator[_Entry]:
    age, idle = text.split()
    yield "uptime", f"{age} s", f"since its init, process {subject.init}, was started"
    yield "idle", f"{idle} s", "summed over its CPUs: what it could have used since then, and has not"


def _loadavg(subject: Subject, text: str) -> Iterator[_Entry]:
    averages = " ".join(text.split()[:3])
    if not subject.config.loadavg.enabled:
        yield "averages", averages, "the host's: loadavg.enabled is false"
        return
    yield (
        "averages",
        averages,
        "its tasks that run or wait for a disk, counted by the daemon every "
        f"{subject.config.loadavg.interval:g} s from the first read on; 0.00 at first",
    )
    yield "tasks", text.split()[3], "those that run now, with the reader, and all of its cgroup and below it"


def _diskstats(subject: Subject, text: str) -> Iterator[_Entry]:
    yield "reads, writes, discards", "by device", "io.stat of its cgroup (blkio on v1), with all below it"
    yield "merged, times, in flight", "0", "the kernel does not count these by cgroup"


def _pressure(subject: Subject, text: str) -> Iterator[_Entry]:
    pressure = subject.container.cgroup.pressure if subject.container else None
    figure = text.partition(" total")[0].partition(" ")[2]
    yield "some", figure, "the kernel's own figures of its cgroup" if pressure else "zeros: cgroup v1 has no pressure"


def _slabinfo(subject: Subject, text: str) -> Iterator[_Entry]:
    yield (
        "slabs",
        str(max(len(text.splitlines()) - 2, 0)),
        "the kernel lists them by cgroup only on v1 before Linux 5.9",
    )


def _other(subject: Subject, text: str) -> Iterator[_Entry]:
    yield "figures", "", "as the container's other files have them: lxcfs.toml(5) says what this one shows"


_KNOWN: dict[str, Callable[[Subject, str], Iterator[_Entry]]] = {
    "proc/cpuinfo": _cpus,
    "proc/diskstats": _diskstats,
    "proc/loadavg": _loadavg,
    "proc/meminfo": _meminfo,
    "proc/pressure/cpu": _pressure,
    "proc/pressure/io": _pressure,
    "proc/pressure/memory": _pressure,
    "proc/slabinfo": _slabinfo,
    "proc/stat": _stat,
    "proc/swaps": _swaps,
    "proc/uptime": _uptime,
    "sys/devices/system/cpu": _cpus,
}

_EXPLAINED = {name: _KNOWN.get(name, _other) for name in files.NAMES}

_INSTEAD = {
    "proc/cpuinfo": _AFFINITY,
    "proc/loadavg": _SYSINFO,
    "proc/meminfo": _SYSINFO,
    "proc/stat": _AFFINITY,
    "proc/swaps": _SYSINFO,
    "proc/uptime": _SYSINFO,
    "sys/devices/system/cpu": _AFFINITY,
}
