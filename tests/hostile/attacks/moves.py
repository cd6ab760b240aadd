"""Init, which stands for the container, moves from cgroup to cgroup, of odd names, whose limits change all the time."""

import contextlib
import os
import random

from hierarchies import own
from rounds import FILES, attempt, for_ever, read

NAMES = ("plain", "with space", "back\\slash", "line\nfeed", "colon:s", "no\udcffutf8", "(deleted)", "%s%n", "d" * 250)
places = own()


def written(path: str, value: int) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(b"%d" % value)


def work() -> None:
    name = random.choice(NAMES)
    for place in places:
        directory = f"{place}/{name}"
        attempt("make", lambda: os.makedirs(directory, exist_ok=True))
        for limit, value in (
            ("cpu.cfs_quota_us", random.randrange(10_000, 200_000)),
            ("cpu.shares", random.randrange(2, 200_000)),
            ("memory.limit_in_bytes", random.randrange(64 << 20, 1 << 40)),
            ("cpuset.cpus", 0),
            ("cpuset.mems", 0),
        ):
            if os.path.exists(f"{directory}/{limit}"):
                attempt("limit", lambda limit=limit, value=value: written(f"{directory}/{limit}", value))
        attempt("move", lambda: written(f"{directory}/cgroup.procs", 1))
    for path in FILES:
        read(path)
    for place in places:
        for other in NAMES:
            with contextlib.suppress(OSError):
                os.rmdir(f"{place}/{other}")


for_ever(work)
