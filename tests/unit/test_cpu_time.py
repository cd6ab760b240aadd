"""CPU time in /proc/stat and /proc/uptime: counters that never go down, of CPUs that are never more than 100 % busy."""

from __future__ import annotations

import errno
import json
import os
import zlib
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lxcfs_py.cgroup.tree import Quota, Used
from lxcfs_py.config import Config, Cpu
from lxcfs_py.container.cpu_time import Account, Ledger, Mark
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import NS_PER_TICK, TICKS
from lxcfs_py.views import stat, uptime


class Times(NamedTuple):
    """A line of /proc/stat, as far as it is not 0."""

    user: int
    nice: int
    system: int
    idle: int


SECOND = 1_000_000_000
ONE = Visible((0,), Quota(1.0))
TWO = Visible((0, 1), None)
MARK = Mark("/box", ONE, 3, 5, [(1, 0, 2)], {0: (1, 0, 2, 3), 4: (9, 9, 9, 9)}, 7)


class World:
    """A host with four CPUs and one container, whose tasks use what the limits allow; the kernel's side of it all."""

    cpus = (0, 1, 2, 3)

    def __init__(self, version: int, used_before: int = 0) -> None:
        self.version = version
        self.clock = self.start = 1000 * SECOND
        self.slept = 3600 * SECOND
        self.used = dict.fromkeys(self.cpus, (used_before, 0))
        self.nice = 0.0  # the part of the user time that is nice time
        self.cgroups = 1
        self.allowed: tuple[int, ...] = self.cpus
        self.limit: float | None = None
        self.period, self.level = 100_000_000, 0
        self.greed = 0.0  # the part that others use of what the container leaves of a quota that is not its alone
        self.others = 0  # what others have used of the quota, which is not the container's alone above level 0
        self.mode = "quota"
        self.late: list[int] = []  # how long a reading takes from its look at the clock to that at the counters

    def run(self, nanoseconds: int, loads: tuple[float, float, float, float], over: bool = False) -> None:
        """Let time pass. `loads` is what the tasks want of each CPU; `over` lets them have more than their quota."""
        wanted = {cpu: loads[cpu] for cpu in self.allowed}
        if self.limit is not None and not over:
            much = sum(wanted.values())
            wanted = {cpu: load * min(1.0, self.limit / much) if much else 0.0 for cpu, load in wanted.items()}
        self.clock += nanoseconds
        if self.level and self.limit is not None:
            self.others += int(nanoseconds * max(self.limit - sum(wanted.values()), 0) * self.greed)
        for cpu, load in wanted.items():
            user, system = self.used[cpu]
            # Rounded down twice, so that no CPU is used for longer than the time that passes.
            self.used[cpu] = (user + int(nanoseconds * load * 0.75), system + int(nanoseconds * load * 0.25))

    def suspend(self, nanoseconds: int) -> None:
        self.clock += nanoseconds
        self.slept += nanoseconds

    # What the views ask of a host

    boottime_offset = 0

    def now(self) -> int:
        now = self.clock
        while self.late:
            self.run(self.late.pop(), (1.0, 1.0, 1.0, 1.0), over=True)
        return now

    def asleep(self) -> int:
        return self.slept

    def booted(self) -> int:
        return 0

    def online(self) -> tuple[int, ...]:
        return self.cpus


