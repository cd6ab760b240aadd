"""Load averages, and who is sampled for them."""

from __future__ import annotations

import math
import threading
import time
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.container.load import Load, Sampler

INTERVAL = 5.0
MINUTES = (1, 5, 15)

# include/linux/sched/loadavg.h: fractions of 2048, and what is left of an average after 5 s
FIXED_1 = 2048
EXP = (1884, 2014, 2037)


def one_runs() -> tuple[int, int, int]:
    """One task, which runs."""
    return 1, 0, 1


def kernels(counts: list[int]) -> list[float]:
    """What the kernel shows after samples of so many active tasks, in its own whole numbers (calc_load)."""
    averages = [0, 0, 0]
    for count in counts:
        active = count * FIXED_1
        for n, kept in enumerate(EXP):
            new = averages[n] * kept + active * (FIXED_1 - kept)
            averages[n] = (new + (FIXED_1 - 1 if active >= averages[n] else 0)) // FIXED_1
    return [average / FIXED_1 for average in averages]


def sampled(counts: list[int], interval: float = INTERVAL) -> list[float]:
    load = Load(Sampler(interval))
    now = 1000.0
    with mock.patch("lxcfs_py.container.load.time.monotonic", side_effect=lambda: now):
        load.read(one_runs)
        for count in counts:
            now += interval
            load.sample((count, 0, 100))
    return list(load.averages)


@given(st.lists(st.integers(0, 50), max_size=400))
def test_the_averages_are_the_kernels(counts):
    # Its fixed point is off by up to 1.1 % of the largest load, and its rounding by some thousandths.
    allowed = 0.02 * max(counts, default=0) + 0.02
    assert sampled(counts) == pytest.approx(kernels(counts), abs=allowed)


