"""CPU time in /proc/stat and /proc/uptime: counters that never go down, of CPUs that are never more than 100 % busy."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lxcfs_py.config import Config, Cpu
from lxcfs_py.container.cpu_time import Account, Ledger, Times
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import NS_PER_TICK, TICKS
from lxcfs_py.views import stat, uptime

SECOND = 1_000_000_000
ONE = Visible((0,), (0,), True)
TWO = Visible((0, 1), (0, 1), True)


class World:
    """A host with four CPUs and one container, whose tasks use what the limits allow; the kernel's side of it all."""

    cpus = (0, 1, 2, 3)

    def __init__(self, version: int, used_before: int = 0) -> None:
        self.version = version
        self.clock = self.start = 1000 * SECOND
        self.used = dict.fromkeys(self.cpus, (used_before, 0))
        self.allowed: tuple[int, ...] = self.cpus
        self.limit: float | None = None
        self.mode = "quota"
        self.late: list[int] = []  # how long a reading takes from its look at the clock to that at the counters

    def run(self, nanoseconds: int, loads: tuple[float, float, float, float], over: bool = False) -> None:
        """Let time pass. `loads` is what the tasks want of each CPU; `over` lets them have more than their quota."""
        wanted = {cpu: loads[cpu] for cpu in self.allowed}
        if self.limit is not None and not over:
            much = sum(wanted.values())
            wanted = {cpu: load * min(1.0, self.limit / much) if much else 0.0 for cpu, load in wanted.items()}
        self.clock += nanoseconds
        for cpu, load in wanted.items():
            user, system = self.used[cpu]
            # Rounded down twice, so that no CPU is used for longer than the time that passes.
            self.used[cpu] = (user + int(nanoseconds * load * 0.75), system + int(nanoseconds * load * 0.25))

    # What the views ask of a host

    def now(self) -> int:
        now = self.clock
        while self.late:
            self.run(self.late.pop(), (1.0, 1.0, 1.0, 1.0), over=True)
        return now

    def booted(self) -> int:
        return 0

    def online(self) -> tuple[int, ...]:
        return self.cpus

    # What they ask of a cgroup

    def quota(self) -> float | None:
        return self.limit

    def usage(self) -> tuple[int, int]:
        return sum(user for user, _ in self.used.values()), sum(system for _, system in self.used.values())

    def usage_per_cpu(self) -> dict[int, tuple[int, int]] | None:
        return dict(self.used) if self.version == 1 else None


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
        self.container = container_in(cgroup(cpu=world, cpuset=Cpuset(world)), start=world.start)
        self.last: dict[str, Times] | None = None
        self.last_idle = 0.0
        self.restart()

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
                assert min(user, system, idle) >= 0
                assert not nice
                assert not any(others)
                lines[name] = Times(user, system, idle)
        total = lines["cpu"]
        assert total == Times(*map(sum, zip(*(times for name, times in lines.items() if name != "cpu"))))
        before, self.last_idle = self.last_idle, float(uptime.render(self.container, self.world, config).split()[1])
        assert before * TICKS <= total.idle + 0.1
        assert total.idle <= self.last_idle * TICKS + 0.1
        return lines

    def check(self) -> dict[str, Times]:
        """Read; nothing may have gone down. Return by how much each line went up."""
        now, last = self.read(), self.last or {}
        for name in now.keys() & last.keys():
            assert all(map(int.__ge__, now[name], last[name])), f"{name} went from {last[name]} to {now[name]}"
        self.last = now
        return {name: Times(*map(int.__sub__, now[name], last[name])) for name in now.keys() & last.keys()}


nanoseconds = st.integers(0, 20 * SECOND)
loads = st.tuples(*[st.sampled_from([0.0, 0.001, 0.5, 0.997, 1.0])] * 4)
limits = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.sampled_from([None, 0.01, 0.5, 1.0, 1.5, 2.0, 3.7, 8.0]),
        "allowed": st.sets(st.sampled_from(World.cpus), min_size=1).map(lambda cpus: tuple(sorted(cpus))),
        "mode": st.sampled_from(["quota", "cpuset"]),
    },
)
worlds = st.builds(World, st.sampled_from([1, 2]), st.sampled_from([0, 123_456_789, 30 * SECOND]))