class Controller:
    """What the views ask of the cgroup that the container is in, as long as it is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.number = world.cgroups

    def quota(self) -> Quota | None:
        return None if self.world.limit is None else Quota(self.world.limit, self.world.period, self.world.level)

    def is_counted(self) -> bool:
        return True

    def path(self) -> str:
        return f"/sys/fs/cgroup/{self.number}"

    def usage(self, level: int = 0) -> Used:
        if self.number != self.world.cgroups:
            raise OSError(errno.ENODEV, "No such device")
        user, system = (sum(figures) for figures in zip(*self.world.used.values()))
        nice = int(user * self.world.nice) if self.world.version == 2 else 0
        return (user - nice, nice, system + (self.world.others if level else 0))

    def usage_per_cpu(self, cpus: tuple[int, ...]) -> list[Used] | None:
        self.usage()
        if self.world.version == 2:
            return None
        times = (self.world.used.get(cpu, (0, 0)) for cpu in cpus)
        return [(user, 0, system) for user, system in times]

    def counted_cpus(self) -> tuple[int, ...]:
        return () if self.world.version == 2 else self.world.cpus


class Cpuset:
    def __init__(self, world: World) -> None:
        self.world = world

    def cpus(self) -> bytes:
        return cpu_list.render(self.world.allowed)


class Reader:
    """Somebody in the container who reads both files again and again, and compares with the time before."""

    def __init__(self, world, cgroup, container_in, ledger="") -> None:
        self.world = world
        self.ledger = ledger
        self.new_cgroup = lambda: cgroup(cpu=Controller(world), cpuset=Cpuset(world))
        self.container = container_in(self.new_cgroup(), start=world.start)
        self.last: dict[str, Times] | None = None
        self.last_idle = 0.0
        self.restart()

    def move(self, used: int) -> None:
        """Init is moved to another cgroup, where so much was used before it came; the old one is gone at once."""
        self.world.used = dict.fromkeys(self.world.cpus, (used, used))
        self.world.cgroups += 1
        self.container.cgroup = self.new_cgroup()

    def restart(self) -> None:
        """A new daemon comes in the place of the old one."""
        self.container.account = Account(Ledger(self.ledger or None), "container")

    def read(self) -> dict[str, Times]:
        config = Config(cpu=Cpu(mode=self.world.mode))
        lines = {}
        for line in stat.render(self.container, self.world, config).splitlines():
            name, *numbers = line.decode().split()
            if name.startswith("cpu"):
                user, nice, system, idle, *others = map(int, numbers)
                assert min(user, nice, system, idle) >= 0
                assert not any(others)
                lines[name] = Times(user, nice, system, idle)
        total = lines["cpu"]
        seen = map(sum, zip(*(times for name, times in lines.items() if name != "cpu")))
        assert all(map(int.__ge__, total, seen)), "what has vanished stays in the total"
        before, self.last_idle = self.last_idle, float(uptime.render(self.container, self.world, config).split()[1])
        assert before * TICKS <= total.idle + 0.1
        assert total.idle <= self.last_idle * TICKS + 0.1
        return lines

    def check(self) -> dict[str, Times]:
        """Read; nothing may have gone down since it was seen last. Return by how much each line went up."""
        now, last = self.read(), self.last or {}
        for name in now.keys() & last.keys():
            assert all(map(int.__ge__, now[name], last[name])), f"{name} went from {last[name]} to {now[name]}"
        self.last = {**last, **now}
        return {name: Times(*map(int.__sub__, now[name], last[name])) for name in now.keys() & last.keys()}

    def cpus(self) -> dict[str, Times]:
        """Read; return the lines of the CPUs."""
        lines = self.read()
        del lines["cpu"]
        return lines


@pytest.mark.parametrize(("used", "shown"), [(7, 7), (9, 0)])
def test_a_share_of_what_was_used_on_hidden_cpus_is_its_own_up_to_what_the_machine_has(
    monkeypatch, cgroup, used, shown
) -> None:
    """One of eight CPUs is visible, since a container asks for no more or was denied the others."""
    monkeypatch.setattr("lxcfs_py.container.cpu_time._machines_cpus", lambda: 8)
    world = World(2)
    world.used = {0: (100 * used * SECOND, 0)}
    own = cgroup(cpu=Controller(world), cpuset=Cpuset(world))
    account = Account(Ledger(None), "container")
    assert account.read(own, Visible((0,), None, False), 100 * SECOND)[0][0] == 100 * shown * TICKS


def test_for_the_idle_time_it_is_looked_once_a_second_which_cpus_there_are(monkeypatch, cgroup) -> None:
    world = World(1)
    account, own = Account(Ledger(None), "container"), cgroup(cpu=Controller(world), cpuset=Cpuset(world))
    clock, looks = [100.0], []
    monkeypatch.setattr("lxcfs_py.container.cpu_time.time.monotonic", lambda: clock[0])

    def idle(of=own) -> int:
        world.clock += SECOND
        return account.idle(of, lambda: looks.append(clock[0]) or TWO, world.clock - world.start)

    assert [idle(), idle()] == [2 * TICKS, 4 * TICKS]
    assert looks == [100.0]
    clock[0] += 1
    assert idle() == 6 * TICKS
    idle(cgroup(cpu=Controller(world), cpuset=Cpuset(world)))
    assert looks == [100.0, 101.0, 101.0]


nanoseconds = st.integers(0, 20 * SECOND)
loads = st.tuples(*[st.sampled_from([0.0, 0.001, 0.5, 0.997, 1.0])] * 4)
limits = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.sampled_from([None, 0.01, 0.5, 1.0, 1.5, 2.0, 3.7, 8.0]),
        "allowed": st.sets(st.sampled_from(World.cpus), min_size=1).map(lambda cpus: tuple(sorted(cpus))),
        "mode": st.sampled_from(["quota", "cpuset"]),
        "period": st.sampled_from([10_000_000, 100_000_000, 1_000_000_000]),
        "level": st.sampled_from([0, 1]),
        "greed": st.sampled_from([0.0, 0.5, 1.0]),
    },
)
worlds = st.builds(World, st.sampled_from([1, 2]), st.sampled_from([0, 123_456_789, 30 * SECOND]))


@given(data=st.data(), world=worlds)
def test_no_counter_goes_down_whatever_the_tasks_use_and_however_limits_and_cgroup_change(
    data, world, cgroup, container_in
):
    reader = Reader(world, cgroup, container_in)
    reader.check()
    for step in data.draw(st.lists(st.sampled_from(["run", "suspend", "limits", "move", "nice", "read"]), max_size=15)):
        if step == "suspend":
            world.suspend(data.draw(nanoseconds))
        elif step == "run":
            world.run(data.draw(nanoseconds), data.draw(loads), over=data.draw(st.booleans()))
        elif step == "limits":
            vars(world).update(data.draw(limits))
        elif step == "move":
            reader.move(data.draw(st.sampled_from([0, 30 * SECOND])))
        elif step == "nice":
            world.nice = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
        else:
            world.late = data.draw(st.lists(st.sampled_from([1000, 3_000_000, 120_000_000]), max_size=1))
            reader.check()


@given(data=st.data(), world=worlds)
def test_no_counter_goes_down_over_restarts_of_the_daemon(data, world, cgroup, container_in, tmp_path_factory):
    ledger = tmp_path_factory.mktemp("ledger") / "counters"
    reader = Reader(world, cgroup, container_in, str(ledger))
    reader.check()
    for step in data.draw(st.lists(st.sampled_from(["run", "limits", "move", "restart"]), max_size=15)):
        if step == "run":
            world.run(data.draw(nanoseconds), data.draw(loads))
        elif step == "limits":  # which may well change while no daemon runs
            vars(world).update(data.draw(limits))
            if data.draw(st.booleans()):
                reader.restart()
        elif step == "move":
            reader.move(data.draw(st.sampled_from([0, 30 * SECOND])))
        else:
            reader.restart()
        reader.check()


@given(data=st.data(), world=worlds, fixed=limits)
def test_a_cpu_counts_the_time_that_it_may_be_used_for_as_used_or_idle(data, world, fixed, cgroup, container_in):
    """All the time that passes, or of a quota this CPU's share; so full use is 100 %, and no use is 0."""
    vars(world).update(fixed)
    reader = Reader(world, cgroup, container_in)
    # A cgroup older than the container may have used more than there was time for: then the first reading counts.
    reader.check()
    before, others = world.clock, world.others
    for _ in range(data.draw(st.integers(1, 8))):
        world.run(data.draw(nanoseconds), data.draw(loads))
    count = len(reader.last) - 1
    passed = (world.clock - before) / NS_PER_TICK
    if world.limit is not None and world.mode == "quota":
        passed *= min(world.limit / count, 1.0)
        if world.limit < len(world.allowed):
            passed -= (world.others - others) / NS_PER_TICK / count
    for name, times in reader.check().items():
        if name != "cpu" and world.version == 1 and world.limit is not None:
            continue  # v1 tells on which CPU the time was used; what is left of a quota is left on those that had it
        cpus = 1 if name != "cpu" else count
        # Four figures of each CPU are rounded down to ticks, at the first reading and at the second.
        assert cpus * (passed - 4) < sum(times) < cpus * (passed + 4)


