"""Processes that are forked to attach."""

from __future__ import annotations

import os
import select
import signal

import pytest

from lxcfs_py.attach.forks import Forks


def killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize(("work", "code"), [(lambda: 2, 2), (killed, -1)], ids=["a code", "a signal"])
def test_of_each_it_is_told_what_it_was_for_and_how_it_ended(work, code):
    poll = select.poll()
    forks: Forks[str] = Forks(poll, 1)
    assert not forks.are_enough
    forks.start(work, "one")
    assert forks.are_enough
    ((descriptor, _),) = poll.poll(10_000)
    assert descriptor in forks
    assert forks.reap(descriptor) == ("one", code)
    assert descriptor not in forks
    assert not forks.are_enough
    assert not poll.poll(0)
