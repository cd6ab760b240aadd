"""Threads that list and walk the directory of CPUs, and look up names that are not there."""

import contextlib
import os
import random

from rounds import CPUS, by_threads


def walk() -> None:
    for directory, _, names in os.walk(CPUS):
        for name in names:
            os.stat(os.path.join(directory, name))
    for _ in range(100):
        for name in (f"{random.getrandbits(800):x}", f"cpu{random.getrandbits(64)}/topology"):
            with contextlib.suppress(OSError):
                os.stat(f"{CPUS}/{name}")


by_threads(100, walk)