@pytest.mark.parametrize("interval", [1.0, 5.0, 30.0])
def test_a_steady_load_is_approached_at_the_same_pace_whatever_the_interval(interval):
    for minutes in (1, 5, 15, 60):
        averages = sampled([4] * int(minutes * 60 / interval), interval)
        assert averages == pytest.approx([4 * (1 - math.exp(-minutes / window)) for window in MINUTES])


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, as a list of one that can be changed."""
    now = [1000.0]
    monkeypatch.setattr("lxcfs_py.container.load.time.monotonic", lambda: now[0])
    return now


def test_running_and_blocked_tasks_count_and_sleeping_ones_do_not(clock):
    load = Load(Sampler(INTERVAL))
    for _ in range(1000):
        clock[0] += INTERVAL
        load.sample((2, 3, 1000))
    assert load.averages == pytest.approx((5, 5, 5), abs=0.05)


def test_a_look_counts_for_the_time_that_has_passed_since_the_one_before(clock):
    """However long the sampler took for others in between."""
    sampler = Sampler(INTERVAL)
    load = Load(sampler)
    load.read(one_runs)
    for late in (5, 17, 38):
        clock[0] += late
        sampler.sample()
    assert load.averages == pytest.approx([1 - math.exp(-60 / window) for window in (60, 300, 900)])


def test_the_time_in_which_nobody_asked_does_not_count_as_what_is_found_after_it(clock):
    sampler = Sampler(INTERVAL)
    load = Load(sampler)
    load.read(one_runs)
    clock[0] += 16 * 60
    sampler.sample()
    clock[0] += 3600
    load.read(one_runs)
    clock[0] += 5
    sampler.sample()
    assert load.averages == pytest.approx([1 - math.exp(-5 / window) for window in (60, 300, 900)])


def test_who_asks_again_after_a_day_is_told_0_and_not_what_was_a_day_ago(clock):
    sampler = Sampler(INTERVAL)
    load = Load(sampler)
    for _ in range(100):
        load.read(one_runs)
        clock[0] += INTERVAL
        sampler.sample()
    assert load.read(one_runs)[0] > 0.9
    clock[0] += 16 * 60
    sampler.sample()
    clock[0] += 24 * 3600
    assert load.read(one_runs) == (0.0, 0.0, 0.0)


def test_a_daemon_goes_on_where_the_one_before_it_was(clock, tmp_path):
    path = str(tmp_path / "loads")
    sampler = Sampler(INTERVAL, path)
    load, unnamed = Load(sampler, "box", 4711), Load(sampler, "gone", 4712)
    for _ in range(60):
        for each in (load, unnamed):
            each.read(one_runs)
        clock[0] += INTERVAL
        sampler.sample()
    before = load.averages
    clock[0] += 30  # nobody samples
    successor = Sampler(INTERVAL, path)
    assert successor.kept() == [(4711, "box"), (4712, "gone")]
    after = Load(successor, "box", 4711)
    assert after.read(one_runs) == before
    successor.sample()
    assert after.averages == pytest.approx([1 - math.exp(-330 / window) for window in (60, 300, 900)])
    assert Load(successor, "another", 1).read(one_runs) == (0.0, 0.0, 0.0)


def test_a_successor_goes_on_for_as_long_as_the_daemon_before_it_would_have(clock, tmp_path):
    path = str(tmp_path / "loads")
    sampler = Sampler(INTERVAL, path)
    Load(sampler, "box", 4711).read(one_runs)
    clock[0] += 14 * 60
    sampler.sample()
    looked = []
    successor = Sampler(INTERVAL, path)
    load = Load(successor, "box", 4711)
    load.go_on(lambda: looked.append(1) or (1, 0, 1))
    successor.sample()
    assert looked == [1]
    third = Sampler(INTERVAL, path)
    assert third.kept() == [(4711, "box")]
    clock[0] += 61
    successor.sample()
    assert looked == [1]
    assert Sampler(INTERVAL, path).kept() == []
    assert Load(third, "box", 4711).read(one_runs) == (0.0, 0.0, 0.0), "what is that old says nothing of now"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"a": 1}', '{"a": [1, [NaN, 0, 0], 999, 999]}', '{"a": [1e999, [0, 0, 0], 1, 1]}', "\xff"],
)
def test_a_file_that_is_none_of_ours_starts_the_averages_anew(content, clock, tmp_path, caplog):
    path = tmp_path / "loads"
    path.write_bytes(content.encode("latin-1"))
    sampler = Sampler(INTERVAL, str(path))
    assert "start anew" in caplog.text
    load = Load(sampler, "a", 1)
    assert load.read(one_runs) == (0.0, 0.0, 0.0)
    sampler.sample()
    assert Sampler(INTERVAL, str(path)).kept() == [(1, "a")]


def test_of_another_boot_nothing_is_kept(clock, tmp_path):
    path = tmp_path / "loads"
    path.write_text('{"a": [1, [1, 1, 1], 1001.0, 999.0]}')  # it would have been asked for in the future
    assert Sampler(INTERVAL, str(path)).kept() == []


def test_only_who_has_asked_is_sampled(clock):
    sampler = Sampler(INTERVAL)
    asking, silent = Load(sampler), Load(sampler)
    assert asking.read(one_runs) == (0.0, 0.0, 0.0)
    clock[0] += INTERVAL
    sampler.sample()
    assert asking.read(one_runs) == pytest.approx(
        [1 - math.exp(-5 / 60), 1 - math.exp(-5 / 300), 1 - math.exp(-5 / 900)]
    )
    assert silent.averages == (0.0, 0.0, 0.0)


def test_who_has_not_asked_for_15_minutes_is_forgotten_and_sampled_again_when_asking(clock):
    sampler = Sampler(INTERVAL)
    looked = []

    def states():
        looked.append(clock[0])
        return 1, 0, 1

    load = Load(sampler)
    load.read(states)
    clock[0] += 15 * 60
    sampler.sample()
    assert len(looked) == 1
    clock[0] += 1
    sampler.sample()
    sampler.sample()
    assert len(looked) == 1
    load.read(states)
    sampler.sample()
    assert len(looked) == 2
    clock[0] += 600
    load.read(states)  # whoever goes on asking goes on being sampled
    clock[0] += 600
    sampler.sample()
    assert len(looked) == 3


def test_a_container_that_has_ended_is_sampled_no_more():
    sampler = Sampler(INTERVAL)
    looked = []
    load = Load(sampler)
    load.read(lambda: looked.append(1) or (1, 0, 1))
    load.close()
    load.close()
    sampler.sample()
    assert looked == []


@pytest.mark.parametrize("error", [OSError(19, "No such device"), ValueError("invalid literal for int()")])
def test_a_cgroup_that_cannot_be_read_keeps_no_other_from_being_sampled(error, clock):
    def gone():
        raise error

    sampler = Sampler(INTERVAL)
    loads = [Load(sampler) for _ in range(6)]
    loads[0].read(gone)
    for load in loads[1:]:
        load.read(one_runs)
    clock[0] += INTERVAL
    sampler.sample()
    assert [load.averages[0] > 0 for load in loads] == [False] + [True] * 5


def test_with_nobody_asking_the_sampler_sleeps(monkeypatch):
    sampler = Sampler(0.001)
    rounds, taken = [], threading.Event()
    sample = sampler.sample
    monkeypatch.setattr(sampler, "sample", lambda: (rounds.append(1), sample(), taken.set()))
    sampler.start()
    time.sleep(0.05)
    assert not rounds
    load = Load(sampler)
    load.read(one_runs)
    assert taken.wait(5)
    load.close()
    deadline, done = time.monotonic() + 10, -1
    while done != len(rounds):  # a round that has begun ends
        assert time.monotonic() < deadline, "it goes on"
        done = len(rounds)
        time.sleep(0.1)
    taken.clear()
    load.read(one_runs)
    assert not taken.wait(0.1), "a container that has ended is not sampled"
    other = Load(sampler)
    other.read(one_runs)
    assert taken.wait(5)
    other.close()


def test_readers_may_come_and_go_while_the_sampler_runs():
    sampler = Sampler(0.0005)
    sampler.start()
    failed = []

    def reader():
        try:
            for _ in range(200):
                load = Load(sampler)
                load.read(one_runs)
                load.close()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failed == []


def test_whatever_becomes_of_who_was_sampled_before_the_others_are_sampled():
    def fail():
        raise RuntimeError

    sampled = threading.Event()
    sampler = Sampler(0.01)
    sampler.start(fail)
    load = Load(sampler)
    load.read(lambda: sampled.set() or (1, 0, 1))
    assert sampled.wait(10)
    load.close()


@pytest.fixture
def looked(clock, monkeypatch, tmp_path):
    """looked(SAMPLER, INIT, PATH, SECONDS): have one with so costly looks sampled; returns the times of its looks."""
    spent = [0.0]
    monkeypatch.setattr("lxcfs_py.container.load.time.thread_time", lambda: spent[0])
    monkeypatch.setattr("lxcfs_py.linux.roots.PROC", str(tmp_path))

    def begin(sampler, init, path, seconds):
        looks = []

        def states():
            looks.append(clock[0])
            spent[0] += seconds
            return 1, 0, 1

        (tmp_path / str(init)).mkdir()
        (tmp_path / str(init) / "cgroup").write_text(f"0::{path}\n")
        load = Load(sampler, str(init), init)
        load.read(states)
        return load, looks

    return begin


def test_thousands_within_one_container_take_a_bounded_time_and_those_beside_it_are_looked_at_each_time(clock, looked):
    sampler = Sampler(INTERVAL)
    chain = [looked(sampler, init, "/docker/a" + "/a" * (init % 40), 0.005)[1] for init in range(1, 301)]
    beside = [looked(sampler, init, f"/docker/{init}", 0.0005) for init in range(1001, 1031)]
    for _ in range(40):
        clock[0] += INTERVAL
        sampler.sample()
    assert sum(map(len, chain)) <= 40 * (0.05 * INTERVAL / 0.005 + 1)
    assert all(chain), "each of them has its turn"
    assert {len(looks) for _, looks in beside} == {40}
    assert beside[0][0].averages == pytest.approx([1 - math.exp(-200 / window) for window in (60, 300, 900)])


def test_where_there_is_not_the_time_for_all_the_averages_are_right_all_the_same(clock, looked):
    sampler = Sampler(INTERVAL)
    loads = [looked(sampler, init, f"/docker/{init}", 0.004 * (1 + init % 2))[0] for init in range(1, 251)]
    for _ in range(60):
        clock[0] += INTERVAL
        sampler.sample()
    passed = [300 - (clock[0] - load.sampled) for load in loads]
    assert min(passed) > 240
    assert [load.averages[0] for load in loads] == pytest.approx([1 - math.exp(-each / 60) for each in passed])