@settings(deadline=None)
@given(data=st.data(), world=worlds)
def test_no_interval_shows_more_than_the_time_that_passes_however_limits_and_cgroup_change(
    data, world, cgroup, container_in
):
    reader = Reader(world, cgroup, container_in)
    reader.check()
    before = world.clock
    for step in data.draw(st.lists(st.sampled_from(["run", "limits", "move"]), min_size=1, max_size=15)):
        if step == "run":
            world.run(data.draw(nanoseconds), data.draw(loads))
        elif step == "limits":
            vars(world).update(data.draw(limits))
        else:
            reader.move(data.draw(st.sampled_from([0, 30 * SECOND])))
        passed = (world.clock - before) / NS_PER_TICK
        before = world.clock
        for name, times in reader.check().items():
            # Each figure of each CPU is rounded down to ticks, at the reading before and at this one.
            assert sum(times) <= (4 if name == "cpu" else 1) * (passed + 4)


@pytest.fixture
def reader(cgroup, container_in):
    def start(world, ledger=""):
        return Reader(world, cgroup, container_in, ledger)

    return start


def test_a_container_that_uses_all_of_its_quota_is_100_percent_busy(reader):
    for version in (1, 2):
        world = World(version)
        world.limit = 0.2
        busy = reader(world)
        busy.check()
        world.run(100 * SECOND, (1.0, 1.0, 1.0, 1.0))
        assert busy.check() == {"cpu": Times(1500, 0, 500, 0), "cpu0": Times(1500, 0, 500, 0)}
        world.run(100 * SECOND, (0.05, 0.05, 0, 0))
        assert busy.check()["cpu"] == Times(750, 0, 250, 1000)


