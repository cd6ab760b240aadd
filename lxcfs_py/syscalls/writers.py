"""Answers are written into callers' memory by processes of their own, which hold nothing that anybody else needs.

Who made a memory can keep waiting who writes to it, in a way that no signal ends: its pages may be those of a file
whose server holds them back. A server with such a thread could not end, and would keep its session from all who follow.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading

from lxcfs_py import isolated

_WANTED = struct.Struct("=Q")  # the address; the text is behind it
_DONE = struct.Struct("=ii")  # how many bytes were written, and the error's number
_MOST = 4096  # bytes of a message
_MOST_IDLE = 2


class Writers:
    """Those that wait for something to write. One is started where all others are at something."""

    def __init__(self) -> None:
        self._idle: list[socket.socket] = []
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """See to it that one is there, as it takes a while to start. OSError."""
        with self._lock:
            if not self._idle:
                self._idle.append(_start())

    def write(self, memory: int, text: bytes, address: int) -> int:
        """Write to an opened memory; return how many bytes were written. OSError as pwrite(2) has it.

        It waits for as long as that memory lets it wait, but not longer than this process lives.
        """
        with self._lock:
            writer = self._idle.pop() if self._idle else None
        writer = writer or _start()
        try:
            socket.send_fds(writer, [_WANTED.pack(address), text], [memory])
            written, error = _DONE.unpack(writer.recv(_DONE.size))
        except (OSError, struct.error):  # it has ended
            writer.close()
            raise
        with self._lock:
            is_spare = len(self._idle) >= _MOST_IDLE
            if not is_spare:
                self._idle.append(writer)
        if is_spare:
            writer.close()
        if error:
            raise OSError(error, os.strerror(error))
        return int(written)


def _start() -> socket.socket:
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        subprocess.Popen(
            isolated.command(__name__, str(its.fileno())),
            cwd="/",
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's Ctrl-C is meant for the server
        )
    return mine


# In a process of its own


def _main(connection: socket.socket) -> None:
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, _MOST, 1)
        if not descriptors:  # the server has ended, or needs no more of it
            return
        (memory,) = descriptors
        (address,) = _WANTED.unpack_from(message)
        try:
            done = os.pwrite(memory, message[_WANTED.size :], address), 0
        except OSError as error:
            done = 0, error.errno or errno.EIO
        finally:
            os.close(memory)
        connection.send(_DONE.pack(*done))


if __name__ == "__main__":
    from lxcfs_py.linux import seccomp

    with contextlib.suppress(OSError):  # a kernel without filters
        seccomp.forbid()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _main(socket.socket(fileno=int(sys.argv[1])))
