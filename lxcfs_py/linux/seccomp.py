"""The kernel's interface to system calls that a filter hands to an agent: seccomp_unotify(2), <linux/seccomp.h>."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

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
_SET_FLAGS = 0x40082104
_CONTINUE = 1
_SYNC_WAKE_UP = 1


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


def wake_in_turn(listener: int) -> None:
    """Let the kernel wake who takes a call, and who gets its answer, on the core of who waits for it next.

    Else another core is woken each time. It is known since Linux 6.6; before, nothing changes.
    """
    with contextlib.suppress(OSError):
        fcntl.ioctl(listener, _SET_FLAGS, _SYNC_WAKE_UP)


def can_let_through() -> bool:
    """Tell whether the kernel itself answers what is let through, as Linux does since 5.5; True if nobody can tell."""
    errors: list[Optional[int]] = []

    def ask() -> None:
        try:
            listener = syscalls.seccomp_listener(_instruction(_RETURN, ALLOW))
            try:
                let_through(listener, 0)  # there is no such call, but what is asked for is checked before
            finally:
                os.close(listener)
        except OSError as error:
            errors.append(error.errno)

    thread = threading.Thread(target=ask, name="seccomp")  # a filter stays until its thread ends
    with contextlib.suppress(RuntimeError):
        thread.start()
        thread.join()
    return errno.EINVAL not in errors


def answer(listener: int, notification: int, value: int) -> None:
    """Let the call return a value. OSError ENOENT when nobody waits any longer, EINPROGRESS when it was answered."""
    send(listener, answer_to(notification, value))


def let_through(listener: int, notification: int) -> None:
    """Let the kernel itself answer the call. OSError as for `answer`."""
    send(listener, way_through(notification))


def send(listener: int, answer: bytes) -> None:
    """Answer a call by the kernel's structure. OSError as for `answer`."""
    while True:
        try:
            fcntl.ioctl(listener, _SEND, answer)
            return
        except InterruptedError:  # by a signal, before anything was done; Python does not try again
            continue


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
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # <linux/bpf_common.h>
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_USER_NOTIFICATION, _ERROR = 0x7FC00000, 0x00050000
ALLOW = 0x7FFF0000
"""The kernel answers the call."""


def hand_over(agent: socket.socket) -> None:
    """Hand this thread's sysinfo(2) and sched_getaffinity(2) to an agent, as an OCI runtime does with a container's.

    So it is of all processes that it starts. Its pid namespace is what the container is known by to the agent. OSError;
    KeyError on a machine of an architecture that is not known.
    """
    state = {"ociVersion": "1.0.2", "fds": ["seccompFd"], "state": {"id": os.readlink("/proc/self/ns/pid")}}
    listener = syscalls.seccomp_listener(program(_USER_NOTIFICATION))
    socket.send_fds(agent, [json.dumps(state).encode()], [listener])
    os.close(listener)


def program(action: int) -> bytes:
    """Return a BPF program that takes an action at sysinfo(2) and sched_getaffinity(2), and allows all other calls.

    KeyError on a machine of an architecture that is not known.
    """
    instructions = [_instruction(_LOAD, _ARCH)]
    for arch, sysinfo, getaffinity in _HANDED_OVER[os.uname().machine]:
        instructions += [
            _instruction(_JUMP_IF_EQUAL, arch, no=5),
            _instruction(_LOAD, _NUMBER),
            _instruction(_JUMP_IF_EQUAL, sysinfo, yes=1),
            _instruction(_JUMP_IF_EQUAL, getaffinity, no=1),
            _instruction(_RETURN, action),
            _instruction(_RETURN, ALLOW),
        ]
    return b"".join([*instructions, _instruction(_RETURN, ALLOW)])


_NATIVE = {"x86_64": X86_64, "aarch64": AARCH64}
_X32 = 0x40000000  # of a number: the call is one of the x32 ABI

# What no process does that enters a container: to run, trace, load or listen to something, to become somebody else, and
# to change files; by machine.
_FORBIDDEN = {
    "x86_64": {
        **{"socket": 41, "connect": 42, "bind": 49, "listen": 50, "execve": 59, "truncate": 76, "ftruncate": 77},
        **{"rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87, "symlink": 88, "chmod": 90},
        **{"fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "ptrace": 101, "setuid": 105, "setgid": 106},
        **{"setreuid": 113, "setregid": 114, "setgroups": 116, "setresuid": 117, "setresgid": 119, "capset": 126},
        **{"mknod": 133, "pivot_root": 155, "adjtimex": 159, "chroot": 161, "acct": 163, "settimeofday": 164},
        **{"swapon": 167, "swapoff": 168, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175},
        **{"delete_module": 176, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "clock_settime": 227},
        **{"kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "mkdirat": 258, "mknodat": 259},
        **{"fchownat": 260, "unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "fchmodat": 268},
        **{"perf_event_open": 298, "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313},
        **{"renameat2": 316, "kexec_file_load": 320, "bpf": 321, "execveat": 322, "userfaultfd": 323},
        **{"io_uring_setup": 425},
    },
    "aarch64": {
        **{"setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "mknodat": 33, "mkdirat": 34, "unlinkat": 35},
        **{"symlinkat": 36, "linkat": 37, "renameat": 38, "pivot_root": 41, "truncate": 45, "ftruncate": 46},
        **{"chroot": 51, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "acct": 89, "capset": 91},
        **{"kexec_load": 104, "init_module": 105, "delete_module": 106, "clock_settime": 112, "ptrace": 117},
        **{"reboot": 142, "setregid": 143, "setgid": 144, "setreuid": 145, "setuid": 146, "setresuid": 147},
        **{"setresgid": 149, "setgroups": 159, "settimeofday": 170, "adjtimex": 171, "socket": 198, "bind": 200},
        **{"listen": 201, "connect": 203, "add_key": 217, "request_key": 218, "keyctl": 219, "execve": 221},
        **{"swapon": 224, "swapoff": 225, "perf_event_open": 241, "process_vm_readv": 270, "process_vm_writev": 271},
        **{"finit_module": 273, "renameat2": 276, "bpf": 280, "execveat": 281, "userfaultfd": 282},
        **{"kexec_file_load": 294, "io_uring_setup": 425},
    },
}


def forbid() -> None:
    """Let this thread, and what it starts, never do what no process does that enters a container: EPERM.

    Nothing is forbidden on a machine of an architecture that is not known. OSError.
    """
    machine = os.uname().machine
    if machine not in _NATIVE:
        return
    numbers = sorted(_FORBIDDEN[machine].values())
    program = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_IF_EQUAL, _NATIVE[machine], yes=1),
        _instruction(_RETURN, _ERROR | errno.EPERM),
        _instruction(_LOAD, _NUMBER),
        _instruction(_JUMP_IF_AT_LEAST, _X32, no=1),
        _instruction(_RETURN, _ERROR | errno.EPERM),
        *(_instruction(_JUMP_IF_EQUAL, number, yes=len(numbers) - place) for place, number in enumerate(numbers)),
        _instruction(_RETURN, ALLOW),
        _instruction(_RETURN, _ERROR | errno.EPERM),
    ]
    syscalls.seccomp_filter(b"".join(program))


def try_to_forbid() -> None:
    """Do the same, and nothing on a kernel without filters, or as a user who may not have one."""
    with contextlib.suppress(OSError):
        forbid()


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)
