"""Requests that wait: where they are kept, and who is next."""

from __future__ import annotations

import mmap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.engine import waiting
from lxcfs_py.engine.session import OPCODE
from lxcfs_py.engine.waiting import Queue, Slots

OFFSET = 4096
NONE = memoryview(bytearray(8))


@pytest.fixture
def memory() -> mmap.mmap:
    return mmap.mmap(-1, OFFSET + waiting.size())


def slots(memory: mmap.mmap) -> tuple[Slots, list[memoryview]]:
    """Those of a server that comes next, and what the one before has left."""
    made = Slots(memory, OFFSET, OPCODE)
    return made, made.load()


def take(made: Slots, text: bytes) -> memoryview:
    slot = made.get()
    assert slot is not None
    slot[: len(text)] = text
    return slot


def test_what_waits_when_a_server_dies_is_found_by_the_next(memory: mmap.mmap) -> None:
    before, left = slots(memory)
    assert left == []
    for n in range(1, 6):
        take(before, bytes([0] * OPCODE + [n]))
    before.put(before._at(2))
    after, left = slots(memory)
    assert sorted(slot[OPCODE] for slot in left) == [1, 2, 4, 5]
    again = {after.get() is None for _ in range(waiting.LIMIT - 4)}
    assert (again, after.get()) == ({False}, None), "of those that were left, none is given out"


def test_a_successor_of_a_server_that_had_used_all_slots_starts(memory: mmap.mmap) -> None:
    before, _ = slots(memory)
    for _ in range(waiting.LIMIT):
        before.put(take(before, b"\1" * 400))
        before._free.clear()
    after, left = slots(memory)
    assert (len(after._free), left) == (waiting.LIMIT, [])


def test_of_a_container_with_very_many_threads_another_is_served_second(memory: mmap.mmap) -> None:
    made, queue = slots(memory)[0], Queue()
    for whose in ["/hostile"] * 20_000 + ["/neighbour"]:
        slot = made.get()
        assert slot is not None, "it waits where the kernel's order is, behind all others"
        queue.add(whose, slot, 80)
    assert "/neighbour" in [serve(queue, 0.0001) for _ in range(2)]


def test_a_slot_is_used_again_before_a_new_one(memory: mmap.mmap) -> None:
    made, _ = slots(memory)
    for _ in range(100):
        made.put(take(made, b"\1" * 400))
    assert made._count == 1


def test_a_request_that_fills_its_slot_hides_no_other(memory: mmap.mmap) -> None:
    made, _ = slots(memory)
    for _ in range(3):
        slot = made.get()
        assert slot is not None
        slot[:] = bytes([7]) * len(slot)
    assert len(slots(memory)[1]) == 3
    for slot in slots(memory)[1]:
        slot[:] = bytes(len(slot))
    assert slots(memory)[1] == []
    assert memory[:OFFSET] == bytes(OFFSET)


def serve(queue: Queue, seconds: float) -> str:
    """Whoever is next, and takes so long."""
    request = queue.next()
    assert request is not None
    queue.charge(request, 10.0, 10.0 + seconds)
    return request.whose


def test_who_has_been_served_for_the_shortest_time_is_next() -> None:
    queue = Queue()
    for _ in range(100):
        queue.add("flood", NONE, 1)
    assert [serve(queue, 0.001) for _ in range(20)] == ["flood"] * 20
    queue.add("neighbour", NONE, 1)
    assert "neighbour" in [serve(queue, 0.001) for _ in range(2)]


@pytest.mark.parametrize("holding", ["flood", "rest"])
def test_what_holds_a_lock_and_the_rest_of_a_container_share_its_turns(holding: str) -> None:
    queue = Queue()
    for _ in range(100):
        queue.add("/docker/one", NONE, 1, holds=holding == "flood")
        queue.add("/docker/other", NONE, 2)
    for _ in range(20):
        serve(queue, 0.001)
    queue.add("/docker/one", NONE, 3, holds=holding == "rest")
    lengths = []
    for _ in range(20):
        request = queue.next()
        assert request is not None
        queue.charge(request, 0.0, 0.001)
        lengths.append(request.length)
    assert 3 in lengths[:4], "it does not wait for the others of its container"
    assert 9 <= lengths.count(2) <= 11, "and its container has no larger share"


def test_long_requests_cost_who_makes_them_alone() -> None:
    queue = Queue()
    for _ in range(100):
        queue.add("slow", NONE, 1)
        queue.add("fast", NONE, 1)
    served, costs = [], {"slow": 0.01, "fast": 0.001}
    for _ in range(40):
        request = queue.next()
        assert request is not None
        queue.charge(request, 0.0, costs[request.whose])
        served.append(request.whose)
    assert served.count("fast") > 8 * served.count("slow")


