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
from typing import Protocol

from lxcfs_py.linux import roots, seccomp
from lxcfs_py.linux.ancillary import descriptors_in
from lxcfs_py.linux.seccomp import Notification
from lxcfs_py.syscalls.answers import Answer
from lxcfs_py.syscalls.writers import Order

_OWNER_SHIFT = 40  # a caller's number: whose it is, and a random part


class Caller(Protocol):
    """One descriptor by which calls come."""

    name: str
    """Under which it is kept."""

    descriptor: int
    number: int
    tells_what_was_answered: bool
    """Whether a successor can ask if a call was answered: else it must know at once."""

    def receive(self, slot: memoryview) -> Notification:
        """Take the next call into a slot. LookupError when there is none any more; EOFError when none will come."""

    def taken_up(self, slot: memoryview) -> Notification:
        """Return the call that a predecessor had received into a slot. LookupError when it had been answered."""

    def order(self, call: Notification, answer: Answer) -> Order:
        """Return what a writer is to do."""

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
    tells_what_was_answered = True

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

    def order(self, call: Notification, answer: Answer) -> Order:
        """Have the thread's memory opened by its number."""
        written, failed = seccomp.answer_to(call.id, answer.value), seccomp.way_through(call.id)
        return Order(call.pid, call.id, answer.address, answer.memory, written, failed, [self.descriptor])

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
    tells_what_was_answered = False

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

    def order(self, call: Notification, answer: Answer) -> Order:
        """Use the memory that the monitor has sent, which it has checked to be the thread's own."""
        written = self._message + seccomp.answer_to(call.id, answer.value)
        failed = self._message + seccomp.way_through(call.id)
        descriptors = [self.descriptor, self._memory] if self._memory >= 0 else [self.descriptor]
        self._memory = -1
        return Order(call.pid, 0, answer.address, answer.memory, written, failed, descriptors)

    def let_through(self, call: Notification) -> None:
        """Tell the monitor."""
        self._close_memory()
        self._connection.send(self._message + seccomp.way_through(call.id))

    def close(self) -> None:
        """Close the connection."""
        self._close_memory()
        self._connection.close()

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
