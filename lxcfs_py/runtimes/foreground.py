"""A command in a sandbox, on the caller's terminal: its keys and signals reach the command, and it comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Callable, Optional

from lxcfs_py.runtimes.sandbox import Sandbox, SandboxError

_DEADLY = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)


def run_command(
    command: Sequence[str],
    memory: Optional[int] = None,
    swap: Optional[int] = None,
    cpus: Optional[float] = None,
    cpuset: Optional[str] = None,
    views: Optional[Path] = None,
    files: Optional[Sequence[str]] = None,
    agent: str = "",
) -> int:
    """Run a command in a sandbox, on the caller's terminal, and return its exit code: 128 + signal if one killed it.

    SandboxError when there can be no such sandbox, or no such command.
    """
    process: Optional[subprocess.Popen[bytes]] = None
    early: list[int] = []

    def on_signal(number: int, _frame: Optional[FrameType]) -> None:
        if process is None:
            early.append(number)
        elif number in (signal.SIGTERM, signal.SIGHUP):  # the others come from the terminal, that sends them to all
            process.send_signal(number)

    with (
        _handling(on_signal),
        _terminal_kept(),
        Sandbox(memory, swap, cpus, cpuset, views, files, own_clock=True, agent=agent) as box,
    ):
        try:
            process = box.popen(command)
        except OSError as error:
            raise SandboxError(f"cannot run {command[0]}: {error.strerror}") from None
        for number in early:
            process.send_signal(number)
        status = process.wait()
    return status if status >= 0 else 128 - status


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
    """Take the terminal back from a shell inside, that knows no name for our process group to give it back to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        foreground = os.tcgetpgrp(terminal) == os.getpgrp()
        yield
        if foreground and os.tcgetpgrp(terminal) != os.getpgrp():
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(terminal, os.getpgrp())
            signal.signal(signal.SIGTTOU, before)
    finally:
        os.close(terminal)
