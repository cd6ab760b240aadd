"""A container's CPU time, as counters that never go down while it lives.

What its CPUs were used for comes from the kernel's cumulative counters, and idle time is what is left of the time that
it may use: all of its age, or what its quota allows and others have left of that. So a container that uses all that it
may is 100 % busy. Counting goes on from a `Mark`: a new one is made when the container is shown other CPUs, has another
quota or is in another cgroup. The latest is kept in a file, so that a restarted daemon goes on where the old one was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

from lxcfs_py.cgroup import Cgroup
from lxcfs_py.cgroup.layout import Paths
from lxcfs_py.cgroup.tree import NOTHING_USED, Quota, Used
from lxcfs_py.container.eviction import choose
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.linux import cpu_list, regular_file, roots
from lxcfs_py.linux.host import NS_PER_TICK

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_MAX_KEPT = 4096
_MAX_LINE = 1 << 20

# The ledger is not written anew for fewer lines that are out of date.
_FEW_LINES = 64

# By how much a container may be ahead of its quota for a moment: that of two periods, the end of one and the beginning
# of the next; of two of the kernel's usual where they are shorter. What it used beyond that (by cpu.max.burst, or for
# the kernel's own inexactness) is never made up for, and so must not delay the idle time that follows.
_PERIODS_AHEAD = 2
_USUAL = Quota(0)  # of the period and the level


# What a CPU did: user, nice, system and idle time. Plain tuples are made in a tenth of the time, at each read.
Nanoseconds = tuple[int, int, int, int]
Ticks = tuple[int, ...]


class Mark(NamedTuple):
    """Where counting goes on from, all in nanoseconds."""

    cgroup: str
    """The path of the cgroup whose counters these are."""

    visible: Visible
    start: int
    """When the container was started, since boot."""

    age: int
    """The container's, without what the machine was suspended for since it was first seen."""

    used: list[Used]
    """What the kernel had counted for each visible CPU by then."""

    times: dict[int, Nanoseconds]
    """What was shown then, of each CPU that was ever visible."""

    asleep: Optional[int] = None
    """For how long the machine had been suspended since boot when the container was first seen; None: not known."""

    taken: int = 0
    """What others had used by then of the time that the quota is for."""


_Counted = tuple[list[Used], int]
"""What the kernel has counted: for each visible CPU, and of the time that the quota is for, what others have used, in
nanoseconds; 0 where the quota is the container's alone."""

_NONE: Nanoseconds = (0, 0, 0, 0)

_NOT_A_CPU = -1
"""From here on down, the numbers of CPUs in the ledger stand for what 0.2 did not keep: for how long the machine had
been suspended and, with a quota, what others had taken of it, its period and its level. To a version that does not know
this, which may be gone back to, each is one more CPU that has vanished and had done nothing."""

_updating = threading.Lock()


@dataclass
class _Entry:
    """A container in the ledger, as one that may be forgotten."""

    paths: Paths
    checked: float
    """The place in the order in which they were written."""

    container: str


