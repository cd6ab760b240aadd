"""What a running container is told by each way of asking, beside what is right."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Callable, NamedTuple, Optional

from lxcfs_py.attach.errors import AttachError
from lxcfs_py.attach.visits import Visits
from lxcfs_py.commands.sources import Subject, size
from lxcfs_py.linux import cpu_list, fork, syscalls
from lxcfs_py.views import meminfo, uptime

_MAX_BYTES = 1 << 20  # /proc/stat has a line for each CPU
_AT_ONCE = 30.0  # seconds between two looks, at the most
_ONLINE = "/sys/devices/system/cpu/online"


class Answer(NamedTuple):
    """What one way of asking says."""

    question: str
    way: str
    told: str
    right: str
    cure: str
    """What to switch on where it is not right."""

    @property
    def is_right(self) -> bool:
        """Tell whether it is told what is right."""
        return self.told == self.right


def answers(subject: Subject, unserved: Collection[str] = ()) -> Iterator[Answer]:
    """Yield what the container is told by each way. AttachError, OSError when it cannot be entered.

    Of files that nobody serves, paths of `unserved`, none is read.
    """
    init = subject.init
    container, host = subject.container, subject.host
    if container is None:
        raise AttachError(f"process {init} is in no container")
    paths = [path for path in _FIGURES if not any(f"{path}/".startswith(f"{covered}/") for covered in unserved)]
    read = _read_inside(init, subject.directories(), paths)
    attach = f"its files: lxcfs-py attach --pid {init}, or attach.auto for all"
    agent = "the agent for system calls, or the program's own option: docs/syscalls.md"

    memory = container.cgroup.memory
    if memory:
        total = meminfo.figures(container.cgroup, memory, host, subject.config)["MemTotal"]
        right = size(total >> 10 << 10)
        if "/proc/meminfo" in read:
            told = read["/proc/meminfo"]
            yield Answer("memory", "/proc/meminfo", "nothing" if told is None else size(told), right, attach)
        yield Answer("memory", "sysinfo(2), without the agent,", size(host.memory().total >> 10 << 10), right, agent)
    cpus = subject.visible().cpus
    right = str(len(cpus))
    for path in ("/proc/stat", _ONLINE):
        if path in read:
            yield Answer("CPUs", path, str(read[path]), right, attach)
    yield Answer("CPUs", "sched_getaffinity(2), without the agent,", str(len(os.sched_getaffinity(init))), right, agent)
    age = uptime.uptime(container, host, subject.config) / 1e9
    clock = "a time namespace with a boottime offset, where the engine makes one"
    if "/proc/uptime" in read:
        yield _age("/proc/uptime", read["/proc/uptime"], age, attach)
    booted = (host.now() + host.boottime_offset) / 1e9
    yield _age("clock_gettime(CLOCK_BOOTTIME)", booted, age, clock)


def _age(way: str, told: Optional[float], right: float, cure: str) -> Answer:
    """Return what is told of an age in seconds, beside what is right at about that time."""
    if told is not None and abs(told - right) < _AT_ONCE:
        told = right
    return Answer("age", way, "nothing" if told is None else _minutes(told), _minutes(right), cure)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


def _read_inside(pid: int, cgroups: Iterable[str], paths: Iterable[str]) -> dict[str, Any]:
    """Return what a process in a container reads at these paths, as _FIGURES has it. AttachError, OSError."""
    process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found: dict[str, Any] = Visits().one(lambda ask: _visit(process, cgroups, paths))
        return found
    finally:
        os.close(process)


# In a process of its own, and from setns on without imports: the files there are the container's.


def _visit(process: int, cgroups: Iterable[str], paths: Iterable[str]) -> Any:
    joins = [os.open(f"{directory}/cgroup.procs", os.O_WRONLY) for directory in cgroups]
    with contextlib.suppress(FileNotFoundError):  # before Linux 5.6
        syscalls.setns(os.open("ns/time", os.O_RDONLY, dir_fd=process), syscalls.CLONE_NEWTIME)
    namespaces = [os.open(f"ns/{kind}", os.O_RDONLY, dir_fd=process) for kind in ("pid", "mnt")]
    syscalls.setns(namespaces[0], syscalls.CLONE_NEWPID)
    syscalls.setns(namespaces[1], syscalls.CLONE_NEWNS)
    return {path: _FIGURES[path](_read_by_child(path, joins)) for path in paths}


def _memory(text: str) -> Optional[int]:
    words = text.split(None, 2)
    return int(words[1]) << 10 if len(words) > 1 and words[1].isdecimal() else None


def _cpu_lines(text: str) -> int:
    return max(sum(line.startswith("cpu") for line in text.splitlines()) - 1, 0)


def _listed(text: str) -> int:
    return len(cpu_list.parse(text.encode()))


def _first(text: str) -> Optional[float]:
    return float(text.split()[0]) if text else None


_FIGURES: dict[str, Callable[[str], Any]] = {
    "/proc/meminfo": _memory,
    "/proc/stat": _cpu_lines,
    "/proc/uptime": _first,
    _ONLINE: _listed,
}
"""What is wanted of each file's text, which is "" where it cannot be read; the text itself may be long."""


def _read_by_child(path: str, joins: Iterable[int]) -> str:
    """Read by a child, which is the first to be in the pid namespace, and in the cgroups for as long as that takes."""
    reader, writer = os.pipe()

    def read() -> int:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
        for cgroup in joins:
            os.write(cgroup, b"0")  # whoever writes this joins
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        left = _MAX_BYTES
        while left > 0 and (part := os.read(file, left)):
            left -= os.write(writer, part)
        return 0

    child = fork.start(read)
    os.close(writer)
    text = b""
    while part := os.read(reader, _MAX_BYTES):
        text += part
    os.close(reader)
    os.waitpid(child, 0)
    return text.decode("utf-8", "replace")
