"""Threads that read a byte at a time, from everywhere, with vectors of a thousand buffers."""

import os
import random

from rounds import FILES, by_threads

BUFFERS = [bytearray(1) for _ in range(1000)]


def read() -> None:
    fd = os.open(random.choice(FILES), os.O_RDONLY)
    try:
        os.preadv(fd, BUFFERS, 0)
        os.pread(fd, 1, random.choice((1, 4095, 1 << 20, (1 << 62))))
        os.pread(fd, 8 << 20, 1)
    finally:
        os.close(fd)


by_threads(100, read)
