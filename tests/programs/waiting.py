"""Tasks in uninterruptible sleep, each of which is a load of 1 and takes no CPU time: `python waiting.py COUNT PIPE`.

Each waits for a child that shares its memory until it executes another program, which has to open a pipe before. That
is made at a path of the caller's, who removes it.
"""

import os
import sys
import time

count, pipe = sys.argv[1:]
os.mkfifo(pipe)
for _ in range(int(count)):
    if os.fork() == 0:
        opens = [(os.POSIX_SPAWN_OPEN, 0, pipe, os.O_RDONLY, 0)]
        os.posix_spawn("/bin/true", ["true"], {}, file_actions=opens)
time.sleep(1000000)
