"""All containers at a glance: what each sees, and what it uses of that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Optional

from lxcfs_py.attach import attach
from lxcfs_py.attach.running import cgroup
from lxcfs_py.cgroup import layout
from lxcfs_py.cgroup.layout import Paths
from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container, Containers, UnplacedError
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler
from lxcfs_py.daemon import control as daemon
from lxcfs_py.daemon.policies import applied
from lxcfs_py.linux.host import Host
from lxcfs_py.printable import printable
from lxcfs_py.runtimes.names import Names
from lxcfs_py.views import meminfo

_FILES_SECONDS = 10.0  # from one look at the mounts of all containers to the next

HISTORY = 16
"""Looks that a sparkline shows."""


@dataclass
class Row:
    """One container, as it is now."""

    name: str
    engine: str
    pid: int
    cpu: float
    """CPUs' worth of time that it uses."""

    cpus: float
    """CPUs' worth of time that it may use."""

    memory: int
    """Bytes that it sees in use."""

    memory_total: int
    swap: int
    load: float
    """Over a minute, counted from the first look on; 0 where no daemon answers."""

    io: float
    """Bytes a second."""

    pressure: float
    """The largest of its "some" averages over 10 s, in percent."""

    files: str
    """live, dead, none, or how many of them: "live 3, none 9"."""

    reads: float
    """Files that it reads of the daemon, each second."""

    history: list[float]
    """Of its CPU use as a share of what it may use, the latest last."""

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {key: value for key, value in asdict(self).items() if key != "history"}


@dataclass
class _Counters:
    clock: float
    paths: Paths
    """Of the cgroup that has these."""

    cpu: int
    io: int
    reads: int

    def rates_since(self, before: _Counters) -> tuple[float, float, float]:
        """Return CPUs, bytes and reads a second since a look before, none of which is negative.

        What was used of the CPUs is not known where init has been moved to another cgroup meanwhile.
        """
        seconds = max(self.clock - before.clock, 1e-3)
        cpu = max(self.cpu - before.cpu, 0) / 1e9 if self.paths == before.paths else 0.0
        io = max(self.io - before.io, 0)  # the counters of a disk go away with it
        return cpu / seconds, io / seconds, daemon.grown(before.reads, self.reads) / seconds


class Glance:
    """Looks at all containers again and again; what a second is comes from two looks."""

    def __init__(self, config: Config) -> None:
        """Look at the host's cgroups; OSError when that cannot be."""
        self._config = config
        self._host = Host()
        self._known = Containers(layout.find(), Ledger(), Sampler(config.loadavg.interval))
        self._before: dict[int, _Counters] = {}
        self._history: dict[int, list[float]] = {}
        self._files: dict[int, str] = {}
        self._looked = float("-inf")

    def rows(self) -> list[Row]:
        """Return the containers as of now."""
        if time.monotonic() - self._looked > _FILES_SECONDS:
            self._files = dict(self._look_at_files())
            self._looked = time.monotonic()
        told = self._told()
        names, rows, counters = Names(), [], {}
        for pid in self._files:
            with contextlib.suppress(UnplacedError, OSError, ValueError, ArithmeticError):  # it has ended
                container = self._known.placed(pid)
                if container is not None:
                    counters[pid] = self._count(container, told.get(pid))
                    rows.append(self._row(pid, container, counters[pid], told.get(pid), names))
        self._before = counters
        return rows

    def _row(self, pid: int, container: Container, now: _Counters, told: Optional[dict[str, Any]], names: Names) -> Row:
        path = cgroup(pid)
        identity = names.of(path)
        config = applied(container, self._config)
        visible = visible_cpus.visible(container.cgroup, self._host, config.cpu)
        cpus = visible.worth()
        cpu, io, reads = now.rates_since(self._before.get(pid, now))
        history = [*self._history.get(pid, []), min(cpu / cpus, 1.0)][-HISTORY:]
        self._history[pid] = history
        memory = container.cgroup.memory
        amounts = meminfo.figures(container.cgroup, memory, self._host, config) if memory else {}
        total = amounts.get("MemTotal", 0)
        return Row(
            name=printable(identity.name if identity else path),
            engine=identity.engine if identity else "",
            pid=pid,
            cpu=cpu,
            cpus=cpus,
            memory=total - amounts.get("MemAvailable", 0),
            memory_total=total,
            swap=amounts.get("SwapTotal", 0) - amounts.get("SwapFree", 0),
            load=told["load"] if told else 0.0,
            io=io,
            pressure=max(_pressure(container, resource) for resource in ("cpu", "memory", "io")),
            files=self._files[pid],
            reads=reads,
            history=history,
        )

    def _count(self, container: Container, told: Optional[dict[str, Any]]) -> _Counters:
        cpu = sum(container.cgroup.cpu_time.usage()) if container.cgroup.cpu_time else 0
        devices = container.cgroup.io.stat().values() if container.cgroup.io else ()
        io = sum(device.get(key, 0) for device in devices for key in (b"rbytes", b"wbytes"))
        return _Counters(time.monotonic(), container.paths, cpu, io, told["reads"] if told else 0)

    def _told(self) -> dict[int, dict[str, Any]]:
        """Return what the daemon tells of each container, nothing where there is no daemon."""
        try:
            told = daemon.ask(self._config.mountpoint, loads=list(self._files))
        except (daemon.NotRunningError, daemon.NotAnsweringError):
            return {}
        return {each["pid"]: each for each in told["containers"]}

    def _look_at_files(self) -> Iterator[tuple[int, str]]:
        for container in attach.status(self._config.mountpoint, self._config.files.enabled):
            if not container.within:
                states = list(container.files.values())
                counts = {state: states.count(state) for state in dict.fromkeys(states)}
                several = ", ".join(f"{state} {count}" for state, count in counts.items())
                yield container.pid, next(iter(counts)) if len(counts) == 1 else several or "unknown"


def _pressure(container: Container, resource: str) -> float:
    text = None
    with contextlib.suppress(OSError):  # switched off
        text = container.cgroup.pressure.read(resource) if container.cgroup.pressure else None
    return float(text.partition(b"avg10=")[2].split(None, 1)[0]) if text else 0.0