@given(data=st.data(), world=worlds)
def test_no_counter_goes_down_whatever_the_tasks_use_and_however_the_limits_change(data, world, cgroup, container_in):
    reader = Reader(world, cgroup, container_in)
    reader.check()
    for step in data.draw(st.lists(st.sampled_from(["run", "limits", "read"]), max_size=15)):
        if step == "run":
            world.run(data.draw(nanoseconds), data.draw(loads), over=data.draw(st.booleans()))
        elif step == "limits":
            vars(world).update(data.draw(limits))
        else:
            world.late = data.draw(st.lists(st.sampled_from([1000, 3_000_000, 120_000_000]), max_size=1))
            reader.check()


@given(data=st.data(), world=worlds)
def test_no_counter_goes_down_over_restarts_of_the_daemon(data, world, cgroup, container_in, tmp_path_factory):
    ledger = tmp_path_factory.mktemp("ledger") / "counters"
    reader = Reader(world, cgroup, container_in, str(ledger))
    reader.check()
    for step in data.draw(st.lists(st.sampled_from(["run", "limits", "restart"]), max_size=15)):
        if step == "run":
            world.run(data.draw(nanoseconds), data.draw(loads))
        elif step == "limits":  # which may well change while no daemon runs
            vars(world).update(data.draw(limits))
            if data.draw(st.booleans()):
                reader.restart()
        else:
            reader.restart()
        reader.check()


@given(data=st.data(), world=worlds, fixed=limits)
def test_a_cpu_counts_the_time_that_passes_as_used_or_idle(data, world, fixed, cgroup, container_in):
    """No CPU is more than 100 % busy, and none is short of time: user + system + idle is the wall's time."""
    vars(world).update(fixed)
    reader = Reader(world, cgroup, container_in)
    # A cgroup older than the container may have used more than there was time for: then the first reading counts.
    reader.check()
    before = world.clock
    for _ in range(data.draw(st.integers(1, 8))):
        world.run(data.draw(nanoseconds), data.draw(loads))
    passed = (world.clock - before) / NS_PER_TICK
    for name, times in reader.check().items():
        cpus = 1 if name != "cpu" else len(reader.last) - 1
        # Three figures of each CPU are rounded down to ticks, at the first reading and at the second.
        assert cpus * (passed - 3) < sum(times) < cpus * (passed + 3)


@pytest.fixture
def reader(cgroup, container_in):
    def start(world, ledger=""):
        return Reader(world, cgroup, container_in, ledger)

    return start


def test_a_new_cpu_starts_at_zero_and_the_others_go_on(reader):
    world = World(version=2)
    world.limit = 1.0
    alone = reader(world)
    world.run(8 * SECOND, (1.0, 0, 0, 0))
    assert alone.read() == {"cpu": Times(600, 200, 0), "cpu0": Times(600, 200, 0)}
    world.limit = 2.0
    assert alone.read() == {"cpu": Times(600, 200, 0), "cpu0": Times(600, 200, 0), "cpu1": Times(0, 0, 0)}
    world.run(2 * SECOND, (1.0, 0, 0, 0))
    assert alone.read() == {"cpu": Times(750, 250, 200), "cpu0": Times(675, 225, 100), "cpu1": Times(75, 25, 100)}


def test_what_a_vanished_cpu_has_counted_is_shared_out_among_the_others(reader):
    world = World(version=1)
    shrinking = reader(world)
    world.run(10 * SECOND, (0, 0, 0, 1.0))
    before = shrinking.read()
    assert before["cpu3"] == Times(750, 250, 0)
    world.allowed = (0, 1, 2)
    assert shrinking.read() == {
        "cpu": before["cpu"],
        "cpu0": Times(250, 83, 1000),
        "cpu1": Times(250, 83, 1000),
        "cpu2": Times(250, 84, 1000),
    }


def test_each_cpu_of_cgroup_v1_counts_its_own_time(reader):
    world = World(version=1)
    busy = reader(world)
    world.run(4 * SECOND, (1.0, 0.5, 0, 0))
    assert busy.read() == {
        "cpu": Times(450, 150, 1000),
        "cpu0": Times(300, 100, 0),
        "cpu1": Times(150, 50, 200),
        "cpu2": Times(0, 0, 400),
        "cpu3": Times(0, 0, 400),
    }


