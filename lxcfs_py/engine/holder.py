"""Descriptors that somebody else has to be the last to let go of, held by a process of its own.

Who lets go of a trigger last waits in the kernel for all others to have left what they are at (psi_trigger_destroy in
kernel/sched/psi.c): some 10 ms. In these a worker would serve nobody, and a server that dies would have as many for
each trigger before the next one can start. The process lets go of many at a time, and of all once the server has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Optional

from lxcfs_py import isolated
from lxcfs_py.linux import seccomp, threads

log = logging.getLogger(__name__)

_NUMBER = struct.Struct("=Q")
_PATIENCE = 1.0
"""Seconds in which the process has to take what it is told, before another one is started."""

_AT_A_TIME = 64
"""Descriptors that it lets go of at a time. While these take, it is told of no more, and who tells it waits."""


class Holder:
    """What is held here as well as by the process, which is started for the first one."""

    def __init__(self) -> None:
        self._connection: Optional[socket.socket] = None
        self._numbers: dict[int, int] = {}
        self._next = itertools.count()
        self._telling = threading.Lock()

    def hold(self, descriptor: int) -> None:
        """Have a descriptor held by the process too. Where it cannot be, `close` takes the time that it takes."""
        number = self._numbers[descriptor] = next(self._next)
        self._tell(number, [descriptor])

    def close(self, descriptor: int) -> None:
        """Let go of one that is held, here at once and in the process after that."""
        number = self._numbers.pop(descriptor)
        os.close(descriptor)
        self._tell(number)

    def _tell(self, number: int, descriptors: Sequence[int] = ()) -> None:
        """Say that these are to be held under a number, or what is held under it no longer."""
        with self._telling:
            try:
                if self._connection is None:
                    if not descriptors:  # whoever held it has ended
                        return
                    self._connection = _start()
                socket.send_fds(self._connection, [_NUMBER.pack(number)], descriptors)
            except OSError as error:
                log.debug("nobody holds triggers beside this process until the next one is set: %s", error)
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None


def _start() -> socket.socket:
    """Return a connection to a new process. What is sent before it is there waits for it."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mine.settimeout(_PATIENCE)
    try:
        threads.start(_run, its, name="holder")  # a worker would serve nobody meanwhile
    except OSError:
        mine.close()
        its.close()
        raise
    return mine


def _run(connection: socket.socket) -> None:
    with connection:
        try:
            subprocess.Popen(
                isolated.command(__name__, str(connection.fileno())),
                cwd="/",
                pass_fds=[connection.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is meant for the server
            )
        except OSError as error:
            log.warning("no process can hold triggers beside this one: %s", error)


# In the process of its own


def _main(connection: socket.socket) -> None:
    held: dict[int, int] = {}
    with contextlib.suppress(ConnectionResetError):
        while True:
            message, descriptors, _, _ = socket.recv_fds(connection, _NUMBER.size, 1)
            if not message:  # the server has ended
                break
            (number,) = _NUMBER.unpack(message)
            if descriptors:
                (held[number],) = descriptors
            elif number in held:  # else it was told to a process before this one
                _let_go(held.pop(number))
    for descriptor in held.values():
        _let_go(descriptor)
    for _ in range(_AT_A_TIME):
        _room.acquire()


_room = threading.Semaphore(_AT_A_TIME)


def _let_go(descriptor: int) -> None:
    def close() -> None:
        os.close(descriptor)
        _room.release()

    _room.acquire()
    try:
        threads.start(close, name="let go")
    except OSError:  # no thread can be had
        close()


if __name__ == "__main__":
    with contextlib.suppress(OSError):  # a kernel without filters
        seccomp.forbid()
    _main(socket.socket(fileno=int(sys.argv[1])))
