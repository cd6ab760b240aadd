"""What the attacks share. Each is a program of its own, run in a container until it is killed.

It prints one line of JSON when it has tried all that it can do once: what came of each, and how often. Then it goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable

PROC = ("cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "swaps", "uptime")
FILES = [path for path in (f"/proc/{name}" for name in PROC) if os.path.exists(path)]
CPUS = "/sys/devices/system/cpu"
PRESSURE = sorted(map(str, Path("/views").glob("*")))
"""Where runc lets nothing be mounted below /proc, the files of /proc/pressure are elsewhere."""

tally: Counter[str] = Counter()


def attempt(name: str, what: Callable[[], Any]) -> Any:
    """Do something, count what came of it, and return what it returned, None where it failed."""
    try:
        result = what()
    except OSError as error:
        tally[f"{name}: {errno.errorcode.get(error.errno or 0, error)}"] += 1
        return None
    except (ValueError, MemoryError, RuntimeError) as error:
        tally[f"{name}: {error}"] += 1
        return None
    tally[f"{name}: done"] += 1
    return result


def said() -> None:
    """Say what has come of it so far: now others can be watched."""
    print(json.dumps(dict(tally)), flush=True)


def for_ever(work: Callable[[], Any], pause: float = 0) -> None:
    """Do it once, say so, and then again and again."""
    work()
    said()
    while True:
        with contextlib.suppress(OSError, RuntimeError):
            work()
        time.sleep(pause)


def by_threads(number: int, work: Callable[[], Any]) -> None:
    """Have so many threads do it all the time."""
    threading.stack_size(64 << 10)

    def again() -> None:
        while True:
            with contextlib.suppress(OSError):
                work()

    for _ in range(number):
        try:
            threading.Thread(target=again, daemon=True).start()
        except RuntimeError:
            break
        tally["threads"] += 1
    said()
    while True:
        time.sleep(3600)


def read(path: str, size: int = 65536) -> None:
    """Open, read to the end, close."""
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.read(fd, size):
            pass
    finally:
        os.close(fd)


def hold(fds: Iterable[Any], kept: list[Any]) -> None:
    """Keep what was got for as long as the attack runs."""
    kept.extend(fd for fd in fds if fd is not None)
