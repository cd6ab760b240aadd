"""Lists ("0-3,8") and masks ("ff,ffffffff") of CPUs as the kernel writes them."""

from __future__ import annotations

import functools
from collections.abc import Collection

# More than any kernel is built for: a list that names more is not the kernel's.
MAX_CPUS = 65536


@functools.lru_cache(maxsize=1024)
def parse(text: bytes) -> tuple[int, ...]:
    """Parse "0-3,8\\n" to (0, 1, 2, 3, 8). ValueError for anything else."""
    cpus: list[int] = []
    for part in text.strip().split(b","):
        if part:
            first, _, last = part.partition(b"-")
            start, stop = int(first), int(last or first) + 1
            if max(stop, len(cpus) + stop - start) > MAX_CPUS:
                raise ValueError(f"more than {MAX_CPUS} CPUs")
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


def only(text: bytes, cpus: Collection[int]) -> bytes:
    """Return those of a list that are among `cpus`. ValueError for what is no list."""
    if text.strip() == b"(null)":  # nohz_full, before Linux 6.2 or so, where there are none
        return text
    return render(tuple(cpu for cpu in parse(text) if cpu in cpus))


def masked(text: bytes, cpus: Collection[int]) -> bytes:
    """Return those of a mask that are among `cpus`, in words of the same width. ValueError for what is no mask."""
    words = text.strip().split(b",")
    mask = int(b"".join(words), 16) & sum(1 << cpu for cpu in cpus)
    # All words but the first have 32 bits.
    digits = b"%0*x" % (sum(map(len, words)), mask)
    return b",".join(digits[sum(map(len, words[:n])) :][: len(word)] for n, word in enumerate(words)) + b"\n"
