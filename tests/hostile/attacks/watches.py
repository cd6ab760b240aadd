"""inotify, dnotify and fanotify on all files, with marks made and taken back, and events that nobody takes."""

import ctypes
import fcntl
import os

from rounds import CPUS, FILES, attempt, for_ever

libc = ctypes.CDLL(None, use_errno=True)
FAN_CLASS_NOTIF, FAN_MARK_ADD, FAN_MARK_MOUNT, FAN_MARK_FILESYSTEM, ALL_EVENTS = 0, 1, 0x10, 0x100, 0x3B
held: list[int] = []


def called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def inotify() -> int:
    fd = called(libc.inotify_init1(os.O_NONBLOCK))
    for path in (*FILES, CPUS):
        called(libc.inotify_add_watch(fd, path.encode(), 0xFFF))
    return fd


def dnotify() -> None:
    fd = os.open(CPUS, os.O_RDONLY)
    held.append(fd)
    fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)


def fanotify(kind: int) -> int:
    fd = called(libc.fanotify_init(FAN_CLASS_NOTIF | 2, os.O_RDONLY))
    for path in FILES:
        called(libc.fanotify_mark(fd, FAN_MARK_ADD | kind, ctypes.c_uint64(ALL_EVENTS), -100, path.encode()))
    return fd


def work() -> None:
    for name, watch in (
        ("inotify", inotify),
        ("fanotify on files", lambda: fanotify(0)),
        ("fanotify on mounts", lambda: fanotify(FAN_MARK_MOUNT)),
        ("fanotify on the filesystem", lambda: fanotify(FAN_MARK_FILESYSTEM)),
    ):
        fd = attempt(name, watch)
        if fd is not None:
            held.append(fd)
    attempt("dnotify", dnotify)
    while len(held) > 50:
        os.close(held.pop(0))


for_ever(work)