def test_a_container_that_is_a_little_ahead_of_its_quota_for_long_has_idle_time_as_soon_as_it_is_idle(reader):
    world = World(version=2)
    world.limit = 0.2
    bursting = reader(world)
    for _ in range(1000):
        world.run(SECOND, (0.203, 0, 0, 0), over=True)
        bursting.check()
    world.run(10 * SECOND, (0, 0, 0, 0))
    assert bursting.check()["cpu"].idle == pytest.approx(200, abs=8)  # and not the 300 ticks less of 1000 seconds


def test_a_new_cpu_starts_at_zero_and_the_others_go_on(reader):
    world = World(version=2)
    world.limit = 1.0
    alone = reader(world)
    world.run(8 * SECOND, (1.0, 0, 0, 0))
    assert alone.read() == {"cpu": Times(600, 0, 200, 0), "cpu0": Times(600, 0, 200, 0)}
    world.limit = 2.0
    assert alone.cpus() == {"cpu0": Times(600, 0, 200, 0), "cpu1": Times(0, 0, 0, 0)}
    world.run(2 * SECOND, (1.0, 0, 0, 0))
    assert alone.cpus() == {"cpu0": Times(675, 0, 225, 100), "cpu1": Times(75, 0, 25, 100)}


def test_what_a_vanished_cpu_has_counted_stays_in_the_total_and_comes_back_with_it(reader):
    world = World(version=1)
    shrinking = reader(world)
    world.run(10 * SECOND, (0, 0, 0, 1.0))
    before = shrinking.read()
    assert before["cpu3"] == Times(750, 0, 250, 0)
    world.allowed = (0, 1, 2)
    after = shrinking.read()
    assert after == {name: times for name, times in before.items() if name != "cpu3"}
    world.run(10 * SECOND, (0, 0, 0, 0))
    assert shrinking.read()["cpu"] == Times(750, 0, 250, 6000)
    world.allowed = World.cpus
    assert shrinking.read()["cpu3"] == before["cpu3"]


def test_what_was_used_on_a_cpu_that_vanished_before_the_first_reading_is_in_the_total_too(reader):
    world = World(version=1)
    cut = reader(world)
    world.run(10 * SECOND, (0, 0.5, 0, 1.0))
    world.allowed = (0, 1)
    assert cut.read() == {
        "cpu": Times(1125, 0, 375, 1500),
        "cpu0": Times(0, 0, 0, 1000),
        "cpu1": Times(375, 0, 125, 500),
    }
    world.allowed = World.cpus
    assert cut.read()["cpu3"] == Times(750, 0, 250, 0)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("limit", [None, 2.0])
