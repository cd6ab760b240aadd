"""Very many threads that read by way of the page cache, whose pages all containers share.

`python cached_flood.py THREADS`.
"""

import os
import random
import sys

from rounds import FILES, by_threads


def read() -> None:
    fd = os.open(random.choice(FILES), os.O_RDONLY)
    try:
        for _ in range(20):
            os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_WILLNEED)
        with open("/dev/null", "wb") as target:
            os.sendfile(target.fileno(), fd, 0, 4096)
    finally:
        os.close(fd)


by_threads(int(sys.argv[1]), read)
