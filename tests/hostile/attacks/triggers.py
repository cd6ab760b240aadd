"""Triggers of pressure, as many as one gets, with all windows, and polls for them from threads."""

import os
import select
import threading

from rounds import PRESSURE, attempt, for_ever

held: list[int] = []


def poll() -> None:
    while True:
        waiting = select.poll()
        for fd in held[-200:]:
            waiting.register(fd, select.POLLPRI)
        waiting.poll(10)


def trigger(path: str, text: bytes) -> None:
    fd = os.open(path, os.O_RDWR)
    held.append(fd)
    os.write(fd, text)


def work() -> None:
    for path in PRESSURE:
        for text in (b"some 150000 2000000", b"full 1 2000000", b"some 1 500000", b"some", b"x" * 4000, b"some -1 -1"):
            attempt("trigger", lambda path=path, text=text: trigger(path, text + b"\0"))
    while len(held) > 600:
        os.close(held.pop(0))


for _ in range(10):
    threading.Thread(target=poll, daemon=True).start()
for_ever(work)