def test_what_was_used_in_the_cgroup_before_the_container_was_started_is_none_of_its_own(reader, version, limit):
    """As with `unshare --pid --fork` in a cgroup that has been in use."""
    world = World(version)
    world.run(100 * SECOND, (1.0, 0, 0, 1.0))
    world.start, world.allowed, world.limit = world.clock, (0, 1), limit
    young = reader(world)
    world.run(SECOND // 100, (0, 0, 0, 0))
    assert young.read()["cpu"] == Times(0, 0, 0, 2)
    world.run(SECOND, (1.0, 1.0, 0, 0))
    assert young.read()["cpu"] == Times(150, 0, 50, 2)


@pytest.mark.parametrize("limit", [None, 1.0, 3.5])
def test_all_that_a_container_used_which_was_busy_from_its_start_is_its_own(reader, limit):
    """Also where the kernel lets it have a little more than its quota."""
    world = World(version=2)
    world.limit = limit
    busy = reader(world)
    world.run(100 * SECOND, (1.0, 1.0, 1.0, 1.0))
    world.run(SECOND, (1.0, 1.0, 1.0, 1.0), over=True)
    assert sum(busy.read()["cpu"][:3]) == pytest.approx(100 * (100 * (limit or 4) + 4), abs=12)


def test_the_lines_have_the_kernels_numbers(reader):
    world = World(version=2)
    world.allowed, world.limit = (1, 3), 1.0
    pinned = reader(world)
    assert list(pinned.read()) == ["cpu", "cpu1"]
    world.limit = None
    assert list(pinned.read()) == ["cpu", "cpu1", "cpu3"]


def test_each_cpu_of_cgroup_v1_counts_its_own_time(reader):
    world = World(version=1)
    busy = reader(world)
    world.run(4 * SECOND, (1.0, 0.5, 0, 0))
    assert busy.read() == {
        "cpu": Times(450, 0, 150, 1000),
        "cpu0": Times(300, 0, 100, 0),
        "cpu1": Times(150, 0, 50, 200),
        "cpu2": Times(0, 0, 0, 400),
        "cpu3": Times(0, 0, 0, 400),
    }


def test_cgroup_v2_which_counts_no_cpus_is_spread_evenly(reader):
    world = World(version=2)
    busy = reader(world)
    world.run(4 * SECOND, (1.0, 1.0, 0, 0))
    assert busy.read() == {"cpu": Times(600, 0, 200, 800)} | {f"cpu{n}": Times(150, 0, 50, 200) for n in range(4)}


def test_what_is_left_of_a_quota_is_left_on_cpus_that_were_idle_for_so_long(reader):
    """In all, as much as the quota leaves; evenly, where that can be."""
    world = World(version=1)
    world.limit, world.allowed = 1.5, (0, 1)
    busy = reader(world)
    world.run(4 * SECOND, (0, 0, 0, 0))
    assert busy.check() == {}
    assert busy.last["cpu0"] == busy.last["cpu1"] == Times(0, 0, 0, 300)
    world.run(4 * SECOND, (1.0, 0, 0, 0))
    assert busy.check() == {
        "cpu": Times(300, 0, 100, 200),
        "cpu0": Times(300, 0, 100, 0),
        "cpu1": Times(0, 0, 0, 200),
    }
    world.run(4 * SECOND, (0.5, 1.0, 0, 0))
    assert busy.check() == {
        "cpu": Times(450, 0, 150, 0),
        "cpu0": Times(150, 0, 50, 0),
        "cpu1": Times(300, 0, 100, 0),
    }


@pytest.mark.parametrize("every", [1, 60])
def test_idle_time_is_the_same_however_often_it_is_read_where_a_quota_has_a_long_period(reader, every):
    world = World(version=2)
    world.limit, world.period = 0.2, SECOND
    busy = reader(world)
    busy.check()
    for tenth in range(1, 601):
        world.run(SECOND // 10, (1.0 if tenth % 10 in (1, 2) else 0.0, 0, 0, 0), over=True)
        if tenth % every == 0:
            busy.read()
    assert busy.check()["cpu"] == Times(900, 0, 300, 0)


@pytest.mark.parametrize("version", [1, 2])
def test_what_others_took_of_a_quota_that_is_not_the_containers_alone_is_not_idle(reader, tmp_path, version):
    world = World(version)
    world.limit, world.level, world.greed = 1.0, 2, 1.0
    sharing = reader(world, str(tmp_path / "counters"))
    sharing.check()
    world.run(10 * SECOND, (0.5, 0, 0, 0))
    assert sharing.check()["cpu"] == Times(375, 0, 125, 0)
    sharing.restart()
    world.run(10 * SECOND, (0.5, 0, 0, 0))
    assert sharing.check()["cpu"] == Times(375, 0, 125, 20)  # how far it was ahead of its quota was not known any more
    world.greed = 0.5
    world.run(10 * SECOND, (0.5, 0, 0, 0))
    assert sharing.check()["cpu"] == Times(375, 0, 125, 250)


def test_nice_time_is_shown_and_is_no_user_time(reader):
    world = World(version=2)
    world.nice = 0.5
    busy = reader(world)
    world.run(4 * SECOND, (1.0, 0, 0, 0))
    assert busy.read()["cpu"] == Times(148, 148, 100, 1200)  # four times 37.5 ticks


def test_where_a_quota_hides_cpus_the_time_is_spread_over_those_that_it_shows(reader):
    world = World(version=1)
    world.limit = 2.0
    busy = reader(world)
    world.run(4 * SECOND, (0, 0, 1.0, 1.0))
    assert busy.cpus() == {"cpu0": Times(300, 0, 100, 0), "cpu1": Times(300, 0, 100, 0)}


def test_idle_time_that_was_shown_is_not_lost_when_more_was_used_than_the_quota_and_then_a_cpu_vanishes(reader):
    world = World(version=2)
    world.limit = 2.0
    bursting = reader(world)
    world.run(10 * SECOND, (0, 0, 0, 0))
    assert bursting.read()["cpu"] == Times(0, 0, 0, 2000)
    world.run(10 * SECOND, (1.0, 1.0, 1.0, 1.0), over=True)
    assert bursting.read()["cpu"] == Times(3000, 0, 1000, 2000)
    world.limit = 1.0
    assert bursting.read() == {"cpu": Times(3000, 0, 1000, 2000), "cpu0": Times(1500, 0, 500, 1000)}


def test_counters_go_on_from_where_they_were_when_init_is_moved_to_another_cgroup(reader, tmp_path):
    """What was used in the new one before is not this container's."""
    for version in (1, 2):
        for restarted in (False, True):
            world = World(version)
            moved = reader(world, str(tmp_path / f"counters-{version}-{restarted}"))
            world.run(10 * SECOND, (0.5, 0.5, 0.5, 0.5))
            moved.check()
            moved.move(1000 * SECOND)
            if restarted:
                moved.restart()
            assert moved.check()["cpu"] == Times(0, 0, 0, 0)
            world.run(2 * SECOND, (0.5, 0.5, 0.5, 0.5))
            assert sum(moved.check()["cpu"]) == pytest.approx(800, abs=8)
            assert moved.last["cpu"].user == pytest.approx(1800, abs=4)


@pytest.mark.parametrize("restarted", [False, True])
def test_while_nobody_counts_it_is_idle_and_no_counter_goes_up_to_the_machines(reader, cgroup, tmp_path, restarted):
    """As with init in the root of the cpuacct hierarchy for a while."""
    world = World(version=1)
    moved = reader(world, str(tmp_path / "counters"))
    own = moved.container.cgroup
    world.run(10 * SECOND, (0.5, 0, 0, 0))
    moved.check()
    moved.container.cgroup = cgroup(cpu=None, cpuset=Cpuset(world))
    if restarted:
        moved.restart()
    assert moved.check()["cpu"] == Times(0, 0, 0, 0)
    world.run(SECOND, (1.0, 0, 0, 0))
    assert moved.check()["cpu"] == Times(0, 0, 0, 400)
    moved.container.cgroup = own
    assert moved.check()["cpu"] == Times(0, 0, 0, 0)
    world.run(SECOND, (1.0, 0, 0, 0))
    assert moved.check()["cpu"] == Times(75, 0, 25, 300)


def test_counters_stand_still_where_the_kernels_have_stepped_back(reader):
    world = World(version=1)
    odd = reader(world)
    world.run(10 * SECOND, (0.5, 0.5, 0.5, 0.5))
    before = odd.read()
    world.used = dict.fromkeys(world.cpus, (0, 0))
    after = odd.read()
    assert [(times.user, times.system) for times in after.values()] == [
        (times.user, times.system) for times in before.values()
    ]


def test_a_changed_mode_and_a_restart_between_two_readings_go_unnoticed(reader, tmp_path):
    world = World(version=2)
    world.limit, world.mode = 1.0, "quota"
    seen = reader(world, str(tmp_path / "counters"))
    world.run(10 * SECOND, (1.0, 0, 0, 0))
    seen.check()
    before = seen.last
    world.mode = "cpuset"
    seen.restart()
    seen.check()
    assert seen.last["cpu0"][:3] == before["cpu0"][:3]
    # How far the container was ahead of its quota when it was shown its idle time last is not known any more.
    assert 0 <= seen.last["cpu0"].idle - before["cpu0"].idle <= 20


@pytest.mark.parametrize("restarted", [False, True])
def test_nothing_is_idle_while_the_machine_is_suspended(reader, tmp_path, restarted):
    world = World(version=2)
    sleeping = reader(world, str(tmp_path / "counters"))
    world.run(10 * SECOND, (0, 0, 0, 0))
    before = sleeping.read()["cpu"].idle
    world.suspend(8 * 3600 * SECOND)
    if restarted:
        sleeping.restart()
    assert sleeping.read()["cpu"].idle == before == 4000
    world.run(SECOND, (0, 0, 0, 0))
    assert sleeping.read()["cpu"].idle == before + 400
    up, idle = map(float, uptime.render(sleeping.container, world, Config()).split())
    assert (up, idle) == (8 * 3600 + 11, 44)


def test_a_ledger_that_does_not_know_for_how_long_the_machine_was_suspended_is_gone_on_from(reader, tmp_path):
    """As those up to 0.2."""
    world, path = World(version=2), tmp_path / "counters"
    seen = reader(world, str(path))
    world.run(10 * SECOND, (0, 0, 0, 0))
    seen.check()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps((container, kept[:6])) + "\n" for container, kept in lines))
    seen.restart()
    world.run(SECOND, (0, 0, 0, 0))
    assert seen.check()["cpu"].idle == 400


