"""Leases of all files, and locks that keep leases, taken by every user that might own one, again and again."""

import fcntl
import json
import os
import time

from rounds import CPUS, FILES, PRESSURE, attempt, said, tally

NOBODIES = (0, 65534, 0xFFFF_FFFE)
PATHS = [*FILES, *PRESSURE, f"{CPUS}/online"]


def take(path: str, flags: int, lease: int) -> None:
    fd = os.open(path, flags)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, lease)
    except OSError:
        os.close(fd)
        raise  # who has got one keeps it, and the file open


def work() -> None:
    for path in PATHS:
        if not os.path.exists(path):
            continue
        attempt("write lease", lambda path=path: take(path, os.O_RDONLY, fcntl.F_WRLCK))
        attempt("read lease", lambda path=path: take(path, os.O_RDONLY, fcntl.F_RDLCK))


ours, theirs = os.pipe()
for user in NOBODIES:
    if os.fork() == 0:
        attempt("become a file's owner", lambda user=user: os.setresuid(user, user, user))
        work()
        os.write(theirs, json.dumps(dict(tally)).encode() + b"\n")
        while True:
            work()
            time.sleep(0.01)
with open(ours) as lines:
    for _ in NOBODIES:
        tally.update(json.loads(lines.readline()))
    said()
while True:
    time.sleep(3600)
