"""Loops of sysinfo(2) and sched_getaffinity(2) in containers, which fail where an answer is wrong or none."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lxcfs_py.runtimes.sandbox import Sandbox

MEMORY = 64 << 20
"""The limit of a container whose calls are checked. It has one CPU."""

LOOP = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
info = ctypes.create_string_buffer(128)
longest = calls = 0
print("begun", flush=True)
while not os.path.exists(sys.argv[1]):
    began = time.monotonic()
    assert libc.sysinfo(info) == 0, os.strerror(ctypes.get_errno())
    assert int.from_bytes(info[32:40], "little") == 64 << 20, info[32:40]
    assert len(os.sched_getaffinity(0)) == 1
    longest, calls = max(longest, time.monotonic() - began), calls + 1
print(calls, longest)
"""


@dataclass
class Calls:
    """What loops came to: pairs of calls, and the longest one in seconds."""

    pairs: int = 0
    longest: float = 0.0


@contextlib.contextmanager
def calling(boxes: Sequence[Sandbox], agent: str, flag: Path) -> Iterator[Calls]:
    """Have a loop run in each container, which ends with the `with` block; what came of it is known then.

    AssertionError where a call failed. `agent` is where the calls are handed to.
    """
    command = [sys.executable, str(Path(__file__).with_name("filtered.py")), agent]
    command += [sys.executable, "-c", LOOP, str(flag)]
    found = Calls()
    loops = [box.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for box in boxes]
    try:
        assert [loop.stdout and loop.stdout.readline() for loop in loops] == [b"begun\n"] * len(loops)
        yield found
    finally:
        flag.touch()
        said = [loop.communicate(timeout=120) for loop in loops]
        flag.unlink()
    for loop, (out, err) in zip(loops, said):
        assert loop.returncode == 0, err.decode()
        pairs, longest = out.split()
        assert int(pairs) > 0
        found.pairs += int(pairs)
        found.longest = max(found.longest, float(longest))
