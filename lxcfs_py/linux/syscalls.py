"""The system calls that this project needs and Python 3.9 does not have, each as the manual page names it.

All raise OSError with the kernel's errno. Flags carry the kernel's own names and values.
"""

import ctypes
import errno
import os
import struct
import time
from typing import NamedTuple

MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_STATX_DONT_SYNC = 0x4000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSCONFIG_CMD_CREATE = 6
FSMOUNT_CLOEXEC = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

PR_SET_PDEATHSIG = 1

IN_CREATE = 0x0100
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x0100_0000
IN_DONT_FOLLOW = 0x0200_0000

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 8
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 32

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_MACHINE = os.uname().machine
_SCHED_GETAFFINITY = {"x86_64": 204, "aarch64": 123}  # the C library's own returns no length

_MOST_CPUS = 65536  # more than any kernel is built for

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path or None)
    return result


def mount(source: str, target: str, fstype: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), options.encode()),
        target,
    )


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2); os.unshare exists since Python 3.12."""
    _check(_libc.unshare(flags))


def setns(fd: int, nstype: int) -> None:
    """setns(2), for the calling thread; os.setns exists since Python 3.12."""
    _check(_libc.setns(fd, nstype))


def personality(persona: int) -> int:
    """personality(2) of the calling thread: returns what it was."""
    return _check(_libc.personality(ctypes.c_ulong(persona)))


def prctl(option: int, argument: int) -> None:
    """Set what prctl(2) sets with a single number."""
    _check(_libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0))


class Sysinfo(NamedTuple):
    """What sysinfo(2) says of memory, in bytes."""

    total: int
    free: int
    swap_total: int
    swap_free: int


# struct sysinfo: uptime, 3 loads, total and free memory, 2 others, total and free swap, 3 others, the unit of the sizes
_LONG = struct.calcsize("l")
_SYSINFO = struct.Struct(f"@{4 * _LONG}x2L{2 * _LONG}x2L{3 * _LONG}xI")

# It never waits and never fails: the call keeps Python's lock, which takes less time. So all threads share one answer.
_sysinfo = ctypes.PyDLL(None).sysinfo
_answer = ctypes.create_string_buffer(128)


def sysinfo() -> Sysinfo:
    """sysinfo(2)."""
    _sysinfo(_answer)
    total, free, swap_total, swap_free, unit = _SYSINFO.unpack_from(_answer)
    return Sysinfo(total * unit, free * unit, swap_total * unit, swap_free * unit)


def sched_getaffinity(thread: int, size: int) -> bytes:
    """Return the mask of the CPUs that a thread may run on, for a mask of so many bytes; os.sched_getaffinity has none.

    EINVAL when the machine's CPUs need a larger one.
    """
    mask = ctypes.create_string_buffer(min(size, _MOST_CPUS // 8))  # the kernel writes no more than it has
    number = _SCHED_GETAFFINITY[_MACHINE]
    written = _check(_libc.syscall(ctypes.c_long(number), thread, ctypes.c_size_t(size), mask))
    return mask.raw[:written]


def seccomp_listener(program: bytes) -> int:
    """Filter this thread's calls, and those of what it starts, by a BPF program; the descriptor by which they come.

    Since Linux 5.19, no signal but one that kills interrupts a call that was taken. EACCES without CAP_SYS_ADMIN.
    """
    try:
        return _seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, program)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return _seccomp(SECCOMP_FILTER_FLAG_NEW_LISTENER, program)


def seccomp_filter(program: bytes) -> None:
    """Filter this thread's calls, and those of what it starts, by a BPF program. EACCES without CAP_SYS_ADMIN."""
    _seccomp(0, program)


def _seccomp(flags: int, program: bytes) -> int:
    code = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    number = _SECCOMP.get(_MACHINE, -1)  # ENOSYS
    return _check(_libc.syscall(ctypes.c_long(number), SECCOMP_SET_MODE_FILTER, flags, description))


def inotify_init1(flags: int) -> int:
    """Return a descriptor of inotify(7)."""
    return _check(_libc.inotify_init1(flags))


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Return the number of the watch, which is the old one where the path is watched already."""
    return _check(_libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask)), path)


def clone_mount(path: str) -> int:
    """Return a descriptor of a copy of the mount at a path, which is nowhere yet: open_tree(2), since Linux 5.2."""
    flags = ctypes.c_uint(OPEN_TREE_CLONE | os.O_CLOEXEC)
    return _check(_libc.syscall(ctypes.c_long(428), AT_FDCWD, os.fsencode(path), flags), path)


_STATX_DEVICE = struct.Struct("=136xII")
_Statx = ctypes.c_char * 256


def device(path: str) -> str:
    """Return the filesystem that a path leads to, "MAJOR:MINOR", by statx(2). The server of a mount is not asked."""
    answer = _Statx()
    _check(_libc.statx(AT_FDCWD, os.fsencode(path), AT_STATX_DONT_SYNC, ctypes.c_uint(0), answer), path)
    return "{}:{}".format(*_STATX_DEVICE.unpack_from(answer))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """Return a copy of another process's descriptor, as pidfd_getfd(2) does, which Linux has since 5.6."""
    return _check(_libc.syscall(ctypes.c_long(438), pidfd, fd, 0))


def move_mount(source: int, target: int) -> None:
    """Mount what `clone_mount` has cloned onto what `target` is open at: move_mount(2), which Linux has since 5.2."""
    flags = ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)
    _check(_libc.syscall(ctypes.c_long(429), source, b"", target, b"", flags))


def mount_nowhere(fstype: str) -> int:
    """Mount a filesystem that needs no options, at no place: fsopen(2), fsmount(2), which Linux has since 5.2.

    Returns a descriptor of its root. It ends with the last descriptor in it, and nothing can be mounted over it.
    """
    context = _check(_libc.syscall(ctypes.c_long(430), fstype.encode(), ctypes.c_uint(FSOPEN_CLOEXEC)))
    try:
        _check(_libc.syscall(ctypes.c_long(431), context, ctypes.c_uint(FSCONFIG_CMD_CREATE), None, None, 0))
        attributes = ctypes.c_uint(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
        return _check(_libc.syscall(ctypes.c_long(432), context, ctypes.c_uint(FSMOUNT_CLOEXEC), attributes))
    finally:
        os.close(context)


def timerfd_create() -> int:
    """Return a descriptor from which can be read when its time has come; os.timerfd_create exists since Python 3.13."""
    return _check(_libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC))


def timerfd_settime(timer: int, seconds: float) -> None:
    """Let the timer's time come once, so many seconds from now."""
    whole = int(seconds)
    _check(_libc.timerfd_settime(timer, 0, struct.pack("@4l", 0, 0, whole, int((seconds - whole) * 1e9)), None))
