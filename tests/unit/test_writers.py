"""Answers that are written into memory, and given, by processes of their own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from lxcfs_py import isolated
from lxcfs_py.linux import seccomp
from lxcfs_py.syscalls import writable, writers
from lxcfs_py.syscalls.writers import Order, Writer, Writers

WRITTEN, FAILED = b"written", b"failed."


@pytest.fixture
def room() -> ctypes.Array[ctypes.c_char]:
    """Memory that may be written to."""
    return ctypes.create_string_buffer(64)


@pytest.fixture
def monitor() -> Iterator[socket.socket]:
    """Who is told how the calls end."""
    monitor, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with monitor, connection:
        monitor.settimeout(20)
        CONNECTIONS[monitor] = connection
        yield monitor
        del CONNECTIONS[monitor]


CONNECTIONS: dict[socket.socket, socket.socket] = {}


def order(monitor: socket.socket, text: bytes, address: int, *memory: int) -> Order:
    return Order(os.getpid(), 0, address, text, WRITTEN, FAILED, [CONNECTIONS[monitor].fileno(), *memory])


def ended(written: Writers, order: Order) -> Writer:
    """Who has done something."""
    writer = written.begin(order)
    assert writer.is_done(20)
    return writer


def test_a_text_is_written_and_a_call_whose_address_is_none_is_let_through(
    monitor: socket.socket, room: ctypes.Array[ctypes.c_char]
) -> None:
    written = Writers()
    written.prepare()
    for address, text, answer in (
        (ctypes.addressof(room), b"answer", WRITTEN),
        (8, b"none", FAILED),
        (ctypes.addressof(room), b"again\0", WRITTEN),
    ):
        written.take_back(ended(written, order(monitor, text, address)))
        assert monitor.recv(64) == answer
    assert room.value == b"again"


@pytest.mark.parametrize("address", [1 << 63, 0xFFFF800000000000, (1 << 64) - 1])
def test_an_address_of_the_kernels_does_not_end_who_writes(
    monitor: socket.socket, monkeypatch: pytest.MonkeyPatch, address: int
) -> None:
    monkeypatch.setattr(writable, "_is_known", False)  # as before Linux 6.11
    assert writers._do(order(monitor, b"none", address)) == 0
    assert monitor.recv(64) == FAILED


@pytest.mark.parametrize(
    ("flags", "error", "said"), [(2, 0, True), (1, 0, False), (0, errno.ENOENT, False), (0, errno.ENOTTY, True)]
)
def test_memory_is_writable_where_the_kernel_says_so_of_all_of_it_or_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, flags: int, error: int, said: bool
) -> None:
    """Through /proc/PID/mem, root writes to memory that is for reading alone, too."""

    def ioctl(_: int, __: int, query: bytes) -> bytes:
        if error:
            raise OSError(error, os.strerror(error))
        address = writable._QUERY.unpack(query)[2]
        return writable._QUERY.pack(0, 0, 0, 0, address + 4096, 2 if address < 8192 else flags)

    monkeypatch.setattr(writable, "_is_known", True)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    before = os.listdir("/proc/self/fd")
    assert writable.is_writable(os.getpid(), 4096, 8192) == said
    assert os.listdir("/proc/self/fd") == before
    assert writable._is_known == (error != errno.ENOTTY), "it is asked no more where it does not know"


@pytest.mark.parametrize(("valid", "can"), [(False, True), (True, False)])
def test_nothing_is_written_for_a_call_that_is_over_or_where_its_thread_may_not_write(
    monitor: socket.socket, room: ctypes.Array[ctypes.c_char], monkeypatch: pytest.MonkeyPatch, valid: bool, can: bool
) -> None:
    answers: list[bytes] = []
    monkeypatch.setattr(seccomp, "is_valid", lambda *_: valid)
    monkeypatch.setattr(writable, "is_writable", lambda *_: can)
    monkeypatch.setattr(seccomp, "send", lambda _, answer: answers.append(answer))
    assert writers._do(order(monitor, b"answer", ctypes.addressof(room))._replace(call=7)) == 0
    assert (room.value, answers) == (b"", [FAILED])


@pytest.mark.parametrize("error", [errno.ENOENT, errno.EINPROGRESS, errno.EBADF])
def test_a_call_for_which_nobody_waits_any_longer_is_no_error(
    monitor: socket.socket, room: ctypes.Array[ctypes.c_char], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(seccomp, "is_valid", lambda *_: True)
    monkeypatch.setattr(seccomp, "send", Mock(side_effect=OSError(error, os.strerror(error))))
    done = writers._do(order(monitor, b"answer", ctypes.addressof(room))._replace(call=7))
    assert done == (errno.EBADF if error == errno.EBADF else 0)


def test_memory_that_was_sent_is_written_to_and_closed(
    monitor: socket.socket, room: ctypes.Array[ctypes.c_char]
) -> None:
    memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    ended(Writers(), order(monitor, b"answer", ctypes.addressof(room), memory)).close()
    assert (monitor.recv(64), room.value) == (WRITTEN, b"answer")
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(memory)


def test_a_call_that_cannot_be_ended_is_an_error(monitor: socket.socket, room: ctypes.Array[ctypes.c_char]) -> None:
    asked = order(monitor, b"answer", ctypes.addressof(room))
    monitor.close()
    writer = Writers().begin(asked)
    with pytest.raises(BrokenPipeError):
        writer.is_done(20)
    writer.close()


def test_one_that_has_ended_is_followed_by_another(monitor: socket.socket, room: ctypes.Array[ctypes.c_char]) -> None:
    written = Writers()
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    its.close()
    written.take_back(Writer(mine))
    ended(written, order(monitor, b"answer", ctypes.addressof(room))).close()
    assert (monitor.recv(64), room.value) == (WRITTEN, b"answer")


def test_of_those_that_are_done_no_more_wait_for_something_to_do_than_the_bound() -> None:
    """Else one container that keeps many waiting for a moment leaves as many processes."""
    written = Writers()
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(5)]
    for mine, _ in pairs:
        written.take_back(Writer(mine))
    assert [mine.fileno() >= 0 for mine, _ in pairs] == [True, True, False, False, False]
    for mine, its in pairs:
        mine.close()
        its.close()


def test_who_ends_in_the_middle_is_told_from_who_is_not_done() -> None:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    writer = Writer(mine)
    assert not writer.is_done(0)
    its.close()
    with pytest.raises(EOFError):
        writer.is_done(20)
    writer.close()


def started() -> tuple[Writer, subprocess.Popen[bytes], socket.socket]:
    """One that is there."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = isolated.command(writers.__name__, str(its.fileno()))
        return Writer(mine), subprocess.Popen(command, pass_fds=[its.fileno()]), mine


