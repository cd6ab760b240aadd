"""Threads that end with the process, and an error of the system's where none can be had."""

from __future__ import annotations

import errno
import threading
from typing import Any, Callable


def start(target: Callable[..., Any], *arguments: Any, name: str) -> threading.Thread:
    """Start one that calls `target`. OSError as `begin` has it."""
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    begin(thread)
    return thread


def begin(thread: threading.Thread) -> None:
    """Start this one. OSError EAGAIN, as pthread_create(3) has it, where the limit on processes is reached."""
    try:
        thread.start()
    except RuntimeError as error:
        raise none_to_be_had(error) from None


def none_to_be_had(error: RuntimeError) -> OSError:
    """Return the system's error for what Python says where it could start no thread."""
    return OSError(errno.EAGAIN, f"{error}: the limit on processes is reached (TasksMax=, pids.max)")


def require(number: int) -> None:
    """Do nothing where so many more can be had. OSError EAGAIN else."""
    enough = threading.Event()
    try:
        for _ in range(number):
            start(enough.wait, name="required")
    finally:
        enough.set()
