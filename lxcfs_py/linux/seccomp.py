"""The kernel's interface to system calls that a filter hands to an agent: seccomp_unotify(2), <linux/seccomp.h>."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple, Union

from lxcfs_py.linux import syscalls

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
    """Take the next call into a slot of SLOT bytes, which begins with zeros: the kernel insists.

    OSError ENOENT when its thread has ended meanwhile.
    """
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
    """Let the call return a value. OSError ENOENT when nobody waits any longer, EINPROGRESS when it was answered."""
    fcntl.ioctl(listener, _SEND, answer_to(notification, value))


def let_through(listener: int, notification: int) -> None:
    """Let the kernel itself answer the call. OSError as for `answer`."""
    fcntl.ioctl(listener, _SEND, way_through(notification))


def answer_to(notification: int, value: int) -> bytes:
    """Return the kernel's structure that lets a call return a value."""
    return _ANSWER.pack(notification, value, 0, 0)


def way_through(notification: int) -> bytes:
    """Return the kernel's structure that lets the kernel itself answer a call."""
    return _ANSWER.pack(notification, 0, 0, _CONTINUE)


# sysinfo(2) and sched_getaffinity(2): by machine, its architecture with their numbers, and that of 32-bit programs.
_HANDED_OVER = {
    "x86_64": ((X86_64, 99, 204), (I386, 116, 242)),
    "aarch64": ((AARCH64, 179, 123), (ARM, 116, 242)),
}
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # <linux/bpf_common.h>
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_USER_NOTIFICATION, _ALLOW = 0x7FC00000, 0x7FFF0000


def hand_over(agent: socket.socket) -> None:
    """Hand this thread's sysinfo(2) and sched_getaffinity(2) to an agent, as an OCI runtime does with a container's.

    So it is of all processes that it starts. Its pid namespace is what the container is known by to the agent. OSError;
    KeyError on a machine of an architecture that is not known.
    """
    state = {"ociVersion": "1.0.2", "fds": ["seccompFd"], "state": {"id": os.readlink("/proc/self/ns/pid")}}
    program = [_instruction(_LOAD, _ARCH)]
    for arch, sysinfo, getaffinity in _HANDED_OVER[os.uname().machine]:
        program += [
            _instruction(_JUMP_IF_EQUAL, arch, no=5),
            _instruction(_LOAD, _NUMBER),
            _instruction(_JUMP_IF_EQUAL, sysinfo, yes=1),
            _instruction(_JUMP_IF_EQUAL, getaffinity, no=1),
            _instruction(_RETURN, _USER_NOTIFICATION),
            _instruction(_RETURN, _ALLOW),
        ]
    code = b"".join([*program, _instruction(_RETURN, _ALLOW)])
    listener = syscalls.seccomp_listener(code)
    socket.send_fds(agent, [json.dumps(state).encode()], [listener])
    os.close(listener)


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
