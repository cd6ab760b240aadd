"""The kernel's interface to system calls that a filter hands to an agent: seccomp_unotify(2), <linux/seccomp.h>."""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Sequence
from typing import NamedTuple, Union

# <linux/audit.h>
X86_64 = 0xC000003E
I386 = 0x40000003
AARCH64 = 0xC00000B7
ARM = 0x40000028

SLOT = 2048
"""Bytes of a buffer to receive into: one of no more than 1024, Python would fill only after the call."""

_NOTIFICATION = struct.Struct("=QI4xiI8x6Q")  # id, pid, (flags), nr, arch, (instruction pointer), args
_ANSWER = struct.Struct("=QqiI")  # id, value, error, flags
_ID = struct.Struct("=Q")
_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_CONTINUE = 1


class Notification(NamedTuple):
    """A system call that waits for an answer."""

    id: int
    pid: int
    """The thread, as this process's pid namespace numbers it; 0 when it has no number there."""

    number: int
    arch: int
    arguments: Sequence[int]


def receive(listener: int, slot: memoryview) -> None:
    """Take the next call into a slot of SLOT bytes. OSError ENOENT when its thread has ended meanwhile."""
    slot[: _NOTIFICATION.size] = bytes(_NOTIFICATION.size)  # the kernel insists
    fcntl.ioctl(listener, _RECEIVE, slot)


def parse(slot: Union[bytes, memoryview]) -> Notification:
    """Return what was received into a slot."""
    number, pid, call, arch, *arguments = _NOTIFICATION.unpack_from(slot)
    return Notification(number, pid, call, arch, arguments)


def is_valid(listener: int, notification: int) -> bool:
    """Tell whether the thread still waits: if so, its pid is no other's by now."""
    try:
        fcntl.ioctl(listener, _IS_VALID, _ID.pack(notification))
    except OSError:
        return False
    return True


def answer(listener: int, notification: int, value: int) -> None:
    """Let the call return a value. OSError ENOENT when nobody waits any longer."""
    fcntl.ioctl(listener, _SEND, _ANSWER.pack(notification, value, 0, 0))


def let_through(listener: int, notification: int) -> None:
    """Let the kernel itself answer the call. OSError ENOENT when nobody waits any longer."""
    fcntl.ioctl(listener, _SEND, _ANSWER.pack(notification, 0, 0, _CONTINUE))
