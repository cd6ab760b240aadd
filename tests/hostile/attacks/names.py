"""Processes and threads with names that a parser might take for something else, whose states are looked at."""

import ctypes
import os
import threading
import time

from rounds import FILES, for_ever, read, tally

libc = ctypes.CDLL(None)
NAMES = (b") R 1 1", b"a) Z (b", b"\n\n0::/", b"Name:\tx\nPid:\t1", b"\xff\xfe\xfd", b"(((((", b"")


def named(name: bytes) -> None:
    libc.prctl(15, name, 0, 0, 0)
    for path in FILES:
        read(path)
    time.sleep(0.05)


def work() -> None:
    for name in NAMES:
        if os.fork() == 0:
            named(name)
            os._exit(0)
        threading.Thread(target=named, args=(name,)).start()
        tally["names"] += 1
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


for_ever(work)
