"""Locks of every kind on all files, held, waited for by threads, and given back."""

import fcntl
import os
import struct
import threading
import time

from rounds import FILES, attempt, for_ever

OFD_SETLK, OFD_SETLKW = 37, 38
ALL = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
held = []


def work() -> None:
    for path in FILES:
        fd = os.open(path, os.O_RDONLY)
        attempt("flock", lambda fd=fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
        attempt("POSIX lock", lambda fd=fd: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB))
        attempt("open file description lock", lambda fd=fd: fcntl.fcntl(fd, OFD_SETLK, ALL))
        held.append(fd)
    while len(held) > 300:
        os.close(held.pop(0))


def wait() -> None:
    while True:
        for path in FILES:
            with open(path) as file:
                attempt("wait for a lock", lambda file=file: fcntl.flock(file, fcntl.LOCK_EX))
                attempt("wait for a lock", lambda file=file: fcntl.fcntl(file, OFD_SETLKW, ALL))
                time.sleep(0.01)


for _ in range(20):
    threading.Thread(target=wait, daemon=True).start()
for_ever(work)
