"""Processes that run only where nobody else wants their CPU, for which the kernel holds a lock meanwhile, and who does.

`python idle_holders.py directory`: the lock of the directory of CPUs; `python idle_holders.py files`: those of files;
`python idle_holders.py cgroups`: those of the container's own cgroups, where names are looked up at a first read.
"""

import glob
import os
import random
import signal
import sys
import time

from rounds import CPUS, FILES, attempt, read, said

HOLDERS, LOOPS = 20, 30
CPU = {min(os.sched_getaffinity(0))}
MOUNTED = [*glob.glob("/sys/fs/cgroup/*"), "/sys/fs/cgroup"]
CGROUPS = [path for path in MOUNTED if os.path.exists(f"{path}/cgroup.procs")]
fds = [os.open(path, os.O_RDONLY) for path in FILES]


def change() -> None:
    """Make what cannot be made, which the kernel looks up first."""
    name = f"{CPUS}/x{random.getrandbits(64):x}"
    for change, what in (
        ("mkdir", lambda: os.mkdir(name)),
        ("link", lambda: os.link(f"{CPUS}/online", name)),
        ("rename", lambda: os.rename(f"{CPUS}/online", name)),
        ("unlink", lambda: os.unlink(name)),
        ("O_TMPFILE", lambda: os.close(os.open(CPUS, os.O_TMPFILE | os.O_RDWR))),
    ):
        attempt(change, what)


def seek() -> None:
    """Ask for the end of a file, for which the kernel asks for its attributes."""
    attempt("seek", lambda: os.lseek(random.choice(fds), 0, os.SEEK_END))


def list_and_make() -> None:
    """List each of one's own cgroups, and make in there what cannot be made."""
    for cgroup in CGROUPS:
        attempt("list a cgroup", lambda: os.listdir(cgroup))
        attempt("make a cgroup", lambda: os.mkdir(f"{cgroup}/x{random.getrandbits(64):x}"))


def hold() -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        work()


def loop() -> None:
    while True:
        pass


work = {"directory": change, "files": seek, "cgroups": list_and_make}[sys.argv[1]]
work()  # as long as it waits for none of the others
for number in range(HOLDERS + LOOPS):
    if os.fork() == 0:
        os.sched_setaffinity(0, CPU)
        (hold if number < HOLDERS else loop)()
said()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    time.sleep(1)
    if work is list_and_make and os.fork() == 0:
        for path in FILES:
            read(path)
        os._exit(0)
