"""The personality of a process (personality(2)): whether the kernel shows it a 32-bit machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from lxcfs_py.linux import roots, syscalls

SHOWS = os.uname().machine == "aarch64"
"""True where a file of the kernel says something else to a 32-bit personality: /proc/cpuinfo of arm64 does."""

_PER_MASK = 0xFF
_PER_LINUX32 = 0x08
_ASK = 0xFFFF_FFFF


def is_32_bit(pid: object) -> bool:
    """Tell whether a process has the personality that `setarch linux32` gives; False where it is gone."""
    try:
        with open(f"{roots.PROC}/{pid}/personality") as file:
            return int(file.read(), 16) & _PER_MASK == _PER_LINUX32
    except OSError:
        return False


@contextlib.contextmanager
def as_32_bit() -> Iterator[None]:
    """Let the calling thread have that personality while the block runs. OSError where it may not change."""
    own = syscalls.personality(_ASK)
    syscalls.personality(own & ~_PER_MASK | _PER_LINUX32)
    try:
        yield
    finally:
        syscalls.personality(own)
