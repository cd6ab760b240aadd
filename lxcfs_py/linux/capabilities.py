"""What a process may do beyond its user (capabilities(7))."""

from __future__ import annotations

from lxcfs_py.linux import roots

SYS_ADMIN = 21
SYS_RESOURCE = 24


def effective(pid: object = "self") -> int:
    """Return the effective capabilities of a process or thread, a bit for each; 0 where it is gone."""
    try:
        with open(f"{roots.PROC}/{pid}/status") as file:
            return next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except OSError:
        return 0


def has(pid: object, capability: int) -> bool:
    """Tell whether a process has one, in whichever user namespace."""
    return bool(effective(pid) >> capability & 1)
