"""The floor of `bench syscalls`: an agent that has the kernel answer each call at once.

It shows what the kernel's way to hand a call on costs, whatever is said: nobody who answers such calls is faster.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lxcfs_py.linux import seccomp


def main() -> None:
    """Take one listener at a socket, and let through what comes by it until killed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(sys.argv[1])
        server.listen()
        connection, _ = server.accept()
        _, (listener, *_), _, _ = socket.recv_fds(connection, 1 << 16, 1)
    seccomp.wake_in_turn(listener)
    slot = memoryview(bytearray(seccomp.SLOT))
    empty = bytes(seccomp.SLOT)
    while True:
        with contextlib.suppress(FileNotFoundError):  # its thread has ended meanwhile
            slot[:] = empty
            seccomp.receive(listener, slot)
            seccomp.let_through(listener, seccomp.parse(slot).id)


if __name__ == "__main__":
    main()
