"""Whose turn it is to read requests."""

from __future__ import annotations

import errno
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Callable
from unittest.mock import Mock

import pytest

from lxcfs_py.engine import protocol
from lxcfs_py.engine.session import OPCODE
from lxcfs_py.engine.turns import CROWD, Relay

MANY = 5


class Workers:
    """Workers that stand by and, when it is their turn, note that they read."""

    def __init__(self, count: int) -> None:
        self.slots = [memoryview(bytearray(protocol.IN_HEADER.size)) for _ in range(count)]
        self.relay = Relay(self.slots)
        self.turns: list[int] = []
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(count)]

    def work(self, number: int) -> None:
        while not self.relay.stopped:
            self.relay.stand_by(number)
            if self.relay.stopped:
                return
            self.turns.append(number)
            # It reads, or is at the request in its slot.
            while (self.slots[number][OPCODE] or self.relay.reads(number)) and not self.relay.stopped:
                time.sleep(0.001)

    def take(self, worker: int, request: int) -> None:
        """Put a request into a worker's slot, as the kernel does."""
        protocol.IN_HEADER.pack_into(self.slots[worker], 0, protocol.IN_HEADER.size, protocol.READ, request, 0, 0)
        self.relay.begin(worker)

    def turn(self, count: int) -> int:
        """Wait until there were so many turns; return whose the last one is."""
        wait(lambda: len(self.turns) == count)
        return self.turns[-1]

    def answer(self, worker: int) -> None:
        self.slots[worker][:] = bytes(protocol.IN_HEADER.size)


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(MANY)
    for thread in made.threads:
        thread.start()
    try:
        yield made
    finally:
        made.relay.stop()
        for thread in made.threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in made.threads)


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_reads_and_the_others_stand_by(workers: Workers) -> None:
    reader = workers.turn(1)
    time.sleep(0.1)
    assert workers.turns == [reader]


def test_a_reader_at_one_request_for_long_is_followed_by_another_until_all_are_at_one(workers: Workers) -> None:
    for request in range(1, MANY):
        workers.take(workers.turn(request), request)
    workers.turn(MANY)
    assert sorted(workers.turns) == list(range(MANY))


def test_who_was_followed_takes_its_turn_again(workers: Workers) -> None:
    for turn in range(1, 3 * MANY):
        reader = workers.turn(turn)
        workers.take(reader, turn)
        workers.turn(turn + 1)
        workers.answer(reader)
    assert len(set(workers.turns)) > 1


def test_a_reader_stays_it_while_its_requests_change_and_is_followed_at_the_second_look_at_one() -> None:
    slots = [memoryview(bytearray(protocol.IN_HEADER.size)) for _ in range(2)]
    relay = Relay(slots)
    reader, other = range(2)
    relay.reader = reader
    readers = []
    for request in (1, 2, 3, 3):
        protocol.IN_HEADER.pack_into(slots[reader], 0, protocol.IN_HEADER.size, protocol.READ, request, 0, 0)
        relay._look(other)
        readers.append(relay.reader)
    assert readers == [reader, reader, reader, other]


def test_while_requests_come_one_at_a_time_two_read(workers: Workers) -> None:
    reader = workers.turn(1)
    for request in range(1, 4):
        workers.take(reader, request)
        workers.answer(reader)
        wait(lambda: not workers.relay._is_set)
    assert workers.turns == [reader, workers.relay.companion]


def test_the_companion_steps_back_when_there_are_many_requests(workers: Workers) -> None:
    reader = workers.turn(1)
    workers.take(reader, 1)
    workers.answer(reader)
    companion = workers.turn(2)
    for request in range(2, CROWD + 2):
        assert workers.relay.companion == companion
        workers.take(reader, 2 * request)
        workers.take(companion, 2 * request + 1)
        workers.answer(companion)
        workers.answer(reader)
    assert workers.relay.companion is None
    assert workers.relay.reader == reader


def test_a_companion_that_meets_the_reader_now_and_then_stays(workers: Workers) -> None:
    reader = workers.turn(1)
    workers.take(reader, 1)
    workers.answer(reader)
    companion = workers.turn(2)
    for request in range(2, 3 * CROWD):
        if request % CROWD:
            workers.take(reader, 2 * request)
        workers.take(companion, 2 * request + 1)
        workers.answer(companion)
        workers.answer(reader)
    assert workers.relay.companion == companion


def test_a_reader_that_serves_a_queue_gets_no_companion(workers: Workers) -> None:
    reader = workers.turn(1)
    workers.relay.sharer = reader
    for request in range(1, 4):
        workers.take(reader, request)
        workers.answer(reader)
        wait(lambda: not workers.relay._is_set)
    assert workers.turns == [reader]


def test_a_reader_whose_request_stands_in_another_slot_is_followed_too(workers: Workers) -> None:
    reader = workers.turn(1)
    elsewhere = memoryview(bytearray(protocol.IN_HEADER.size))
    protocol.IN_HEADER.pack_into(elsewhere, 0, protocol.IN_HEADER.size, protocol.READ, 1, 0, 0)
    workers.relay.show(reader, elsewhere)
    workers.relay.begin(reader)
    assert workers.turn(2) != reader
    assert workers.relay.companion is None


def test_with_nothing_at_hand_the_timer_is_set_no_more(workers: Workers) -> None:
    reader = workers.turn(1)
    workers.take(reader, 1)
    workers.answer(reader)
    wait(lambda: not workers.relay._is_set)


def test_a_request_that_comes_while_the_timer_is_put_away_is_watched() -> None:
    """The reader sees the timer set just before whoever looks, who found nothing at hand, puts it away."""

    class Slot(bytearray):
        looks = 0

        def __getitem__(self, index: Any) -> Any:
            self.looks += 1
            return 0 if self.looks == 1 else super().__getitem__(index)

    slot = Slot(protocol.IN_HEADER.pack(protocol.IN_HEADER.size, protocol.READ, 7, 0, 0))
    relay = Relay([slot])  # type: ignore[list-item]
    relay.reader = 0
    relay.begin(0)
    relay._look(1)
    assert slot.looks == 2
    assert relay.reader == 0
    relay._look(1)
    assert relay.reader == 1


def test_its_descriptor_ends_with_it() -> None:
    before = os.listdir("/proc/self/fd")
    relay = Relay([])
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    del relay
    assert os.listdir("/proc/self/fd") == before


def test_where_no_descriptor_can_be_had_that_is_all_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    refused = Mock(side_effect=OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    monkeypatch.setattr("lxcfs_py.linux.syscalls.timerfd_create", refused)
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(OSError, match="Too many open files"):
        Relay([])
    gc.collect()
    assert not said
