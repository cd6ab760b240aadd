"""Who attends to system calls where threads are kept waiting."""

from __future__ import annotations

import os
import threading

import pytest

from lxcfs_py.syscalls import relay as relays
from lxcfs_py.syscalls.memory import SLOTS, Memory, Slot, new
from lxcfs_py.syscalls.relay import Relay, Shift, TakeBack
from tests.kept import wait_for


def test_a_successor_that_is_left_a_call_in_each_slot_leads_when_one_is_free() -> None:
    file = new()
    before = Memory(file)
    for number in range(SLOTS):
        before.take().expect(number + 1)
    memory, leads, answered = Memory(file), threading.Event(), threading.Event()

    def work(shift: Shift) -> None:
        leads.set()
        relay.stop()

    def answer(slot: Slot) -> None:
        answered.wait(20)

    relay = Relay(memory, work, lambda descriptor: lambda: None, lambda shift: None)
    left = list(memory.taken())
    assert [number for _, number in left] == list(range(1, SLOTS + 1))
    for slot, _ in left:
        relay.beside(slot, 0, answer)
    relay.start()
    assert not leads.wait(0.3)
    answered.set()
    assert leads.wait(20)
    wait_for(lambda: not list(Memory(file).taken()))
    os.close(file)


def test_a_thread_gives_back_its_slot_whatever_comes_of_its_call() -> None:
    def finish(shift: Shift) -> None:
        raise ValueError("a call that cannot be finished")

    file = new()
    memory = Memory(file)
    relay = Relay(memory, lambda shift: relay.stop(), lambda descriptor: lambda: None, finish)
    relay.start()
    wait_for(lambda: len(memory._free) == SLOTS and relay._leader is None)
    os.close(file)


def test_an_error_does_not_end_who_sees_to_it_that_somebody_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "_AFTER_AN_ERROR", 0.01)
    errors = [OSError("left out once too often")]
    goes_on, released = threading.Event(), threading.Event()

    def work(shift: Shift) -> None:
        if not shifts:
            shifts.append(shift)
            relay.begin(shift, 0)
            released.wait(60)
            relay.end(shift)
        else:
            goes_on.set()
            relay.stop()

    def leave_out(descriptor: int) -> TakeBack:
        if errors:
            raise errors.pop()
        return lambda: None

    shifts: list[Shift] = []
    file = new()
    memory = Memory(file)
    relay = Relay(memory, work, leave_out, lambda shift: None)
    relay.start()
    assert goes_on.wait(20)
    assert not errors
    released.set()
    wait_for(lambda: len(memory._free) == SLOTS)
    os.close(file)