def test_a_container_that_has_ended_leaves_nothing_in_the_ledger(reader, tmp_path):
    ledger = tmp_path / "counters"
    world = World(version=2)
    ending = reader(world, str(ledger))
    ending.read()
    assert ledger.read_text()
    ending.container.account.close()
    assert Ledger(str(ledger)).get("container") is None
    assert not ledger.read_text()


def test_the_ledger_of_many_short_lived_containers_stays_small(tmp_path):
    path = tmp_path / "counters"
    ledger = Ledger(str(path))
    for number in range(2000):
        ledger.put(f"{number}", MARK)
        ledger.drop(f"{number}")
    assert len(path.read_text().splitlines()) < 100


def test_the_ledger_keeps_a_bounded_number_of_containers_the_latest(tmp_path, monkeypatch):
    monkeypatch.setattr("lxcfs_py.container.cpu_time._MAX_KEPT", 8)
    path = str(tmp_path / "counters")
    ledger = Ledger(path)
    for number in range(20):
        ledger.put(f"{number}", MARK)
    for kept in (ledger, Ledger(path)):
        assert [number for number in range(20) if kept.get(f"{number}")] == list(range(12, 20))
    assert Ledger(path).get("19") == MARK


def test_for_how_long_a_machine_was_suspended_is_no_field_that_a_version_before_stumbles_over(tmp_path):
    path = tmp_path / "counters"
    for asleep, kept in ((None, None), (0, 0), (8 * 3600 * 10**9, 8 * 3600 * 10**9), (-70, 0)):
        Ledger(str(path)).put("a", MARK._replace(asleep=asleep))
        assert Ledger(str(path)).get("a") == MARK._replace(asleep=kept)
        _, (_, _, _, _, _, times) = json.loads(path.read_text().splitlines()[-1])  # six fields, and no figure more
        assert sum(sum(had) for _, *had in times) == sum(map(sum, MARK.times.values()))


