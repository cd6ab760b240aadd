"""All ways to have the kernel keep a text in the page cache, where others would find it: splice, sendfile, mappings."""

import ctypes
import mmap
import os

from rounds import FILES, attempt, for_ever

libc = ctypes.CDLL(None, use_errno=True)
held = []


def splice(fd: int) -> None:
    ours, theirs = os.pipe()
    try:
        if libc.splice(fd, None, theirs, None, 65536, 0) < 0:
            raise OSError(ctypes.get_errno(), "")
    finally:
        os.close(ours)
        os.close(theirs)


def sendfile(fd: int) -> None:
    with open("/tmp/sent", "wb") as target:
        os.sendfile(target.fileno(), fd, 0, 65536)


def read_ahead(fd: int) -> None:
    if libc.readahead(fd, ctypes.c_uint64(0), 65536) < 0:
        raise OSError(ctypes.get_errno(), "")


def touched(fd: int) -> None:
    mapping = mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
    held.append(mapping)
    if os.fork() == 0:
        os._exit(mapping[0] and 0)  # a signal, SIGBUS, ends it
    if os.wait()[1]:
        raise ValueError("a signal")


def work() -> None:
    for path in FILES:
        fd = os.open(path, os.O_RDONLY)
        attempt("splice", lambda fd=fd: splice(fd))
        attempt("sendfile", lambda fd=fd: sendfile(fd))
        attempt("readahead", lambda fd=fd: read_ahead(fd))
        attempt("fadvise", lambda fd=fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED))
        attempt("drop", lambda fd=fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED))
        attempt("private mapping", lambda fd=fd: touched(fd))
        attempt("shared mapping", lambda fd=fd: held.append(mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)))
        os.close(fd)
    del held[:-50]


for_ever(work)
