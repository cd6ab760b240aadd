"""What a container may try on a file that others read too, run in one by the tests: `python neighbour.py FILE…`.

Does all it can to each file, prints what came of it, and holds what it got until a line comes on standard input.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import struct
import sys
from typing import Any, Callable

libc = ctypes.CDLL(None, use_errno=True)
held: list[Any] = []
FLOCK = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def opened(path: str, flags: int = os.O_RDONLY) -> int:
    fd = os.open(path, flags)
    held.append(fd)
    return fd


def dnotify(path: str) -> None:
    fcntl.fcntl(opened(os.path.dirname(path)), fcntl.F_NOTIFY, fcntl.DN_ACCESS | fcntl.DN_MULTISHOT)


def inotify(path: str) -> None:
    fd = libc.inotify_init()
    held.append(fd)
    if libc.inotify_add_watch(fd, path.encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "")


ATTEMPTS: dict[str, Callable[[str], Any]] = {
    "read lease": lambda path: fcntl.fcntl(opened(path), fcntl.F_SETLEASE, fcntl.F_RDLCK),
    "write lease": lambda path: fcntl.fcntl(opened(path), fcntl.F_SETLEASE, fcntl.F_WRLCK),
    "flock": lambda path: fcntl.flock(opened(path), fcntl.LOCK_EX | fcntl.LOCK_NB),
    "shared POSIX lock": lambda path: fcntl.lockf(opened(path), fcntl.LOCK_SH | fcntl.LOCK_NB),
    "open file description lock": lambda path: fcntl.fcntl(opened(path), 37, FLOCK),
    "chmod": lambda path: os.chmod(path, 0),
    "chown": lambda path: os.chown(path, os.getuid(), 0),
    "utime": lambda path: os.utime(path, (0, 0)),
    "setxattr": lambda path: os.setxattr(path, "user.name", b"value"),
    "truncate": lambda path: os.truncate(path, 0),
    "open to truncate": lambda path: opened(path, os.O_RDONLY | os.O_TRUNC),
    "open exclusively": lambda path: opened(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL),
    "write": lambda path: opened(path, os.O_WRONLY),
    "unlink": os.unlink,
    "rename": lambda path: os.rename(path, f"{path}.old"),
    "hard link": lambda path: os.link(path, f"{path}.new"),
    "private mapping": lambda path: held.append(mmap.mmap(opened(path), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)),
    "shared mapping": lambda path: held.append(mmap.mmap(opened(path), 4096, mmap.MAP_SHARED, mmap.PROT_READ)),
    "read-ahead": lambda path: os.posix_fadvise(opened(path), 0, 0, os.POSIX_FADV_WILLNEED),
    "dnotify": dnotify,
    "inotify": inotify,
}

signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which dnotify tells of what others read
for path in sys.argv[1:]:
    for name, attempt in ATTEMPTS.items():
        try:
            attempt(path)
            print(f"{name}: done")
        except OSError as error:
            print(f"{name}: {errno.errorcode.get(error.errno or 0)}")
print("holding", flush=True)
sys.stdin.readline()
