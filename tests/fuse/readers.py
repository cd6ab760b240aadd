"""Readers that never stop, run inside a sandbox by the tests: `python readers.py FILE…` until a line comes on stdin.

Each of 8 threads reads the files in turn, with buffers of any size, and checks that each text is whole and of one
piece. Prints what went wrong, and last how many files were read, and the seconds that the longest open or read took.
"""

from __future__ import annotations

import os
import random
import re
import sys
import threading
import time
from typing import Any, Callable, TypeVar

T = TypeVar("T")

FILES = sys.argv[1:]
stop = threading.Event()
lock = threading.Lock()
counts = {"reads": 0}
longest = 0.0
faults: list[str] = []


def shape(text: str) -> str:
    """A text without its figures."""
    return re.sub(r"[ \t]*\d+(\.\d+)?", " 0", text)


def timed(call: Callable[..., T], *arguments: Any) -> T:
    global longest
    started = time.monotonic()
    try:
        return call(*arguments)
    finally:
        took = time.monotonic() - started
        if took > longest:
            with lock:
                longest = max(longest, took)


def read(path: str, size: int) -> str:
    fd = timed(os.open, path, os.O_RDONLY)
    try:
        parts: list[bytes] = []
        while True:
            part = timed(os.read, fd, size)
            if not part:
                return b"".join(parts).decode()
            parts.append(part)
    finally:
        os.close(fd)


def check(path: str, text: str) -> None:
    if shape(text) != expected[path]:
        raise ValueError(f"{path} is not whole: {text!r}")
    if path == "/proc/stat":
        total, *cpus = [list(map(int, line.split()[1:])) for line in text.splitlines() if line.startswith("cpu")]
        if total != [sum(column) for column in zip(*cpus)]:
            raise ValueError(f"the CPUs of {path} do not add up to its total: {text!r}")


def work() -> None:
    while not stop.is_set():
        for path in FILES:
            try:
                check(path, read(path, random.choice((7, 64, 700, 65536))))
            except (OSError, ValueError) as error:
                faults.append(f"{path}: {error}")
            with lock:
                counts["reads"] += 1


expected = {path: shape(read(path, 65536)) for path in FILES}
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
print("reading", flush=True)
sys.stdin.readline()
stop.set()
for thread in threads:
    thread.join()
for fault in faults[:10]:
    print("fault:", fault)
print(counts["reads"], len(faults), f"{longest:.3f}")