def test_what_is_meant_for_the_daemon_does_not_end_it(
    monitor: socket.socket, room: ctypes.Array[ctypes.c_char]
) -> None:
    """Nor any other process of the service: `systemctl kill` signals them all."""
    writer, process, _ = started()
    with process:
        for text in (b"before", b"after\0"):
            writer.begin(order(monitor, text, ctypes.addressof(room)))
            assert writer.is_done(20)
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
                process.send_signal(number)
        writer.close()
    assert process.returncode == 0
    assert room.value == b"after"


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_service_ends_it_without_a_word(
    monitor: socket.socket,
    room: ctypes.Array[ctypes.c_char],
    number: signal.Signals,
    capfd: pytest.CaptureFixture[str],
) -> None:
    writer, process, _ = started()
    with process:
        writer.begin(order(monitor, b"text", ctypes.addressof(room)))
        assert writer.is_done(20)
        process.send_signal(number)
        assert process.wait(20) == -number
        writer.close()
    assert capfd.readouterr().err == ""


def test_it_does_what_it_is_told_and_ends_with_who_tells(
    monitor: socket.socket, room: ctypes.Array[ctypes.c_char]
) -> None:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=writers._main, args=(its,))
    thread.start()
    writer = Writer(mine)
    for address, answer in ((ctypes.addressof(room), WRITTEN), (8, FAILED)):
        writer.begin(order(monitor, b"answer", address))
        assert writer.is_done(20)
        assert monitor.recv(64) == answer
    writer.close()
    thread.join(20)
    assert not thread.is_alive()
    its.close()