def test_who_was_away_for_a_moment_has_still_had_what_it_had() -> None:
    """Else who makes one long request after the other would have a turn for each."""
    queue = Queue()
    queue.add("slow", NONE, 1)
    serve(queue, 1.0)
    for _ in range(50):
        queue.add("fast", NONE, 1)
    assert [serve(queue, 0.001) for _ in range(10)] == ["fast"] * 10
    queue.add("slow", NONE, 1)
    assert [serve(queue, 0.001) for _ in range(40)] == ["fast"] * 40


def test_who_was_away_is_not_served_for_the_time_that_it_asked_for_nothing() -> None:
    queue = Queue()
    for _ in range(50):
        queue.add("always", NONE, 1)
        serve(queue, 0.001)
    for _ in range(20):
        queue.add("new", NONE, 1)
        queue.add("always", NONE, 1)
    assert 8 <= [serve(queue, 0.001) for _ in range(20)].count("new") <= 12


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=50), st.lists(st.floats(0, 1), min_size=50))
def test_all_that_waits_is_served_once_and_each_containers_in_its_order(owners: list[str], costs: list[float]) -> None:
    queue = Queue()
    for length, whose in enumerate(owners):
        queue.add(whose, NONE, length)
    assert (len(queue), queue.lines) == (len(owners), len(set(owners)))
    served: dict[str, list[int]] = {}
    for seconds in costs[: len(owners)]:
        request = queue.next()
        assert request is not None
        queue.charge(request, 0.0, seconds)
        served.setdefault(request.whose, []).append(request.length)
    assert queue.next() is None
    assert queue.first() is None
    assert not queue
    assert sorted(length for lengths in served.values() for length in lengths) == list(range(len(owners)))
    assert all(lengths == sorted(lengths) for lengths in served.values())


def test_whose_requests_have_all_been_taken_waits_no_longer() -> None:
    """Who is alone again is served without a queue."""
    queue = Queue()
    for whose in ("/docker/one", "/docker/other"):
        queue.add(whose, NONE, 1)
    assert queue.lines == 2
    serve(queue, 0.001)
    assert queue.lines == 1


def test_shares_are_of_those_who_had_the_most_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MAX_SHARES", 3)
    queue = Queue()
    for n in range(10):
        queue.add(f"container {n}", NONE, 1)
        serve(queue, n)
    assert (queue.crowd().waiting, queue.crowd().together.requests) == (0, 10), "of those that are forgotten, too"
    shares = queue.crowd().shares
    assert set(shares) == {"container 7", "container 8", "container 9"}
    assert shares["container 9"].requests == 1
    assert shares["container 9"].seconds == pytest.approx(9)


def test_what_was_known_of_many_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_MAX_KNOWN", 3)
    queue = Queue()
    for n in range(10):
        queue.add(f"container {n}", NONE, 1)
        serve(queue, 1)
    assert queue._known <= 4
    assert queue._known == sum(1 + len(branch.branches) for branch in queue._root.branches.values())


def test_cgroups_below_a_containers_own_have_its_share_together() -> None:
    queue = Queue()
    for n in range(300):
        queue.add(f"/docker/attacker/{n}/deep", NONE, 1)
    for _ in range(300):
        queue.add("/docker/victim", NONE, 1)
    served = [serve(queue, 0.001) for _ in range(100)]
    assert 45 <= served.count("/docker/victim") <= 55
    assert len(set(served)) > 45, "and share it among them"


def test_processes_of_a_cgroup_and_those_below_are_served_in_turn() -> None:
    queue = Queue()
    for _ in range(100):
        queue.add("/docker/one", NONE, 1)
        queue.add("/docker/one/below", NONE, 1)
        queue.add("/docker", NONE, 1)
    served = [serve(queue, 0.001) for _ in range(100)]
    assert 20 <= served.count("/docker/one") <= 30
    assert 20 <= served.count("/docker/one/below") <= 30
    assert 45 <= served.count("/docker") <= 55


def test_a_cgroup_that_is_very_deep_costs_no_more_than_others() -> None:
    queue = Queue()
    queue.add("/" + "d/" * 2000, NONE, 1)
    assert queue._known <= waiting._DEPTH + 2
    assert queue.first() is not None
    serve(queue, 0.001)
    assert queue.first() is None


def test_when_all_wait_they_are_not_looked_through_for_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    prune = waiting._prune
    monkeypatch.setattr(waiting, "_MAX_KNOWN", 10)
    monkeypatch.setattr(waiting, "_prune", lambda branch: looks.append(branch) or prune(branch))
    queue = Queue()
    for n in range(100):
        queue.add(f"/a/{n}", NONE, 1)
    for _ in range(50):
        serve(queue, 0.001)
    assert looks.count(queue._root) == 1
