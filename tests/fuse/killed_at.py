"""Kill a process at its Nth system call, as ptrace(2) counts them over all its threads.

`python killed_at.py FILE COMMAND...` becomes the command, to be killed at the call whose number is in the file, which
is deleted: once. Without the file it is only the command. The process keeps its id, for who has started it. How many
calls it made is in FILE.made afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

_SYSCALL, _SEIZE, _INTERRUPT, _GET_SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E
_OPTIONS = 1 | 8  # TRACESYSGOOD, and threads are traced, too
_ENTRY = 1
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long
_info = ctypes.create_string_buffer(128)


def _ptrace(request: int, thread: int, address: int = 0, data: object = 0) -> bool:
    """Tell whether that could be done: whoever is asked may be gone."""
    return int(_libc.ptrace(request, thread, address, data)) >= 0


def trace(process: int, number: int, begin: Callable[[], object]) -> int:
    """Kill a process at the Nth call from `begin` on, which is called when it is traced; return how many it made."""
    begun, waiting = False, {int(name) for name in os.listdir(f"/proc/{process}/task")}
    for thread in waiting:
        _ptrace(_SEIZE, thread, 0, _OPTIONS)
        _ptrace(_INTERRUPT, thread)
    count = 0
    while True:
        try:
            thread, status = os.waitpid(-1, _WALL)
        except ChildProcessError:
            return count
        if not os.WIFSTOPPED(status):
            continue
        waiting.discard(thread)
        stop, event = os.WSTOPSIG(status), status >> 16
        if begun and stop == _SYSCALL_STOP:
            _ptrace(_GET_SYSCALL_INFO, thread, len(_info), ctypes.addressof(_info))
            if _info.raw[0] == _ENTRY:
                count += 1
            if count == number:
                os.kill(process, signal.SIGKILL)
                return count
        passed_on = 0 if event or stop == _SYSCALL_STOP else stop
        _ptrace(_SYSCALL, thread, 0, passed_on)
        if not begun and not waiting:
            begun = True
            begin()


def _be_traced(number: int, made: Path) -> None:
    """Let this process be traced by one which nobody waits for."""
    process = os.getpid()
    begun, begins = os.pipe()
    os.set_inheritable(begins, True)
    if not os.fork():
        if os.fork():
            os._exit(0)
        try:
            os.closerange(3, begun)  # a session's descriptors, which somebody else has to hold
            os.closerange(begins + 1, 64)
            made.write_text(str(trace(process, number, lambda: os.write(begins, b"1"))))
        finally:
            os._exit(0)
    os.wait()
    os.read(begun, 1)
    os.close(begins)
    os.close(begun)


def be_killed_as(file: Path) -> None:
    """Let this process be killed at the call whose number is in a file, if it is there."""
    try:
        number = int(file.read_text())
        file.unlink()
    except FileNotFoundError:
        return
    _be_traced(number, Path(f"{file}.made"))


def main() -> None:
    """See above. `--stop PROCESS NUMBER [COMMAND...]` kills a process at that call of its stop, which it begins.

    It tells the process to stop, or runs the command that does.
    """
    if sys.argv[1] == "--stop":
        process, number = map(int, sys.argv[2:4])
        stop = sys.argv[4:] or ["kill", str(process)]
        print(trace(process, number, lambda: subprocess.run(stop, check=True)))
        return
    file, *command = sys.argv[1:]
    be_killed_as(Path(file))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
