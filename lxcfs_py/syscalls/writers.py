"""Answers are written into callers' memory, and given, by processes of their own, which hold nothing else.

Who made a memory can keep waiting who looks at it or writes to it, in a way that no signal ends: its pages may be those
of a file whose server holds them back, and its mappings may be locked meanwhile. A server with such a thread could not
end, and would keep its session from all who follow. So a server tells one of these processes what to answer, and does
not wait for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple, Optional

from lxcfs_py import isolated
from lxcfs_py.linux import roots, seccomp
from lxcfs_py.syscalls import writable

_ORDER = struct.Struct(
    "=iQQHH"
)  # the thread, the number of its call, the address, lengths of the text and of an answer
_DONE = struct.Struct("=i")  # an error's number
_MOST = 1 << 14  # bytes of an order
_DESCRIPTORS = 2
_MOST_IDLE = 2

ANSWERED = (errno.ENOENT, errno.EINPROGRESS)
"""Errors of who answers a call: nobody waits for it any longer, or a predecessor did it."""


class Order(NamedTuple):
    """What is to be written where, and how the call is to be answered then."""

    thread: int
    """As the server's pid namespace numbers it."""

    call: int
    """Its number, by which its listener tells whether the thread still waits for it; 0 where that cannot be asked."""

    address: int
    text: bytes
    written: bytes
    """What ends the call when the text was written."""

    failed: bytes
    """What ends it when it was not: then the kernel answers. It is as long."""

    descriptors: Sequence[int]
    """By which the call is ended: a listener, or a connection. The thread's memory may follow, which `begin` closes."""


class Writer:
    """A process that does one thing at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.descriptor = connection.fileno()
        """Readable when it is done."""

        self.has_begun = False
        """True when it has been done with something: it takes a while to start."""

    def begin(self, order: Order) -> None:
        """Let it do something. OSError where it has ended."""
        thread, call, address, text, written, failed, descriptors = order
        message = _ORDER.pack(thread, call, address, len(text), len(written)) + text + written + failed
        passed = struct.pack(f"={len(descriptors)}i", *descriptors)
        self._connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])

    def is_done(self, patience: Optional[float]) -> bool:
        """Tell whether it is done within so many seconds, None to wait for it.

        EOFError where it has ended; OSError where the call could not be ended.
        """
        try:
            done = self._connection.recv(_DONE.size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            waiting = select.poll()
            waiting.register(self._connection, select.POLLIN)
            if not waiting.poll(None if patience is None else patience * 1000):
                return False
            done = self._connection.recv(_DONE.size)
        if not done:
            raise EOFError("a process that answers system calls has ended")
        (error,) = _DONE.unpack(done)
        self.has_begun = True
        if error:
            raise OSError(error, os.strerror(error))
        return True

    def close(self) -> None:
        """Let it end, as soon as it is done."""
        self._connection.close()


class Writers:
    """Those that wait for something to do. One is started where all others are at something."""

    def __init__(self) -> None:
        self._idle: list[Writer] = []
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """See to it that one is there, as it takes a while to start. OSError."""
        with self._lock:
            if not self._idle:
                self._idle.append(_start())

    @property
    def has_idle(self) -> bool:
        """Whether one waits for something to do, and need not be started."""
        return bool(self._idle)

    def begin(self, order: Order) -> Writer:
        """Have something done, and return who does it. OSError."""
        try:
            try:
                writer = self._idle.pop()
            except IndexError:
                writer = _start()
            try:
                writer.begin(order)
            except (BrokenPipeError, ConnectionResetError):  # it has ended
                writer.close()
                writer = _start()
                writer.begin(order)
            return writer
        finally:
            for memory in order.descriptors[1:]:
                os.close(memory)

    def take_back(self, writer: Writer) -> None:
        """Have one wait for something to do again, unless enough do."""
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(writer)
        else:
            writer.close()


def _start() -> Writer:
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
    return Writer(mine)


# In a process of its own


def _main(connection: socket.socket) -> None:
    space = socket.CMSG_SPACE(_DESCRIPTORS * struct.calcsize("i"))
    while True:
        message, ancillary, _, _ = connection.recvmsg(_MOST, space)
        if not ancillary:  # the server has ended, or needs no more of it
            return
        ((_, _, passed),) = ancillary
        descriptors = struct.unpack(f"={len(passed) // 4}i", passed)
        try:
            error = _do(_order(message, descriptors))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        connection.send(_DONE.pack(error))


def _order(message: bytes, descriptors: Sequence[int]) -> Order:
    thread, call, address, length, answer = _ORDER.unpack_from(message)
    text = _ORDER.size + length
    end = text + answer
    return Order(thread, call, address, message[_ORDER.size : text], message[text:end], message[end:], descriptors)


def _do(order: Order) -> int:
    """Do it; return the number of the error that kept the call from being ended, 0 for none."""
    try:
        answer = order.written if _write(order) else order.failed
    except (OSError, OverflowError):  # Python takes no address from 1 << 63 on, where no process has memory
        answer = order.failed
    try:
        if order.call:
            seccomp.send(order.descriptors[0], answer)
        else:
            os.write(order.descriptors[0], answer)
    except OSError as error:
        if error.errno not in ANSWERED:
            return error.errno or errno.EIO
    return 0


def _write(order: Order) -> bool:
    """Tell whether the text was written. OSError.

    The memory is that of the very thread that waits: it was opened by its number, and the call was valid after that.
    """
    listener, *passed = order.descriptors
    memory = passed[0] if passed else os.open(f"{roots.PROC}/{order.thread}/mem", os.O_WRONLY | os.O_CLOEXEC)
    try:
        if order.call and not seccomp.is_valid(listener, order.call):
            return False
        if not writable.is_writable(order.thread, order.address, len(order.text)):
            return False
        return os.pwrite(memory, order.text, order.address) == len(order.text)
    finally:
        if not passed:
            os.close(memory)


if __name__ == "__main__":
    with contextlib.suppress(OSError):
        roots.take_proc()  # as in the server: else, what is mounted over /proc would be asked
    seccomp.try_to_forbid()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _main(socket.socket(fileno=int(sys.argv[1])))
