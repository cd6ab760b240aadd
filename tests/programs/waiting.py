"""Tasks in uninterruptible sleep, each of which is a load of 1 and takes no CPU time: `python waiting.py COUNT`.

Each waits for a child that shares its memory until it executes another program, which has to open a pipe before.
"""

import os
import sys
import tempfile
import time

with tempfile.TemporaryDirectory() as directory:
    pipe = os.path.join(directory, "pipe")
    os.mkfifo(pipe)
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            opens = [(os.POSIX_SPAWN_OPEN, 0, pipe, os.O_RDONLY, 0)]
            os.posix_spawn("/bin/true", ["true"], {}, file_actions=opens)
    time.sleep(1000000)
