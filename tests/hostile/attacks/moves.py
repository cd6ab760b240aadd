"""Init, which stands for the container, moves from cgroup to cgroup, of odd names, whose limits change all the time."""

import contextlib
import os
import random

from hierarchies import own
from rounds import FILES, attempt, for_ever, read

NAMES = ("plain", "with space", "back\\slash", "line\nfeed", "colon:s", "no\udcffutf8", "(deleted)", "%s%n", "d" * 250)
places = own()


def written(path: str, value: int) -> None:
    put(path, b"%d" % value)


def put(path: str, text: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(text)


def change_controllers(place: str) -> None:
    """Take a controller of cgroup v2 from the cgroups below one, with its figures, and give it back."""
    path = f"{place}/cgroup.subtree_control"
    if os.path.exists(path):
        attempt("controllers", lambda: put(path, random.choice((b"-memory", b"-cpu"))))
        attempt("controllers", lambda: put(path, b"+memory +cpu"))  # not while init is in that one


def work(name: str) -> None:
    for place in places:
        directory = f"{place}/{name}"
        change_controllers(place)
        attempt("make", lambda: os.makedirs(directory, exist_ok=True))
        for limit, value in (
            ("cpu.cfs_quota_us", random.randrange(10_000, 200_000)),
            ("cpu.shares", random.randrange(2, 200_000)),
            ("cpu.max", random.randrange(10_000, 200_000)),
            ("memory.limit_in_bytes", random.randrange(64 << 20, 1 << 40)),
            ("memory.max", random.randrange(64 << 20, 1 << 40)),
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


for each in NAMES[:2]:
    work(each)
for_ever(lambda: work(random.choice(NAMES)))
