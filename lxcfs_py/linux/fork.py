"""Processes that are forked for one piece of work."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from typing import Callable, NoReturn

RAISED = 255
"""The exit code where the work raises."""


def start(work: Callable[[], int]) -> int:
    """Let a new process work, and end with the code that this returns; return its pid. OSError.

    A signal that comes meanwhile is handled afterwards: of what its handler raises during a fork, Python only prints a
    traceback. Those that this process handles have their default effect in the new one, as after execve(2).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # it may raise what a signal of before does
        child = os.fork()
        if not child:
            _work(work, before)
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(work: Callable[[], int], mask: Iterable[int]) -> NoReturn:
    code = RAISED
    try:
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = work()
    finally:
        os._exit(code)