def test_whose_quota_it_is_and_what_others_took_of_it_outlives_the_daemon(tmp_path):
    mark = MARK._replace(visible=ONE._replace(quota=Quota(1.0, SECOND, 3)), asleep=7, taken=7)
    path = str(tmp_path / "counters")
    Ledger(path).put("a", mark)
    assert Ledger(path).get("a") == mark
    without = mark._replace(visible=TWO._replace(cpus=(0,)), taken=0)
    Ledger(path).put("a", without)
    assert Ledger(path).get("a") == without


def test_one_users_many_containers_leave_the_ledger_to_others(tmp_path, monkeypatch):
    """However many cgroups he has below his own, and after a restart too."""
    monkeypatch.setattr("lxcfs_py.container.cpu_time._MAX_KEPT", 64)
    path = str(tmp_path / "counters")
    ledger = Ledger(path)
    others = [f"/user.slice/{number}" for number in range(8)]
    for cgroup in others:
        ledger.put(cgroup, MARK._replace(cgroup=cgroup))
    for number in range(300):
        ledger.put(f"{number}", MARK._replace(cgroup=f"/user.slice/flood/{number % 50}"))
    for kept in (ledger, Ledger(path)):
        assert all(map(kept.get, [*others, "299"]))
        assert sum(kept.get(f"{number}") is not None for number in range(300)) <= 64 - len(others)


def test_no_line_is_parsed_to_make_room_since_all_wait_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr("lxcfs_py.container.cpu_time._MAX_KEPT", 8)
    ledger = Ledger(str(tmp_path / "counters"))
    for number in range(8):
        ledger.put(f"{number}", MARK)
    monkeypatch.setattr("lxcfs_py.container.cpu_time.json.loads", None)
    for number in range(8, 20):
        ledger.put(f"{number}", MARK)
    ledger.drop("19")
    assert list(ledger._kept) == list(ledger._cgroups) == [f"{number}" for number in range(12, 19)]


def test_entries_that_make_no_sense_make_room_like_others(tmp_path, monkeypatch):
    monkeypatch.setattr("lxcfs_py.container.cpu_time._MAX_KEPT", 8)
    path = tmp_path / "counters"
    path.write_text("".join(f'["odd{number}", {kept}]\n' for number, kept in enumerate(["5", "[]", "{}", '"x"'] * 2)))
    ledger = Ledger(str(path))
    ledger.put("new", MARK)
    assert ledger.get("new") == MARK


