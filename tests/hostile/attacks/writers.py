"""Very many threads that set triggers of pressure: `python writers.py THREADS [append]`, the latter appends them."""

import os
import sys

from rounds import PRESSURE, by_threads

FLAGS = os.O_RDWR | (os.O_APPEND if sys.argv[2:] == ["append"] else 0)


def trigger() -> None:
    fd = os.open(PRESSURE[0], FLAGS)
    try:
        os.write(fd, b"some 150000 2000000\0")
    finally:
        os.close(fd)


by_threads(int(sys.argv[1]) if PRESSURE else 0, trigger)