def test_cgroup_v2_which_counts_no_cpus_is_spread_evenly(reader):
    world = World(version=2)
    busy = reader(world)
    world.run(4 * SECOND, (1.0, 1.0, 0, 0))
    assert busy.read() == {"cpu": Times(600, 200, 800)} | {f"cpu{n}": Times(150, 50, 200) for n in range(4)}


def test_with_fewer_cpus_visible_than_it_may_run_on_its_time_is_spread_over_those(reader):
    world = World(version=1)
    world.limit = 2.0
    busy = reader(world)
    world.run(4 * SECOND, (0, 0, 1.0, 1.0))
    assert busy.read() == {"cpu": Times(600, 200, 0), "cpu0": Times(300, 100, 0), "cpu1": Times(300, 100, 0)}


def test_idle_time_that_was_shown_is_not_lost_when_more_was_used_than_the_quota_and_then_a_cpu_vanishes(reader):
    world = World(version=2)
    world.limit = 2.0
    bursting = reader(world)
    world.run(10 * SECOND, (0, 0, 0, 0))
    assert bursting.read()["cpu"] == Times(0, 0, 2000)
    world.run(10 * SECOND, (1.0, 1.0, 1.0, 1.0), over=True)
    assert bursting.read()["cpu"] == Times(3000, 1000, 2000)
    world.limit = 1.0
    assert bursting.read() == {"cpu": Times(3000, 1000, 2000), "cpu0": Times(3000, 1000, 2000)}


def test_counters_stand_still_where_the_kernels_have_stepped_back(reader):
    """As when init was moved to another cgroup."""
    world = World(version=1)
    moved = reader(world)
    world.run(10 * SECOND, (0.5, 0.5, 0.5, 0.5))
    before = moved.read()
    world.used = dict.fromkeys(world.cpus, (0, 0))
    after = moved.read()
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
    assert seen.last["cpu0"] == before["cpu0"]


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
        ledger.put(f"{number}", ONE, [Times(1, 2, 3)])
        ledger.drop(f"{number}")
    assert len(path.read_text().splitlines()) < 100


def test_the_ledger_keeps_a_bounded_number_of_containers_the_latest(tmp_path, monkeypatch):
    monkeypatch.setattr("lxcfs_py.container.cpu_time._MAX_KEPT", 8)
    path = str(tmp_path / "counters")
    ledger = Ledger(path)
    for number in range(20):
        ledger.put(f"{number}", ONE, [Times(number, 0, 0)])
    for kept in (ledger, Ledger(path)):
        assert [number for number in range(20) if kept.get(f"{number}")] == list(range(12, 20))
    assert Ledger(path).get("19") == (ONE, [Times(19, 0, 0)])


def test_a_ledger_that_cannot_be_written_is_a_warning_and_the_counters_go_on(reader, tmp_path, caplog):
    world = World(version=2)
    lost = reader(world, str(tmp_path / "missing" / "counters"))
    assert "missing/counters cannot be written: No such file or directory" in caplog.text
    world.run(SECOND, (0, 0, 0, 0))
    assert lost.read()["cpu0"] == Times(0, 0, 100)


whole = st.integers(-5, 5) | st.sampled_from([10**30, float("inf"), float("nan"), None, "x", [0]])
numbers = st.lists(whole, max_size=3)
entries = st.tuples(numbers, numbers, st.booleans(), st.lists(st.lists(whole, min_size=2, max_size=4), max_size=3))


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
    assert len(reader.container.account.read(reader.container.cgroup, TWO, SECOND)) == 2


@pytest.mark.parametrize(
    "kept",
    [
        [[0], [0], True, []],
        [[], [], True, []],
        [[0, 1], [0], True, [[1, 2, 3]]],
        [[0], [0], True, [[1, 2]]],
        [[0], [0], True, [[1, 2, None]]],
        [["a"], [0], True, [[1, 2, 3]]],
        [[0], [0], True, [[1, 2, float("inf")]]],
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
    ledger.put("whole", ONE, [Times(1, 2, 3)])
    with path.open("a") as file:
        file.write('["torn", [[0')
    assert Ledger(str(path)).get("whole") == (ONE, [Times(1, 2, 3)])
    assert "cannot be read" in caplog.text
    assert Ledger(str(path)).get("whole") == (ONE, [Times(1, 2, 3)])