def test_a_ledger_with_a_checksum_in_place_of_the_cgroup_is_gone_on_from(reader, tmp_path):
    """It is what 0.2 wrote. What was used between the last mark and the restart is not lost."""
    ledger = tmp_path / "counters"
    world = World(version=2)
    seen = reader(world, str(ledger))
    seen.check()
    name, (cgroup, *kept) = json.loads(ledger.read_text())
    ledger.write_text(json.dumps([name, [zlib.crc32(cgroup.encode()), *kept]]) + "\n")
    world.run(SECOND, (0.5, 0.5, 0.5, 0.5))
    seen.restart()
    assert sum(seen.check()["cpu"][:3]) == pytest.approx(200, abs=4)


def test_a_ledger_that_cannot_be_written_is_a_warning_and_the_counters_go_on(reader, tmp_path, caplog):
    world = World(version=2)
    lost = reader(world, str(tmp_path / "missing" / "counters"))
    assert "missing/counters cannot be written: No such file or directory" in caplog.text
    world.run(SECOND, (0, 0, 0, 0))
    assert lost.read()["cpu0"] == Times(0, 0, 0, 100)


whole = st.integers(-5, 5) | st.sampled_from([10**30, float("inf"), float("nan"), None, "x", [0]])
numbers = st.lists(whole, max_size=3)
entries = st.tuples(
    whole,
    st.tuples(numbers, whole, st.booleans()),
    whole,
    st.lists(numbers, max_size=3),
    st.lists(st.lists(whole, max_size=5), max_size=3),
)


@settings(max_examples=100)
@given(
    content=st.binary() | entries.map(lambda kept: json.dumps(["container", kept]).encode()) | st.just(b'["container"]')
)
def test_a_ledger_with_any_content_gives_counters_or_starts_anew(content, cgroup, container_in, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any-ledger"
    path.write_bytes(content)
    world = World(version=2)
    reader = Reader(world, cgroup, container_in, str(path))
    reader.container.account.read(reader.container.cgroup, TWO, 0)
    world.run(SECOND, (0, 0, 0, 0))
    assert len(reader.container.account.read(reader.container.cgroup, TWO, SECOND)[1]) == 2


def test_a_fifo_in_the_place_of_the_ledger_is_a_warning_and_nobody_waits_for_it(tmp_path, caplog):
    path = str(tmp_path / "counters")
    os.mkfifo(path)
    ledger = Ledger(path)
    ledger.put("container", MARK)
    assert ledger.get("container") == MARK
    assert f"{path} cannot be read" in caplog.text


@pytest.mark.parametrize(
    "kept",
    [
        [7, [[0], 1.0, True], 3, 5, [], [[0, 1, 0, 2, 3]]],
        [7, [[], 1.0, True], 3, 5, [], []],
        [7, [[0, 1], 1.0, True], 3, 5, [[1, 0, 2], [1, 0, 2]], [[0, 1, 0, 2, 3]]],
        [7, [[0], 1.0, True], 3, 5, [[1, 0]], [[0, 1, 0, 2, 3]]],
        [7, [[0], 1.0, True], 3, 5, [[1, 0, 2]], [[0, 1, 0, 2, None]]],
        [7, [["a"], 1.0, True], 3, 5, [[1, 0, 2]], [[0, 1, 0, 2, 3]]],
        [7, [[0], float("nan"), True], 3, 5, [[1, 0, 2]], [[0, 1, 0, 2, 3]]],
        [7, [[0], float("inf"), True], 3, 5, [[1, 0, 2]], [[0, 1, 0, 2, 3]]],
        [7, [[0], 1.0, True], 3, float("inf"), [[1, 0, 2]], [[0, 1, 0, 2, 3]]],
        [0],
        "x",
    ],
)
def test_an_entry_of_the_ledger_that_makes_no_sense_is_none(kept, tmp_path):
    path = tmp_path / "counters"
    path.write_text(json.dumps(["container", kept]) + "\n")
    assert Ledger(str(path)).get("container") is None


def test_the_last_line_of_a_ledger_cut_off_by_a_kill_costs_no_other_container(tmp_path, caplog):
    path = tmp_path / "counters"
    ledger = Ledger(str(path))
    ledger.put("whole", MARK)
    with path.open("a") as file:
        file.write('["torn", [[0')
    assert Ledger(str(path)).get("whole") == MARK
    assert "cannot be read" in caplog.text
    assert Ledger(str(path)).get("whole") == MARK
