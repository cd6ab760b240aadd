"""The container's own cgroups, writable: what whoever has CAP_SYS_ADMIN in Docker, or a system container, has."""

import ctypes
import os
from pathlib import Path

from rounds import attempt

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, place: str, options: str) -> None:
    os.makedirs(place, exist_ok=True)
    if libc.mount(b"cgroup", place.encode(), kind.encode(), 0, options.encode()) < 0:
        raise OSError(ctypes.get_errno(), "")


def own() -> list[str]:
    """Return the directories of the container's own cgroup, in each hierarchy, that it could mount."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if controllers.startswith("name=") or (number == "0" and os.path.exists("/sys/fs/cgroup/unified")):
            continue
        place = f"/tmp/cgroup/{number}"
        kind = "cgroup" if controllers else "cgroup2"
        attempt("mount a hierarchy", lambda: mount(kind, place, controllers))
        if os.path.exists(f"{place}{path}/cgroup.procs") and path != "/":
            found.append(f"{place}{path}")  # the whole hierarchy is there: only one's own part of it is meant
        elif os.path.exists(f"{place}/cgroup.procs"):
            found.append(place)
    return found
