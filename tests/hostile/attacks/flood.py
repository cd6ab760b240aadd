"""Very many threads that read one file: `python flood.py THREADS`."""

import sys

from rounds import by_threads, read

by_threads(int(sys.argv[1]), lambda: read("/proc/stat"))
