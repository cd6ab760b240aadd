"""As many tasks as one may have, in one cgroup, and threads that ask how many run."""

import os
import threading
import time

from rounds import attempt, read, said

THREADS = 5000
threading.stack_size(64 << 10)


def start() -> None:
    threading.Thread(target=time.sleep, args=(1e6,), daemon=True).start()


def ask() -> None:
    while True:
        read("/proc/loadavg")
        read("/proc/stat")


for _ in range(THREADS):
    attempt("thread", start)
for _ in range(8):
    if os.fork() == 0:
        ask()
said()
while True:
    time.sleep(3600)
