"""By whom calls come: the listener of a container, or the monitor of one of LXC's, which hands its calls on.

Of both, `receive` puts the next call into a slot, and either `answer` or `let_through` ends it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Protocol

from lxcfs_py.linux import roots, seccomp
from lxcfs_py.linux.seccomp import Notification

_OWNER_SHIFT = 40  # a caller's number: whose it is, and a random part


class Caller(Protocol):
    """One descriptor by which calls come."""

    name: str
    """Under which it is kept."""

    descriptor: int
    number: int

    def receive(self, slot: memoryview) -> Notification:
        """Take the next call into a slot. LookupError when there is none any more; EOFError when none will come."""

    def taken_up(self, slot: memoryview) -> Notification:
        """Return the call that a predecessor had received into a slot. LookupError when it had been answered."""

    def memory(self, call: Notification) -> int:
        """Return a descriptor of the caller's memory, which is the answering thread's to close. OSError."""

    def is_valid(self, call: Notification) -> bool:
        """Tell whether the thread still waits, so that the memory is its own."""

    def answer(self, call: Notification, value: int) -> None:
        """Let the call return a value. OSError ENOENT when nobody waits any longer."""

    def let_through(self, call: Notification) -> None:
        """Let the kernel itself answer. OSError ENOENT when nobody waits any longer."""

    def close(self) -> None:
        """Let go of the descriptor."""


def number_of(owner: int) -> int:
    """Return a new number for a caller of an owner, of 24 bits and never 0."""
    return owner << _OWNER_SHIFT | int.from_bytes(os.urandom(_OWNER_SHIFT // 8), "big")


def owner_of(number: int) -> int:
    """Return whose a caller is, by its number."""
    return number >> _OWNER_SHIFT


class Listener:
    """The listener of a seccomp filter, as an OCI runtime sends it."""

    PREFIX = "seccomp-"

    def __init__(self, descriptor: int, number: int) -> None:
        self.descriptor, self.number = descriptor, number
        self.name = f"{self.PREFIX}{number:x}"
        seccomp.wake_in_turn(descriptor)

    def receive(self, slot: memoryview) -> Notification:
        """Take the next call."""
        try:
            seccomp.receive(self.descriptor, slot)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                raise LookupError("its thread has ended") from None
            raise
        return seccomp.parse(slot)

    def taken_up(self, slot: memoryview) -> Notification:
        """Return the call in a slot."""
        call = seccomp.parse(slot)
        if not call.id:
            raise LookupError("nothing was received")
        return call

    def memory(self, call: Notification) -> int:
        """Open the thread's memory."""
        return os.open(f"{roots.PROC}/{call.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)

    def is_valid(self, call: Notification) -> bool:
        """Ask the kernel."""
        return seccomp.is_valid(self.descriptor, call.id)

    def answer(self, call: Notification, value: int) -> None:
        """Tell the kernel."""
        seccomp.answer(self.descriptor, call.id, value)

    def let_through(self, call: Notification) -> None:
        """Tell the kernel."""
        seccomp.let_through(self.descriptor, call.id)

    def close(self) -> None:
        """Close the listener."""
        os.close(self.descriptor)


# struct seccomp_notify_proxy_msg of LXC: reserved, pids of monitor and init, sizes of the kernel's three structures,
# length of the cookie. Behind it: the notification, room for the answer, and the cookie, which is not sent back.
_PROXY = struct.Struct("=Q2i3H2xQ")
_SIZES = (80, 24, 64)
_MOST_DESCRIPTORS = 3  # the process's directory in /proc, its memory, and in newer versions the listener


class Monitor:
    """The connection of the monitor of an LXC container (lxc.seccomp.notify.proxy), which waits for each answer."""

    PREFIX = "seccomp.lxc-"

    def __init__(self, connection: socket.socket, number: int) -> None:
        self._connection = connection
        self.descriptor, self.number = connection.fileno(), number
        self.name = f"{self.PREFIX}{number:x}"
        self._memory = -1
        self._message = b""

    def receive(self, slot: memoryview) -> Notification:
        """Take what the monitor sends."""
        space = socket.CMSG_SPACE(_MOST_DESCRIPTORS * struct.calcsize("i"))
        try:
            length, ancillary, _, _ = self._connection.recvmsg_into(
                [slot], space, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            raise LookupError("nothing was sent") from None
        descriptors = descriptors_in(ancillary)
        call = self._parse(slot, length)
        if call is None or len(descriptors) < 2:
            for descriptor in descriptors:
                os.close(descriptor)
            raise EOFError("no message of LXC's" if length else "the monitor has ended")
        self._memory = descriptors[1]
        for descriptor in (descriptors[0], *descriptors[2:]):
            os.close(descriptor)
        return call

    def _parse(self, slot: memoryview, length: int) -> Notification | None:
        base = _PROXY.size + _SIZES[0] + _SIZES[1]
        if length < base:
            return None
        _, _, _, *sizes, cookie = _PROXY.unpack_from(slot)
        if tuple(sizes) != _SIZES or length != base + cookie:
            return None
        self._message = bytes(slot[: _PROXY.size + _SIZES[0]])
        return seccomp.parse(slot[_PROXY.size :])

    def taken_up(self, slot: memoryview) -> Notification:
        """Return the call in a slot, unless the monitor has gone on to another, or its thread has."""
        _, _, _, *_, cookie = _PROXY.unpack_from(slot)
        call = self._parse(slot, _PROXY.size + _SIZES[0] + _SIZES[1] + cookie)
        if call is None or not _waits(call):
            raise LookupError("it was answered")
        time.sleep(_SETTLED)
        if self._has_more() or not _waits(call):
            raise LookupError("it was answered")
        return call

    def _has_more(self) -> bool:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        return bool(poll.poll(0))

    def memory(self, call: Notification) -> int:
        """Return what the monitor has sent, which it has checked to be the thread's own."""
        if self._memory < 0:
            return os.open(f"{roots.PROC}/{call.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
        memory, self._memory = self._memory, -1
        return memory

    def is_valid(self, call: Notification) -> bool:
        """Leave it to the monitor, which has the listener."""
        return True

    def answer(self, call: Notification, value: int) -> None:
        """Tell the monitor."""
        self._reply(seccomp.answer_to(call.id, value))

    def let_through(self, call: Notification) -> None:
        """Tell the monitor."""
        self._reply(seccomp.way_through(call.id))

    def close(self) -> None:
        """Close the connection."""
        self._close_memory()
        self._connection.close()

    def _reply(self, answer: bytes) -> None:
        self._close_memory()
        self._connection.send(self._message + answer)

    def _close_memory(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1


_SETTLED = 0.02  # seconds within which a monitor that has an answer has sent the next call


def _waits(call: Notification) -> bool:
    """Tell whether a thread is in this very system call, by its /proc/PID/syscall."""
    try:
        with open(f"{roots.PROC}/{call.pid}/syscall", "rb") as file:
            number, *arguments = file.read().split()
        return int(number) == call.number and [int(word, 16) for word in arguments[:6]] == list(call.arguments)
    except (OSError, ValueError):  # it is gone, or it runs
        return False


def descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return what came beside a message; socket.recv_fds heeds no flags."""
    found: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += struct.unpack(f"={len(content) // 4}i", content[: len(content) // 4 * 4])
    return found
