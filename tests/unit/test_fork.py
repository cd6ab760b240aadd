"""Processes that are forked for one piece of work, and signals meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lxcfs_py.linux import fork


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def handled() -> Iterator[None]:
    """This process handles SIGUSR1, ignores SIGUSR2 and blocks SIGHUP."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_process_ends_with_the_code_of_its_work() -> None:
    assert exit_code(fork.start(lambda: 7)) == 7
    assert exit_code(fork.start(lambda: 1 // 0)) == fork.RAISED


def test_a_signal_has_the_effect_there_that_it_has_after_an_exec(handled: None) -> None:
    own = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def work() -> int:
        effects = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)
        return int(effects == (signal.SIG_DFL, signal.SIG_IGN) and signal.pthread_sigmask(signal.SIG_BLOCK, ()) == own)

    assert exit_code(fork.start(work)) == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == own


@pytest.mark.parametrize(
    "call",
    [
        "visits.Visits().one(lambda ask: None)",
        "mountpoint.answers('/')",
        "probe._read_by_child('/proc/uptime', [])",
        "forks.Forks(select.poll(), 1).start(lambda: 0, None)",
    ],
)
def test_an_interrupt_in_the_midst_of_a_fork_interrupts_and_nothing_else_is_printed(call: str) -> None:
    program = f"""
import os, select, signal
from lxcfs_py.attach import forks, visits
from lxcfs_py.commands import probe
from lxcfs_py.linux import mountpoint
for hook in ("after_in_parent", "after_in_child"):
    os.register_at_fork(**{{hook: lambda: os.kill(os.getpid(), signal.SIGINT)}})
try:
    {call}
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
