"""Who lets go of a descriptor last: here of one end of a pair, at the other end of which that is seen."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lxcfs_py.engine import holder as module
from lxcfs_py.engine.holder import Holder
from lxcfs_py.linux import serving, threads
from tests.kept import wait_for


@pytest.fixture
def holder() -> Iterator[Holder]:
    holder = Holder()
    yield holder
    if holder._connection is not None:
        holder._connection.close()
    wait_for(lambda: not processes())


def processes() -> list[psutil.Process]:
    """Those of this process that hold something."""
    return [each for each in psutil.Process().children() if is_one(each)]


def is_one(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it has ended, whether or not somebody has asked how
        return module.__name__ in process.cmdline()
    return False


def held_by(holder: Holder) -> tuple[int, socket.socket]:
    """A descriptor that is held, and what sees when it is no longer."""
    near, far = socket.socketpair()
    far.setblocking(False)
    descriptor = near.detach()
    holder.hold(descriptor)
    return descriptor, far


def is_let_go(far: socket.socket) -> bool:
    try:
        return far.recv(1) == b""
    except BlockingIOError:
        return False


def the_process(descriptors: int) -> psutil.Process:
    """The one that holds, once it has so many sockets beside that by which it is told."""

    wait_for(lambda: [sockets(each) for each in processes()] == [descriptors + 1])
    (process,) = processes()
    return process


def sockets(process: psutil.Process) -> int:
    return sum(target.startswith("socket:") for _, target in serving.descriptors(process.pid))


def test_the_process_lets_go_last_and_nobody_waits_for_it(holder: Holder) -> None:
    (first, its_end), (second, other) = held_by(holder), held_by(holder)
    process = the_process(2)
    assert "\nSeccomp:\t2\n" in Path(f"/proc/{process.pid}/status").read_text(), "it has a filter"
    process.send_signal(signal.SIGSTOP)
    holder.close(first)
    assert not is_let_go(its_end)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: is_let_go(its_end))
    assert not is_let_go(other)
    holder.close(second)
    wait_for(lambda: is_let_go(other))


def test_when_the_server_has_ended_all_are_let_go_by_a_process_that_then_ends(holder: Holder) -> None:
    held = [held_by(holder) for _ in range(3 * module._AT_A_TIME)]
    process = the_process(len(held))
    process.send_signal(signal.SIGSTOP)
    for descriptor, _ in held:
        os.close(descriptor)
    assert holder._connection is not None
    holder._connection.close()
    assert not any(is_let_go(far) for _, far in held)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: not processes())
    assert all(is_let_go(far) for _, far in held)


def test_where_the_process_was_killed_another_one_holds_what_comes(holder: Holder) -> None:
    descriptor, far = held_by(holder)
    process = the_process(1)
    process.kill()
    process.wait(10)
    holder.close(descriptor)
    assert is_let_go(far)
    descriptor, far = held_by(holder)
    assert the_process(1).pid != process.pid
    holder.close(descriptor)
    wait_for(lambda: is_let_go(far))


def test_one_that_does_not_take_what_it_is_told_is_given_up(holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    first, far = held_by(holder)
    process = the_process(1)
    process.send_signal(signal.SIGSTOP)
    connection = holder._connection
    descriptors = []
    while holder._connection is connection:
        descriptors.append(held_by(holder)[0])
        assert len(descriptors) < 4096
    holder.close(first)
    for descriptor in descriptors:
        holder.close(descriptor)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: is_let_go(far))


@pytest.mark.parametrize("cannot", ["thread", "process"])
def test_where_no_process_can_be_had_this_one_holds_alone(
    cannot: str, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_arguments: object, **_options: object) -> None:
        raise OSError(11, os.strerror(11))

    monkeypatch.setattr(*((threads, "start", none) if cannot == "thread" else (subprocess, "Popen", none)))
    descriptor, far = held_by(holder)
    wait_for(lambda: not any(thread.name == "holder" for thread in threading.enumerate()))
    holder.close(descriptor)
    assert is_let_go(far)
    assert not processes()


def test_what_was_told_to_a_process_before_it_is_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can have no threads either, it lets go of one after the other."""
    monkeypatch.setattr(threads, "start", lambda *_arguments, **_options: os.close(-1))
    monkeypatch.setattr(module, "_room", threading.Semaphore(module._AT_A_TIME))
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pairs = [socket.socketpair() for _ in range(2)]
    with mine:
        for number, (near, _) in enumerate(pairs):
            socket.send_fds(mine, [module._NUMBER.pack(number)], [near.fileno()])
            near.close()
        for number in (7, 0):
            socket.send_fds(mine, [module._NUMBER.pack(number)], [])
    with its:
        module._main(its)
    for _, far in pairs:
        far.setblocking(False)
        assert is_let_go(far)
