"""The reader: a process inside a container that reads files and times it.

It takes one JSON object a line on standard input, does it, and answers with one on standard output. It is run as a
script and measures nothing but the three system calls of a `cat`: open, read to the end, close.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any

from lxcfs_py.linux import syscalls

SIZE = 64 << 10
"""Bytes asked for at a time; `cat` takes 64 or 128 KiB."""


def timed(path: str, seconds: float) -> array[int]:
    """Read `path` for so long; return how many ns each open + read to the end + close took."""
    open_, read, close, clock, flags = os.open, os.read, os.close, time.perf_counter_ns, os.O_RDONLY
    took = array("Q")
    end = clock()
    deadline = end + int(seconds * 1e9)
    while end < deadline:
        start = clock()
        descriptor = open_(path, flags)
        while read(descriptor, SIZE):
            pass
        close(descriptor)
        end = clock()
        took.append(end - start)
    return took


def crowd(path: str, seconds: float, readers: int) -> dict[str, float]:
    """Read `path` from so many processes at once; return the reads of all, and the seconds the slowest was at it."""
    go, start = os.pipe()
    results, result = os.pipe()
    children = []
    for _ in range(readers):
        child = os.fork()
        if child == 0:
            os.close(start)
            os.read(go, 1)  # the end of file, when the parent closes its end
            began = time.perf_counter()
            reads = len(timed(path, seconds))
            os.write(result, b"%d %f\n" % (reads, time.perf_counter() - began))
            os._exit(0)
        children.append(child)
    for descriptor in (start, go, result):
        os.close(descriptor)
    for child in children:
        os.waitpid(child, 0)
    with os.fdopen(results) as lines:
        counts = [line.split() for line in lines]
    if len(counts) != readers:
        raise OSError(f"{readers - len(counts)} of {readers} readers of {path} failed")
    return {"reads": sum(int(reads) for reads, _ in counts), "seconds": max(float(spent) for _, spent in counts)}


def answer(
    do: str, path: str = "", source: str = "", seconds: float = 0, readers: int = 0, cpus: Sequence[int] = ()
) -> Any:
    """Do one thing that was asked for."""
    if do == "bind":
        return syscalls.mount(source, path, flags=syscalls.MS_BIND)
    if do == "unbind":
        return syscalls.umount(path)
    if do == "pin":
        return os.sched_setaffinity(0, cpus)
    if do == "text":
        with open(path) as file:
            return file.read()
    if do == "crowd":
        return crowd(path, seconds, readers)
    return timed(path, seconds).tolist()


def main() -> None:
    """Answer until standard input ends."""
    gc.disable()
    for line in sys.stdin:
        try:
            reply = {"result": answer(**json.loads(line))}
        except OSError as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
