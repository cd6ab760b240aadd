"""One container under one load is asked the same questions in every way that a mount answers.

The answers are held against each other and against the cgroup. It is what `lxcfs-py selftest` prints.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from lxcfs_py import files
from lxcfs_py.cgroup import Cgroup, Memory, open_cgroup
from lxcfs_py.cgroup.layout import find
from lxcfs_py.config import Config, Files
from lxcfs_py.container import processes
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import TICKS, Host
from lxcfs_py.runtimes.sandbox import Sandbox

MEMORY = 256 << 20
QUOTA = 0.5
_LOAD_SECONDS = 3

# Runs in the container while it is busy, by the interpreter alone: prints the texts of all files that are there, by
# their paths, and by paths below them what else was asked of them.
_PROBE = """
import contextlib, glob, json, mmap, os, sys, time
with contextlib.suppress(OSError):  # such as that of a tmpfs: something is read from a disk, where it can be
    os.preadv(os.open(sys.executable, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 1 << 16)], 0)
texts = {}
patterns = ["/proc/*", "/proc/pressure/*", "/sys/devices/system/cpu/*", "/sys/devices/system/cpu/cpu*/topology/*",
            "/sys/devices/system/node/node*/cpulist", "/sys/block/*/stat"]
for path in sorted(path for pattern in patterns for path in glob.glob(pattern)):
    if os.path.isfile(path) and not path.startswith(("/proc/k", "/proc/sys")):
        try:
            with open(path, "rb") as file:
                texts[path] = file.read(1 << 20).decode(errors="replace")
        except OSError:
            pass
        if path == "/proc/uptime":
            texts["clock since boot"] = str(time.clock_gettime(time.CLOCK_BOOTTIME))
with open("/proc/meminfo", "rb", buffering=0) as file:
    texts["/proc/meminfo/by bytes"] = b"".join(iter(lambda: file.read(1), b"")).decode()
