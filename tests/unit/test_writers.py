"""Answers that are written into memory by processes of their own."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import pytest

from lxcfs_py import isolated
from lxcfs_py.syscalls import writers
from lxcfs_py.syscalls.writers import Writers


@pytest.fixture
def memory() -> Iterator[int]:
    memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    yield memory
    os.close(memory)


def test_a_text_is_written_and_an_address_that_is_none_is_the_kernels_error(memory: int) -> None:
    room, written = ctypes.create_string_buffer(8), Writers()
    written.prepare()
    assert written.write(memory, b"answer", ctypes.addressof(room)) == 6
    assert room.value == b"answer"
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        written.write(memory, b"answer", 8)
    assert written.write(memory, b"again", ctypes.addressof(room)) == 5


def test_one_that_has_ended_is_followed_by_another(memory: int) -> None:
    room, written = ctypes.create_string_buffer(8), Writers()
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    its.close()
    written._idle.append(mine)
    with pytest.raises((OSError, struct.error)):
        written.write(memory, b"answer", ctypes.addressof(room))
    assert written.write(memory, b"answer", ctypes.addressof(room)) == 6


def started() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """One that is there, and its end of the connection."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = isolated.command(writers.__name__, str(its.fileno()))
        return mine, subprocess.Popen(command, pass_fds=[its.fileno()])


def asked(connection: socket.socket, memory: int, text: bytes) -> tuple[int, int]:
    """What it answers who wants a text written."""
    room = ctypes.create_string_buffer(8)
    socket.send_fds(connection, [writers._WANTED.pack(ctypes.addressof(room)), text], [memory])
    written, error = writers._DONE.unpack(connection.recv(64))
    assert room.value == text
    return written, error


def test_what_is_meant_for_the_daemon_does_not_end_it(memory: int) -> None:
    """Nor any other process of the service: `systemctl kill` signals them all."""
    mine, process = started()
    with process, mine:
        for text in (b"before", b"after"):
            assert asked(mine, memory, text) == (len(text), 0)
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
                process.send_signal(number)
    assert process.returncode == 0


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_the_service_ends_it_without_a_word(
    memory: int, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    mine, process = started()
    with process, mine:
        assert asked(mine, memory, b"text") == (4, 0)
        process.send_signal(number)
        assert process.wait(20) == -number
    assert capfd.readouterr().err == ""


def test_it_writes_what_it_is_sent_and_ends_with_who_sends(memory: int) -> None:
    room = ctypes.create_string_buffer(8)
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=writers._main, args=(its,))
    thread.start()
    for address, done in ((ctypes.addressof(room), (6, 0)), (8, (0, errno.EIO))):
        socket.send_fds(mine, [writers._WANTED.pack(address), b"answer"], [memory])
        assert writers._DONE.unpack(mine.recv(64)) == done
    mine.close()
    thread.join(20)
    assert not thread.is_alive()
    its.close()
