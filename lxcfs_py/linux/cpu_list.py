"""Lists of CPUs as the kernel writes them ("0-3,8")."""

from __future__ import annotations

import functools

# More than any kernel is built for: a list that names more is not the kernel's.
_MAX_CPUS = 65536


@functools.lru_cache(maxsize=1024)
def parse(text: bytes) -> tuple[int, ...]:
    """Parse "0-3,8\\n" to (0, 1, 2, 3, 8). ValueError for anything else."""
    cpus: list[int] = []
    for part in text.strip().split(b","):
        if part:
            first, _, last = part.partition(b"-")
            start, stop = int(first), int(last or first) + 1
            if max(stop, len(cpus) + stop - start) > _MAX_CPUS:
                raise ValueError(f"more than {_MAX_CPUS} CPUs")
            cpus += range(start, stop)
    return tuple(cpus)


def render(cpus: tuple[int, ...]) -> bytes:
    """Write ascending CPU numbers as the kernel does: (0, 1, 2, 8) is "0-2,8\\n"."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return (",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "\n").encode()
