"""A container's CPU time, as counters that never go down while it lives.

What a CPU was used for comes from the kernel's cumulative counters, and its idle time is what is left of the
container's age: so a restarted daemon goes on where the old one was. When the container is shown other CPUs than
before (a changed quota or cpuset), the counters are carried over: a CPU that stays goes on from where it is, a new one
starts at zero, and what a vanished one had counted is shared out among the others. What is carried is kept in a file.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any, NamedTuple, Optional

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.linux.host import NS_PER_TICK

log = logging.getLogger(__name__)

_MAX_KEPT = 4096

# The ledger is not written anew for fewer lines that are out of date.
_FEW_LINES = 64


class Times(NamedTuple):
    """What a CPU did, all in nanoseconds or all in ticks."""

    user: int
    system: int
    idle: int


_NONE = Times(0, 0, 0)

_updating = threading.Lock()


class Ledger:
    """What must be carried for which container, in a file that outlives the daemon; in memory alone without a path.

    A line of the file is a container and what it has now, or null; it replaces what lines above say of that container.
    """

    def __init__(self, path: Optional[str] = None) -> None:
        self._path = path
        self._kept: dict[str, Any] = {}
        self._lines = 0
        if path:
            try:
                with open(path, "rb") as file:
                    for line in file:
                        container, kept = json.loads(line)
                        self._note(container, kept)
            except FileNotFoundError:
                pass
            except (OSError, ValueError, TypeError) as error:
                log.warning("%s cannot be read (%s): CPU counters of running containers start anew", path, error)
            self._write_all()

    def get(self, container: str) -> tuple[Visible, list[Times]] | None:
        """Return the CPUs a container was last shown and what is added to each, None when that is not known."""
        try:
            cpus, numbers, whole, carried = self._kept[container]
            visible = Visible(tuple(map(int, cpus)), tuple(map(int, numbers)), bool(whole))
            times = [Times(*map(int, figures)) for figures in carried]
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return (visible, times) if 0 < len(visible.cpus) == len(visible.numbers) == len(times) else None

    def put(self, container: str, visible: Visible, carried: list[Times]) -> None:
        """Keep what is carried for a container."""
        self._write(container, (*visible, carried))

    def drop(self, container: str) -> None:
        """Forget a container that has ended."""
        if container in self._kept:
            self._write(container, None)

    def _note(self, container: str, kept: Any) -> None:
        self._kept.pop(container, None)
        if kept is not None:
            while len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[container] = kept

    def _write(self, container: str, kept: Any) -> None:
        self._note(container, kept)
        if not self._path:
            return
        self._lines += 1
        if self._lines > 2 * len(self._kept) + _FEW_LINES:
            self._write_all()
            return
        try:
            with open(self._path, "a") as file:
                file.write(_line(container, kept))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _write_all(self) -> None:
        """Write the file anew, without the lines that are out of date."""
        self._lines = len(self._kept)
        try:
            with open(f"{self._path}.new", "w") as file:
                file.writelines(map(_line, self._kept.keys(), self._kept.values()))
            os.replace(f"{self._path}.new", str(self._path))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)


def _line(container: str, kept: Any) -> str:
    return json.dumps((container, kept)) + "\n"


class Account:
    """One container's counters."""

    __slots__ = ("_carried", "_container", "_ledger", "_shown", "_visible")

    def __init__(self, ledger: Ledger, container: str) -> None:
        self._ledger = ledger
        self._container = container
        self._visible: Optional[Visible] = None
        self._carried: list[Times] = []
        self._shown: list[Times] = []

    def read(self, cgroup: Cgroup, visible: Visible, age: int) -> list[Times]:
        """Return the ticks that each visible CPU has counted; `age` is the container's, in nanoseconds."""
        counted = _count(cgroup, visible, age)
        with _updating:
            if visible != self._visible:
                self._change(cgroup, visible, counted, age)
            self._shown = [
                # The clock and the counters are not read at the same instant: a counter may seem to step back a little.
                Times(
                    max((now.user + more.user) // NS_PER_TICK, last.user),
                    max((now.system + more.system) // NS_PER_TICK, last.system),
                    max((now.idle + more.idle) // NS_PER_TICK, last.idle),
                )
                for now, more, last in zip(counted, self._carried, self._shown)
            ]
            return self._shown

    def close(self) -> None:
        """Forget what is kept for the container, which has ended."""
        with _updating:
            self._ledger.drop(self._container)

    def _change(self, cgroup: Cgroup, visible: Visible, counted: list[Times], age: int) -> None:
        """Carry the counters over to other CPUs."""
        shown: dict[int, Times] = {}
        kept = (self._visible, self._carried) if self._visible else self._ledger.get(self._container)
        if kept is None:
            # A cgroup that is older than its container's init may have used more than that one's age.
            carried = [Times(0, 0, max(0, -now.idle)) for now in counted]
        elif kept[0] == visible:
            carried = kept[1]
        else:
            before, more = kept
            shown = dict(zip(before.numbers, self._shown))
            times = {
                number: _at_least(_add(now, more), shown.get(number, _NONE))
                for number, now, more in zip(before.numbers, _count(cgroup, before, age), more)
            }
            gone = [times[number] for number in times if number not in visible.numbers]
            carried = [
                _add(share, _subtract(times.get(number, _NONE), now))
                for number, now, share in zip(visible.numbers, counted, _shares(gone, len(counted)))
            ]
        self._shown = [shown.get(number, _NONE) for number in visible.numbers]
        self._visible, self._carried = visible, carried
        if kept != (visible, carried):
            self._ledger.put(self._container, visible, carried)


def _count(cgroup: Cgroup, visible: Visible, age: int) -> list[Times]:
    """Return nanoseconds for each visible CPU; idle is negative where more was used than there was time for."""
    per_cpu = cgroup.cpu.usage_per_cpu() if cgroup.cpu and visible.whole else None
    if per_cpu is not None:
        used = [per_cpu.get(cpu, (0, 0)) for cpu in visible.cpus]
        return [Times(user, system, age - user - system) for user, system in used]
    user, system = cgroup.cpu.usage() if cgroup.cpu else (0, 0)
    user //= len(visible.cpus)
    system //= len(visible.cpus)
    return [Times(user, system, age - user - system)] * len(visible.cpus)


def _shares(gone: list[Times], count: int) -> list[Times]:
    """Share out what CPUs have counted, in whole ticks: of fractions, some would be lost to the sum that is shown."""
    ticks = [sum(column) // NS_PER_TICK for column in zip(*gone)] if gone else _NONE
    return [Times(*((each + number) // count * NS_PER_TICK for each in ticks)) for number in range(count)]


def _add(a: Times, b: Times) -> Times:
    return Times(a.user + b.user, a.system + b.system, a.idle + b.idle)


def _subtract(a: Times, b: Times) -> Times:
    return Times(a.user - b.user, a.system - b.system, a.idle - b.idle)


def _at_least(counted: Times, shown: Times) -> Times:
    """Return nanoseconds that are no less than the ticks which were shown."""
    return Times(*(max(now, last * NS_PER_TICK) for now, last in zip(counted, shown)))
