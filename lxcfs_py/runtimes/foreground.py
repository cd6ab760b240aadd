"""A command in a sandbox, on the caller's terminal: its keys and signals reach the command, and it comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Callable, Optional

from lxcfs_py.runtimes.sandbox import Sandbox, SandboxError

_DEADLY = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def run_command(command: Sequence[str], box: Sandbox) -> int:
    """Run a command in a sandbox, on the caller's terminal, and return its exit code: 128 + signal if one killed it.

    The sandbox lasts as long. SandboxError when there can be no such one, or no such command.
    """
    process: Optional[subprocess.Popen[bytes]] = None
    early: list[int] = []
    leads = _types_and_reads()

    def on_signal(number: int, _frame: Optional[FrameType]) -> None:
        if process is None:
            early.append(number)
        elif leads or number in (signal.SIGTERM, signal.SIGHUP):  # else the terminal sends the others to all
            process.send_signal(number)

    with _handling(on_signal), _terminal_kept(), box:
        try:
            process = box.popen(command, _lead if leads else None)
        except OSError as error:
            raise SandboxError(f"cannot run {command[0]}: {error.strerror}") from None
        for number in early:
            process.send_signal(number)
        if leads:
            _stop_with(process.pid)
        status = process.wait()
        if leads and -status in (signal.SIGINT, signal.SIGQUIT):  # a script that runs us ends with it
            os.kill(0, -status)
    return status if status >= 0 else 128 - status


def _types_and_reads() -> bool:
    """Whether our standard input and output are a terminal, of which we are in the foreground.

    A command then leads a process group of its own there: a shell gives the terminal back to the group that had it,
    for which there must be a name inside. In a pipeline, others of our group may need the terminal's keys.
    """
    try:
        return os.tcgetpgrp(0) == os.tcgetpgrp(1) == os.getpgrp()
    except OSError:
        return False


def _lead() -> None:
    """In the command's process: lead a group, and have the terminal for that."""
    os.setpgid(0, 0)
    _give(0, os.getpgrp())


def _give(terminal: int, group: int) -> None:
    """Have a process group be in a terminal's foreground, though this one is not."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
    try:
        os.tcsetpgrp(terminal, group)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stop_with(leader: int) -> None:
    """Stop where the command does, for our caller's shell to go on, and have both go on with it; return at its end."""
    with contextlib.suppress(ChildProcessError):  # who has passed a signal on has met its end
        while _is_stopped(leader):
            with contextlib.suppress(OSError):  # the terminal has hung up
                foreground = os.tcgetpgrp(0)
                if foreground != os.getpgrp():
                    # Who has no shell to be resumed by does not stop of SIGTSTP, but must not run round in background.
                    os.kill(0, signal.SIGTSTP if foreground == leader else signal.SIGSTOP)
                if os.tcgetpgrp(0) == os.getpgrp():
                    _give(0, leader)
            os.killpg(leader, signal.SIGCONT)


def _is_stopped(child: int) -> bool:
    """Wait for a child to stop or to end, which is left for others to see; tell whether it has stopped."""
    change = os.waitid(os.P_PID, child, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
    if change is None or change.si_code != os.CLD_STOPPED:
        return False
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOHANG)
    return True


@contextlib.contextmanager
def _handling(handler: Callable[[int, Optional[FrameType]], None]) -> Iterator[None]:
    """Handle what would end us before we have cleaned up, except what our caller has us ignore.

    A script's shell has what it starts with & ignore the keys that interrupt. Who has a terminal has them all the same.
    """
    before = {number: signal.getsignal(number) for number in _DEADLY}
    keys = (signal.SIGINT, signal.SIGQUIT) if _in_foreground() else ()
    for number, was in before.items():
        if was != signal.SIG_IGN or number in keys:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _in_foreground() -> bool:
    """Whether our process group is the one that the keys of a terminal interrupt."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


@contextlib.contextmanager
def _terminal_kept() -> Iterator[None]:
    """Take the terminal back where nobody is left of those inside who have had it."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    foreground = os.tcgetpgrp(terminal) == os.getpgrp()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it has hung up
            if foreground and _has_ended(os.tcgetpgrp(terminal)):
                _give(terminal, os.getpgrp())
        os.close(terminal)


def _has_ended(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
