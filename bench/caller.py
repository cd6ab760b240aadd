"""The caller: a process inside a container that makes system calls or starts programs, and times it.

It takes one JSON object a line on standard input, does it, and answers with one on standard output.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).parent.parent))

from lxcfs_py.linux import seccomp, syscalls

_SCHED_GETAFFINITY = {"x86_64": 204, "aarch64": 123}

_libc = ctypes.CDLL(None)
_answer = ctypes.create_string_buffer(128)


def _calls() -> dict[str, Callable[[], int]]:
    number = ctypes.c_long(_SCHED_GETAFFINITY[os.uname().machine])
    size = ctypes.c_size_t(128)
    return {
        "sysinfo": lambda: _libc.sysinfo(_answer),
        "sched_getaffinity": lambda: _libc.syscall(number, 0, size, _answer),
    }


def timed(call: str, seconds: float) -> array[int]:
    """Make a call for so long; return how many ns each took."""
    made, clock = _calls()[call], time.perf_counter_ns
    took = array("Q")
    end = clock()
    deadline = end + int(seconds * 1e9)
    while end < deadline:
        start = clock()
        made()
        end = clock()
        took.append(end - start)
    return took


def starts(command: Sequence[str], times: int) -> list[int]:
    """Run a program from start to end so many times; return how many ns each took."""
    took = []
    for _ in range(times):
        start = time.perf_counter_ns()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        took.append(time.perf_counter_ns() - start)
    return took


def answer(
    do: str, call: str = "", seconds: float = 0, command: Sequence[str] = (), times: int = 0, cpus: Sequence[int] = ()
) -> Any:
    """Do one thing that was asked for."""
    if do == "pin":
        return os.sched_setaffinity(0, cpus)
    if do == "filter":  # by which the kernel answers: calls are filtered as where the agent does
        return syscalls.seccomp_filter(seccomp.program(seccomp.ALLOW))
    if do == "start":
        return starts(command, times)
    return timed(call, seconds).tolist()


def main() -> None:
    """Answer until standard input ends."""
    gc.disable()
    for line in sys.stdin:
        try:
            reply = {"result": answer(**json.loads(line))}
        except (OSError, subprocess.SubprocessError) as error:
            reply = {"error": str(error)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
