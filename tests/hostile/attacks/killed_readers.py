"""Readers that are killed while they read, all the time: the kernel takes back requests that somebody is at."""

import os
import random
import signal
import time

from rounds import FILES, for_ever, read, tally


def work() -> None:
    pids = []
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            while True:
                for path in FILES:
                    read(path)
        pids.append(pid)
    time.sleep(random.uniform(0, 0.02))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tally["killed"] += 1


for_ever(work)