texts["/sys/devices/system/cpu"] = " ".join(os.listdir("/sys/devices/system/cpu"))
texts["own pid"] = str(os.getpid())
texts["own start"] = open("/proc/self/stat").read().rpartition(") ")[2].split()[19]
print(json.dumps(texts))
"""

_BUSY = """
block = bytearray(32 << 20)
while True: pass
"""


@dataclass(frozen=True)
class Question:
    """A question, what is right, and the answer by each way that it can be asked; None where a way does not exist.

    Where nobody knows what is right, that is None, and the text says why.
    """

    text: str
    right: Any
    answers: Mapping[str, Any]
    tolerance: float = 0.0
    """By how much an answer may differ from what is right: both are not read in the same instant."""

    def wrong(self) -> list[str]:
        """Return the ways whose answers are wrong; none where nobody knows."""
        if self.right is None:
            return []
        return [way for way, answer in self.answers.items() if answer is not None and not self._is_right(answer)]

    def _is_right(self, answer: Any) -> bool:
        if isinstance(self.right, (int, float)) and isinstance(answer, (int, float)):
            return abs(answer - self.right) <= self.tolerance
        return bool(answer == self.right)


Configured = Callable[[int], Config]
"""Returns the configuration that holds for the container with this init."""


def ask(mountpoint: Path, configured: Optional[Configured] = None) -> list[Question]:
    """Return the questions that a mount's files answer, with the answers. SandboxError where no container can be made.

    Without `configured`, as of another lxcfs, all are asked, and what is right by default is right.
    """
    cpu = max(os.sched_getaffinity(0))
    with Sandbox(memory=MEMORY, swap=None, cpus=QUOTA, cpuset=str(cpu), views=mountpoint) as box:
        box.popen([sys.executable, "-I", "-c", _BUSY], start_new_session=True)  # a Ctrl-C is not for it
        cgroup = open_cgroup(find(), processes.container_paths(box.init, processes.read(box.init, "cgroup")))
        init = processes.start_time(processes.read(box.init, "stat")) / 1e9
        config = configured(box.init) if configured else Config(files=Files(files.NAMES))
        first = _probe(box, config)
        time.sleep(_LOAD_SECONDS)
        started, least, io = time.time(), _seconds(cgroup), _counted(cgroup)
        texts = _probe(box, config)
        io_since = _counted(cgroup)
        questions = [
            *_memory(texts, cgroup, config),
            *_cpus(texts, cpu),
            *_time(texts, init, started, config),
            *_cpu_time(first, texts, least, _seconds(cgroup), config),
            *_tasks(texts, cgroup),
            *_disk(texts, io, io_since),
            *_pressure(texts, cgroup),
        ]
        return [each for each in questions if each.right is None or any(a is not None for a in each.answers.values())]


def _probe(box: Sandbox, config: Config) -> dict[str, str]:
    """Return the texts of the files that are the container's by its configuration, and those that are the kernel's."""
    texts: dict[str, str] = json.loads(box.run([sys.executable, "-I", "-c", _PROBE], check=True).stdout)
    hosts = set(files.NAMES).difference(config.files.enabled)
    if not config.loadavg.enabled:
        hosts.add("proc/loadavg")
    return {path: text for path, text in texts.items() if not any(f"{path}/".startswith(f"/{name}/") for name in hosts)}


def _memory(texts: Mapping[str, str], cgroup: Cgroup, config: Config) -> Iterator[Question]:
    if "/proc/meminfo" not in texts:
        return
    meminfo, slowly = (_fields(texts[name]) for name in ("/proc/meminfo", "/proc/meminfo/by bytes"))
    yield Question(
        "How much memory is there, in KiB?",
        MEMORY >> 10,
        {"meminfo": meminfo["MemTotal"], "meminfo, read by bytes": slowly["MemTotal"]},
    )
    yield Question(
        "Which lines has meminfo?", list(_fields(Path("/proc/meminfo").read_text())), {"meminfo": list(meminfo)}
    )
    memory = cgroup.memory
    if memory:
        stat = memory.stat()
        used = (stat["AnonPages"] + stat.get("Slab", 0)) >> 10
        yield Question(
            "How much memory is used by programs, in KiB?",
            used,
            {
                "MemTotal - MemAvailable": meminfo["MemTotal"] - meminfo["MemAvailable"],
                "MemTotal - MemFree - Buffers - Cached": meminfo["MemTotal"]
                - meminfo["MemFree"]
                - meminfo["Buffers"]
                - meminfo["Cached"]
                - meminfo["SReclaimable"],
                "AnonPages": meminfo["AnonPages"],
            },
            tolerance=16 << 10,
        )
        yield from _swap(texts, meminfo, memory, config)


def _swap(texts: Mapping[str, str], meminfo: Mapping[str, int], memory: Memory, config: Config) -> Iterator[Question]:
    host, (room, used) = Host().memory(), memory.swap()
    total = min(room.limit, host.swap_total) if config.memory.swap else 0
    # What others use of it cannot be used once more.
    used = max(used, total - min(room.free, host.swap_free)) if total else 0
    sizes = {"meminfo": meminfo["SwapTotal"]}
    uses = {"meminfo": meminfo["SwapTotal"] - meminfo["SwapFree"]}
    if "/proc/swaps" in texts:
        areas = [line.split() for line in texts["/proc/swaps"].splitlines()[1:]]
        sizes["swaps"], uses["swaps"] = (sum(int(area[column]) for area in areas) for column in (2, 3))
    yield Question("How much swap is there, in KiB?", total >> 10, sizes)
    yield Question("How much of it is used, in KiB?", used >> 10, uses, 1 << 10)


def _cpus(texts: Mapping[str, str], cpu: int) -> Iterator[Question]:
    listed = {
        f"sys/devices/system/cpu/{name}": _list(texts.get(f"/sys/devices/system/cpu/{name}"))
        for name in ("online", "present", "possible")
    }
    names = texts.get("/sys/devices/system/cpu")
    nodes = [_list(text) or [] for path, text in texts.items() if path.startswith("/sys/devices/system/node/")]
    yield Question(
        "Which CPUs are there?",
        [cpu],
        {
            "cpuinfo": _numbers(r"^processor\s*: (\d+)", texts.get("/proc/cpuinfo")),
            "stat": _numbers(r"^cpu(\d+) ", texts.get("/proc/stat")),
            **listed,
            "sys/devices/system/cpu, its names": _numbers(r"(?<!\S)cpu(\d+)(?!\S)", names),
            "sys/devices/system/node": sorted(cpu for node in nodes for cpu in node) if nodes else None,
        },
    )
    topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
    yield Question(
        "Which CPUs share its package and its core?",
        [cpu],
        {
            name: _list(texts.get(f"{topology}/{name}"))
            for name in ("package_cpus_list", "core_cpus_list", "core_siblings_list", "thread_siblings_list")
        },
    )
    siblings = re.search(r"^siblings\s*: (\d+)", texts.get("/proc/cpuinfo", ""), re.M)
    yield Question("How many CPUs has its package?", 1, {"cpuinfo": int(siblings[1]) if siblings else None})


def _time(texts: Mapping[str, str], init: float, started: float, config: Config) -> Iterator[Question]:
    boottime = float(texts["clock since boot"])
    stat = texts.get("/proc/stat")
    up, idle = map(float, texts["/proc/uptime"].split()) if "/proc/uptime" in texts else (None, None)
    if config.uptime.source == "host":
        yield Question("How old is the host, in seconds?", boottime, {"uptime": up}, tolerance=2)
    else:
        yield Question("How old is the container, in seconds?", boottime - init, {"uptime": up}, tolerance=2)
    if stat is None:
        return
    btime = int(_line(stat, "btime")[0])
    yield Question(
        "When did a program start, in seconds since 1970?",
        started,
        {"btime and its start time": btime + int(texts["own start"]) / TICKS},
        tolerance=3,
    )
    idle_ticks = int(_line(stat, "cpu")[3])
    yield Question("How long was it idle, in seconds?", idle_ticks / TICKS, {"uptime": idle}, tolerance=1)


def _seconds(cgroup: Cgroup) -> tuple[float, float]:
    """Return the user and system time that a cgroup has used."""
    user, nice, system = cgroup.cpu.usage() if cgroup.cpu else (0, 0, 0)
    return (user + nice) / 1e9, system / 1e9


def _cpu_time(
    first: Mapping[str, str],
    texts: Mapping[str, str],
    least: tuple[float, float],
    most: tuple[float, float],
    config: Config,
) -> Iterator[Question]:
    """Ask for what was used, which the cgroup told before and after the container was asked."""
    if "/proc/stat" not in texts:
        return
    total = [int(word) for word in _line(texts["/proc/stat"], "cpu")]
    before = [int(word) for word in _line(first["/proc/stat"], "cpu")]
    cpus = [list(map(int, line.split()[1:])) for line in re.findall(r"^cpu\d.*", texts["/proc/stat"], re.M)]
    yield Question("Is the total of the CPUs their sum?", [sum(column) for column in zip(*cpus)], {"stat": total})
    for name, low, high, ticks in zip(("user", "system"), least, most, (total[0] + total[1], total[2])):
        right, tolerance = (low + high) / 2, (high - low) / 2 + 0.1
        yield Question(f"How much {name} time was used, in seconds?", right, {"stat": ticks / TICKS}, tolerance)
    busy = sum(total[:3]) - sum(before[:3])
    share = busy / max(busy + total[3] - before[3], 1)
    passed = float(texts["clock since boot"]) - float(first["clock since boot"])
    may_use = passed if config.cpu.mode == "cpuset" else passed * QUOTA
    right = min(busy / TICKS / may_use, 1.0)
    yield Question("What part of the time that it may use is used?", right, {"stat": share}, right / 5)


def _tasks(texts: Mapping[str, str], cgroup: Cgroup) -> Iterator[Question]:
    stat, loadavg = texts.get("/proc/stat"), texts.get("/proc/loadavg")
    running, tasks = map(int, loadavg.split()[3].split("/")) if loadavg else (None, None)
    in_stat = int(_line(stat, "procs_running")[0]) if stat else None
    yield Question("How many tasks run?", 2, {"loadavg": running, "stat": in_stat}, 1)
    if cgroup.tasks:
        # The one that asked has ended.
        yield Question("How many tasks are there?", cgroup.tasks.states()[2] + 1, {"loadavg": tasks}, tolerance=1)
    last = int(loadavg.split()[4]) if loadavg else None
    yield Question("Which is the latest pid?", int(texts["own pid"]), {"loadavg": last})


def _pressure(texts: Mapping[str, str], cgroup: Cgroup) -> Iterator[Question]:
    for resource in ("cpu", "io", "memory"):
        own = cgroup.pressure.read(resource) if cgroup.pressure else None
        shown_text = texts.get(f"/proc/pressure/{resource}")
        if own and shown_text:
            kinds = re.findall(r"^\w+", own.decode(), re.M)
            yield Question(f"Which lines has pressure/{resource}?", kinds, {"": re.findall(r"^\w+", shown_text, re.M)})


_Counted = Mapping[bytes, Mapping[bytes, int]]


def _counted(cgroup: Cgroup) -> _Counted:
    """Return what a cgroup has counted of each disk."""
    return cgroup.io.stat() if cgroup.io else {}


def _disk(texts: Mapping[str, str], least: _Counted, most: _Counted) -> Iterator[Question]:
    """Ask of the disk that the container used most what was read and written, in requests and sectors of each.

    The cgroup told that before and after the container was asked.
    """
    figures = {line.split()[2]: line.split()[3:] for line in texts.get("/proc/diskstats", "").splitlines()}
    figures.update((path, text.split()) for path, text in texts.items() if path.startswith("/sys/block/"))
    if not figures:
        return
    device, counts = max(most.items(), key=lambda each: sum(each[1].values()), default=(b"", {}))
    if not any(counts.values()):
        yield Question("What did its disk do? The kernel has counted no I/O of its cgroup", None, {})
        return
    disk = os.path.basename(os.path.realpath(f"/sys/dev/block/{device.decode()}"))
    ways = {"diskstats": disk.replace("!", "/"), f"sys/block/{disk}/stat": f"/sys/block/{disk}/stat"}
    told = {way: [int(each) for each in figures[key][:8:2]] if key in figures else None for way, key in ways.items()}
    low, high = _requests_and_sectors(least.get(device, {})), _requests_and_sectors(counts)
    first = next(filter(None, told.values()), high)
    yield Question(f"What did {disk} do?", [min(max(each), top) for *each, top in zip(first, low, high)], told)


def _requests_and_sectors(counts: Mapping[bytes, int]) -> list[int]:
    """Return those read and those written."""
    return [
        counts.get(kind + what, 0) // size for kind in (b"r", b"w") for what, size in ((b"ios", 1), (b"bytes", 512))
    ]


def _fields(meminfo: str) -> dict[str, int]:
    """Parse /proc/meminfo: KiB, or numbers."""
    return {line.split(":")[0]: int(line.split()[1]) for line in meminfo.splitlines()}


def _line(text: str, name: str) -> list[str]:
    return next(line.split()[1:] for line in text.splitlines() if line.split()[0] == name)


def _numbers(pattern: str, text: Optional[str]) -> Optional[list[int]]:
    return None if text is None else [int(number) for number in re.findall(pattern, text, re.M)]


def _list(text: Optional[str]) -> Optional[list[int]]:
    return None if text is None else list(cpu_list.parse(text.encode()))
