"""Files opened and handed from process to process, in sockets that nobody reads, more than any limit of one process."""

import array
import os
import socket
import time

from rounds import FILES, attempt, read, said, tally

held = []


def put(path: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    held.append((ours, theirs))
    for _ in range(10):
        fds = [os.open(path, os.O_RDONLY) for _ in range(100)]
        for fd in fds[:50]:
            os.read(fd, 1)
        try:
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
            tally["files in sockets"] += len(fds)
        finally:
            for fd in fds:
                os.close(fd)


for number in range(400):
    if attempt("socket", lambda number=number: put(FILES[number % len(FILES)])) is None and number > 100:
        break
said()
while True:
    for path in FILES:
        read(path)
    time.sleep(0.001)