class Ledger:
    """The latest mark of each container, in a file that outlives the daemon; in memory alone without a path.

    A line of the file is a container and what it has now, or null; it replaces what lines above say of that container.
    """

    def __init__(self, path: Optional[str] = None) -> None:
        self._path = path
        self._kept: dict[str, bytes] = {}  # the line of each: as objects, they would take five times the memory
        self._cgroups: dict[str, str] = {}  # the path in each line, since parsing all of them takes long
        self._lines = 0
        if path:
            try:
                with open(path, "rb", opener=regular_file.opener) as lines:
                    for line in iter(lambda: lines.readline(_MAX_LINE), b""):
                        container, kept = json.loads(line)
                        self._note(container, None if kept is None else line.strip() + b"\n", _cgroup(kept))
            except FileNotFoundError:
                pass
            except Exception as error:  # whatever is in it, it keeps nobody from serving
                log.warning("%s cannot be read (%s): CPU counters of running containers start anew", path, error)
            self._write_all()

    def get(self, container: str) -> Optional[Mark]:
        """Return the latest mark of a container, None when none is known."""
        try:
            _, (cgroup, (cpus, quota, whole), start, age, used, all_times) = json.loads(self._kept[container])
            times = {
                int(cpu): (int(user), int(nice), int(system), int(idle)) for cpu, user, nice, system, idle in all_times
            }
            later = [_NOT_A_CPU - int(cpu) for cpu, *_ in all_times if cpu < 0]
            taken, period, level = later[1:4] if len(later) >= 4 else (0, _USUAL.period, _USUAL.level)
            mark = Mark(
                str(cgroup),
                Visible(
                    tuple(map(int, cpus)),
                    None if quota is None else Quota(_finite(quota), period, level),
                    bool(whole),
                ),
                int(start),
                int(age),
                [(int(user), int(nice), int(system)) for user, nice, system in used],
                {cpu: had for cpu, had in times.items() if cpu >= 0},
                later[0] if later else None,
                taken,
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return None
        known = 0 < len(mark.visible.cpus) == len(mark.used) and mark.times.keys() >= set(mark.visible.cpus)
        return mark if known else None

    def put(self, container: str, mark: Mark) -> None:
        """Keep the latest mark of a container."""
        cpus, quota, whole = mark.visible
        shown = [(cpu, *times) for cpu, times in mark.times.items()]
        if mark.asleep is not None:
            later = [max(mark.asleep, 0)]  # two clocks tell it, one after the other
            if quota is not None:
                later += mark.taken, quota.period, quota.level
            shown += [(_NOT_A_CPU - number, *_NONE) for number in later]
        visible = cpus, quota.cpus if quota else None, whole
        line = _line(container, (mark.cgroup, visible, mark.start, mark.age, mark.used, shown))
        self._note(container, line, mark.cgroup)
        self._write(line)

    def drop(self, container: str) -> None:
        """Forget a container that has ended."""
        if container in self._kept:
            self._note(container, None)
            self._write(_line(container, None))

    def _note(self, container: str, line: Optional[bytes], cgroup: str = "") -> None:
        self._forget(container)
        if line is not None:
            if len(self._kept) >= _MAX_KEPT:
                entries = [_Entry({"": self._cgroups[name]}, place, name) for place, name in enumerate(self._kept)]
                for entry in choose(entries):
                    self._forget(entry.container)
            self._kept[container] = line
            self._cgroups[container] = cgroup

    def _forget(self, container: str) -> None:
        self._kept.pop(container, None)
        self._cgroups.pop(container, None)

    def _write(self, line: bytes) -> None:
        if not self._path:
            return
        self._lines += 1
        if self._lines > 2 * len(self._kept) + _FEW_LINES:
            self._write_all()
            return
        try:
            with open(self._path, "ab", opener=regular_file.opener) as file:
                file.write(line)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _write_all(self) -> None:
        """Write the file anew, without the lines that are out of date."""
        self._lines = len(self._kept)
        try:
            regular_file.replace(str(self._path), b"".join(self._kept.values()))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error.strerror)


def _finite(number: Any) -> float:
    """Return a number of the file as a float. ValueError for one that is not finite."""
    if not math.isfinite(number):
        raise ValueError(number)
    return float(number)


def _cgroup(kept: Any) -> str:
    """Return the path of the cgroup in what the file has of a container, which may be anything."""
    return str(kept[0]) if isinstance(kept, list) and kept else ""


def _line(container: str, kept: Any) -> bytes:
    return json.dumps((container, kept)).encode() + b"\n"


