"""Who attends to system calls where threads are kept waiting."""

from __future__ import annotations

import os
import threading

from lxcfs_py.syscalls.memory import SLOTS, Memory, Slot, new
from lxcfs_py.syscalls.relay import Relay, Shift
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
