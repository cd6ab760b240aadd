"""Triggers of pressure, as many as one gets, with all windows, polls for them from threads, and some set and closed."""

import contextlib
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


def set_and_close() -> None:
    while True:
        fd = os.open(PRESSURE[0], os.O_RDWR)
        with contextlib.suppress(OSError):  # there are too many
            os.write(fd, b"some 150000 2000000\0")
        os.close(fd)


for _ in range(8):
    threading.Thread(target=set_and_close, daemon=True).start()
for _ in range(10):
    threading.Thread(target=poll, daemon=True).start()
for_ever(work)
