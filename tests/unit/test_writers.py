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


def test_what_is_meant_for_the_daemon_does_not_end_it(memory: int) -> None:
    """Nor any other process of the service: `systemctl kill` signals them all."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        process = subprocess.Popen(isolated.command(writers.__name__, str(its.fileno())), pass_fds=[its.fileno()])
    with process, mine:
        room = ctypes.create_string_buffer(8)
        for text in (b"before", b"after"):
            socket.send_fds(mine, [writers._WANTED.pack(ctypes.addressof(room)), text], [memory])
            assert writers._DONE.unpack(mine.recv(64)) == (len(text), 0)
            for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
                process.send_signal(number)
    assert process.returncode == 0


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