class Account:
    """One container's counters."""

    __slots__ = ("_age", "_asleep", "_cgroup", "_container", "_ledger", "_looked", "_mark", "_times", "start")

    def __init__(self, ledger: Ledger, container: str, start: int = 0) -> None:
        """Take the name by which the counters are kept, and when the container was started, in nanoseconds since boot.

        `start` is an earlier time afterwards where the process that began it is gone, and a daemon has seen it.
        """
        kept = ledger.get(container)
        self.start = min(kept.start, start) if kept else start
        self._asleep = kept.asleep if kept else None
        self._ledger = ledger
        self._container = container
        self._cgroup: Optional[Cgroup] = None
        self._mark: Optional[Mark] = None
        self._looked = 0.0
        self._age = 0  # the container's, when it was looked at last
        self._times: dict[int, Nanoseconds] = {}  # what was shown then, of each CPU that was ever visible

    def has_counted(self) -> bool:
        """Tell whether counters of the container's own have been shown, by a daemon before this one too."""
        return self._mark is not None or self._ledger.get(self._container) is not None

    def read(self, cgroup: Cgroup, visible: Visible, age: int, asleep: int = 0) -> tuple[Ticks, Sequence[Ticks]]:
        """Return what all CPUs have counted that the container has ever been shown, and each that is visible now.

        `age` is the container's, and `asleep` for how long the machine was suspended since boot, in nanoseconds.
        """
        age = self._awake(age, asleep)
        counted = _count(cgroup, visible)
        with _updating:
            self._count_on(cgroup, visible, counted, age)
            shown: dict[int, Ticks] = {
                cpu: (user // NS_PER_TICK, nice // NS_PER_TICK, system // NS_PER_TICK, idle // NS_PER_TICK)
                for cpu, (user, nice, system, idle) in self._times.items()
            }
        return tuple(map(sum, zip(*shown.values()))), [shown[cpu] for cpu in visible.cpus]

    def idle(self, cgroup: Cgroup, look: Callable[[], Visible], age: int, asleep: int = 0) -> int:
        """Return the idle time of all that `read` returns.

        It costs less: at which CPUs the container has is looked once a second.
        """
        mark = self._mark
        if mark is not None and cgroup is self._cgroup and time.monotonic() - self._looked < _LOOK_SECONDS:
            visible = mark.visible
        else:
            visible = look()
            self._looked = time.monotonic()
        age = self._awake(age, asleep)
        counted = _count(cgroup, visible)
        with _updating:
            self._count_on(cgroup, visible, counted, age)
            return sum([idle // NS_PER_TICK for _, _, _, idle in self._times.values()])

    def _awake(self, age: int, asleep: int) -> int:
        """Return the age without what the machine was suspended for meanwhile: its CPUs were not even idle then."""
        if self._asleep is None:
            self._asleep = asleep
        return age - (asleep - self._asleep)

    def close(self) -> None:
        """Forget what is kept for the container, which has ended."""
        with _updating:
            self._ledger.drop(self._container)

    def _count_on(self, cgroup: Cgroup, visible: Visible, counted: _Counted, age: int) -> None:
        mark = self._mark
        if mark is None or visible != mark.visible or cgroup is not self._cgroup:
            mark = self._change(cgroup, visible, counted, age)
        if not self._advance(mark, counted, age):
            self._set_mark(mark._replace(age=age, used=counted[0], times=dict(self._times), taken=counted[1]))

    def _advance(self, mark: Mark, counted: _Counted, age: int) -> bool:
        """Count on from a mark; return False if idle time has to be counted from a new one.

        No counter steps back: a container may be ahead of its quota, the kernel's counters and the clock are not read
        at the same instant, and nice time is counted in another way than user time, which it is a part of.
        """
        cpus, quota, _ = mark.visible
        used, taken = counted
        shown, base = self._times, mark.times
        passed, since = age - mark.age, age - self._age
        times, more = [], []  # of each CPU, and how much idle time it gets
        room = since  # for idle time since the last look, on the busiest CPU
        for cpu, (user_now, nice_now, system_now), (user_then, nice_then, system_then) in zip(cpus, used, mark.used):
            user0, nice0, system0, idle0 = base[cpu]
            least_user, least_nice, least_system, idle = shown[cpu]
            user = user0 + user_now - user_then
            nice = nice0 + nice_now - nice_then
            system = system0 + system_now - system_then
            if user < least_user:
                user = least_user
            if nice < least_nice:
                nice = least_nice
            if system < least_system:
                system = least_system
            times.append((user, nice, system, idle))
            busy = user + nice + system
            more.append(passed + user0 + nice0 + system0 + idle0 - busy - idle)
            its_room = since + least_user + least_nice + least_system - busy
            if its_room < room:
                room = its_room
        least, uneven = min(more), False
        if quota is not None:
            left = sum(more) - int(passed * (len(cpus) - quota.cpus)) - (taken - mark.taken)
            least = left // len(cpus)
            uneven = least > 0 and least > room
            if uneven:
                rooms = [since + sum(shown[cpu][:3]) - sum(each[:3]) for cpu, each in zip(cpus, times)]
                more = _divided(left, rooms)
            else:
                more = [least] * len(cpus)
        for cpu, (user, nice, system, idle), idle_more in zip(cpus, times, more):
            shown[cpu] = (user, nice, system, idle + idle_more if idle_more > 0 else idle)
        if since > 0:
            self._age = age
        # On which CPUs idle time was left cannot be told from an older mark where it is not spread evenly.
        return not uneven and (least >= 0 or least >= -_ahead(mark.visible))

    def _change(self, cgroup: Cgroup, visible: Visible, counted: _Counted, age: int) -> Mark:
        """Go on with other CPUs, another quota or another cgroup from where the counters are; return the new mark."""
        path = cgroup.cpu.path() if cgroup.cpu else ""
        before, place = self._mark, self._cgroup
        if before is None:
            before, place = self._recall(cgroup, path) or (self._begin(cgroup, path, visible, counted, age), cgroup)
            self._times = dict(before.times)
            self._age = before.age
        counted_before = before.used, before.taken
        if place:
            # Where that cgroup is gone, or the level that the ledger says, it is not known what was used since then.
            with contextlib.suppress(OSError, ValueError, IndexError):
                counted_before = _count(place, before.visible)
        self._advance(before, counted_before, age)
        self._cgroup = cgroup
        self._times = {**dict.fromkeys(visible.cpus, _NONE), **self._times}
        used, taken = counted
        return self._set_mark(Mark(path, visible, self.start, age, used, dict(self._times), self._asleep, taken))

    def _begin(self, cgroup: Cgroup, path: str, visible: Visible, counted: _Counted, age: int) -> Mark:
        """Return the first mark: where the container was started, and what it used on CPUs that it no longer sees.

        What is more than it can have used since then was counted before it was there, and is none of its own. What
        others took of its quota since then is not known.
        """
        used, taken = counted
        elsewhere = _count_elsewhere(cgroup, visible)
        times = dict.fromkeys(visible.cpus, _NONE)
        most = age
        if not (visible.whole and cgroup.cpu and cgroup.cpu.counted_cpus()):
            # An even share of what was used on CPUs that may be hidden by now.
            most = age * max(_machines_cpus(), len(visible.cpus)) // len(visible.cpus)
        most += _ahead(visible)  # the kernel is not exact about quotas
        if any(sum(each) > most for each in (*used, *elsewhere.values())):
            return Mark(path, visible, self.start, 0, used, times, taken=taken)
        times.update({cpu: (*each, 0) for cpu, each in elsewhere.items()})
        return Mark(path, visible, self.start, 0, [NOTHING_USED] * len(used), times, taken=taken)

    def _recall(self, cgroup: Cgroup, path: str) -> Optional[tuple[Mark, Optional[Cgroup]]]:
        """Return the mark that a daemon before this one has kept, and the cgroup that it counts in, if that is known.

        How far the container was ahead of its quota when it was last shown its idle time is not: at the most.
        """
        mark = self._ledger.get(self._container)
        if mark is None:
            return None
        if mark.visible.quota is not None:
            ahead = _ahead(mark.visible)
            times = {cpu: (*mark.times[cpu][:3], mark.times[cpu][3] + ahead) for cpu in mark.visible.cpus}
            mark = mark._replace(times={**mark.times, **times})
        checksum = zlib.crc32(path.encode(errors="surrogateescape"))  # in its place up to 0.2
        return mark, cgroup if mark.cgroup in (path, str(checksum)) else None

    def _set_mark(self, mark: Mark) -> Mark:
        self._mark = mark
        self._ledger.put(self._container, mark)
        return mark


def _ahead(visible: Visible) -> int:
    """Return by how many nanoseconds a CPU's idle time may be ahead of the quota."""
    period = max((visible.quota or _USUAL).period, _USUAL.period)
    return int(_PERIODS_AHEAD * period * visible.worth() / len(visible.cpus))


def _divided(idle: int, rooms: list[int]) -> list[int]:
    """Divide the idle time that a quota leaves: evenly, but to no CPU more than it has room for."""
    parts = [0] * len(rooms)
    by_room = sorted(range(len(rooms)), key=rooms.__getitem__)
    for count, cpu in zip(range(len(rooms), 0, -1), by_room):
        parts[cpu] = max(min(idle // count, rooms[cpu]), 0)
        idle -= parts[cpu]
    return parts


def _count(cgroup: Cgroup, visible: Visible) -> _Counted:
    """Return what the kernel has counted for each visible CPU, and for others where a parent's quota is the smallest.

    A CPU's is an even share of all where the kernel does not count by CPU, and where a quota hides some of the CPUs.
    """
    cpu, (cpus, quota, whole) = cgroup.cpu, visible
    if cpu is None:
        return [NOTHING_USED] * len(cpus), 0
    used = cpu.usage_per_cpu(cpus) if whole else None
    if used is None:
        count = len(cpus)
        user, nice, system = cpu.usage()
        used = [(user // count, nice // count, system // count)] * count
    if quota is None or quota.level == 0:
        return used, 0
    return used, max(sum(cpu.usage(quota.level)) - sum(map(sum, used)), 0)


def _machines_cpus() -> int:
    with open(f"{roots.SYS}/devices/system/cpu/possible", "rb") as file:
        return len(cpu_list.parse(file.read()))


def _count_elsewhere(cgroup: Cgroup, visible: Visible) -> dict[int, Used]:
    """Return what the kernel has counted for CPUs that are not visible, where `_count` leaves that out."""
    if cgroup.cpu is None or not visible.whole:
        return {}
    others = tuple(cpu for cpu in cgroup.cpu.counted_cpus() if cpu not in visible.cpus)
    counted = zip(others, cgroup.cpu.usage_per_cpu(others) or ())
    return {cpu: used for cpu, used in counted if any(used)}
