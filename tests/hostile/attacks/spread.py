"""A flood from a few hundred cgroups below the container's own, as if it were as many containers."""

import os
import sys
import threading

from hierarchies import own
from rounds import attempt, by_threads, read, said, tally

places = own()
threading.stack_size(64 << 10)
PROCESSES = int(sys.argv[1]) if len(sys.argv) > 1 else 250


def enter(number: int) -> None:
    for place in places:
        directory = f"{place}/spread-{number}"
        os.makedirs(directory, exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{directory}/{name}"):
                with open(f"{place}/{name}") as source, open(f"{directory}/{name}", "w") as target:
                    target.write(source.read())
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write("0")


if not places:
    said()
for number in range(PROCESSES):
    if os.fork() == 0:
        attempt("enter a cgroup of its own", lambda: enter(number))
        for _ in range(4):
            threading.Thread(target=lambda: [read("/proc/stat") for _ in iter(int, 1)], daemon=True).start()
        while True:
            threading.Event().wait()
tally["processes"] = PROCESSES
by_threads(1, lambda: read("/proc/stat"))
