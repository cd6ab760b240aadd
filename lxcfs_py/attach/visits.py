"""Processes that do one piece of work each where it may be kept waiting, or be lied to: in and about containers.

Several work side by side. Each has a deadline, and says which filesystem it is about to ask: of one that has not
answered, nobody asks again. What a process sends back is JSON of types, short texts and numbers. While it is in a
container's mount namespace, it must import nothing and open nothing by its path, since the files there are the
container's: so it formats no traceback, and names no codec but utf-8, which is built in.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any, Callable, Optional, Union

from lxcfs_py.attach.errors import AttachError, LeftAloneError, SilentError
from lxcfs_py.linux import fork, seccomp

SECONDS = 2.0
AT_ONCE = 32

_REAP_SECONDS = 0.1
_KILLED = "the process that was to do it was killed"

_MAX_TEXT = 200  # characters of an unexpected exception

Ask = Callable[[str, str], None]
"""ask("0:45", "its root filesystem"), before something is asked of a filesystem. SilentError if that is known to."""

Work = Callable[[Ask], Any]
"""What a process does; it returns what JSON can tell."""


class Visits:
    """Starts such processes, and remembers which filesystems did not answer one of them."""

    def __init__(self) -> None:
        self._silent: dict[str, str] = {}

    def one(self, work: Work) -> Any:
        """Return what `work` returns. AttachError and OSError are passed on, SilentError after SECONDS."""
        (answer,) = self.each([work])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def each(self, works: Iterable[Work]) -> list[Any]:
        """Return in their order what each returns, or the AttachError or OSError that it raises, or SilentError."""
        answers: dict[int, Any] = {}
        waiting = list(enumerate(works))[::-1]
        visits: dict[int, tuple[int, _Visit]] = {}
        while waiting or visits:
            while waiting and len(visits) < AT_ONCE:
                number, work = waiting.pop()
                visit = _Visit(work, self._silent)
                visits[visit.reader] = number, visit
            for reader, (number, visit) in list(visits.items()):
                if visit.is_over():
                    answers[number] = answer = visit.end()
                    del visits[reader]
                    if isinstance(answer, SilentError) and answer.device:
                        self._silent[answer.device] = str(answer)
            if visits:
                nearest = min(visit.deadline for _, visit in visits.values())
                select.select(list(visits), [], [], max(nearest - time.monotonic(), 0))
        return [answers[number] for number in sorted(answers)]


class _Visit:
    """One such process, seen by who has started it."""

    def __init__(self, work: Work, silent: dict[str, str]) -> None:
        self.reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.deadline = time.monotonic() + SECONDS
        self._pid = fork.start(partial(_visit, work, writer, silent))
        os.close(writer)
        self._said = b""
        self._is_closed = False

    def is_over(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            while not self._is_closed:
                part = os.read(self.reader, 1 << 16)
                self._said += part
                self._is_closed = not part
        return self._is_closed or time.monotonic() >= self.deadline

    def end(self) -> Any:
        """End and reap the process; one that the kernel does not let go, as it waits for a server, is left behind."""
        os.close(self.reader)
        os.kill(self._pid, signal.SIGKILL)
        given_up = time.monotonic() + _REAP_SECONDS
        while not os.waitpid(self._pid, os.WNOHANG)[0] and time.monotonic() < given_up:
            time.sleep(0.002)
        said = [json.loads(line) for line in self._said.split(b"\n")[:-1]]
        last = said[-1] if said else ["nothing"]
        if last[0] != "asks":
            return _answer(*last) if self._is_closed or said else _too_busy()
        if self._is_closed:
            return SilentError(_KILLED)
        _, device, what = last
        return SilentError(f"{what} did not answer within {SECONDS:g} s (filesystem {device})", device)


def _too_busy() -> AttachError:
    return SilentError(f"it was not done within {SECONDS:g} s: this machine is too busy")


def _answer(kind: str, *told: Any) -> Any:
    if kind == "result":
        return told[0]
    if kind == "OSError":
        return OSError(*told)
    known = {error.__name__: error for error in (AttachError, LeftAloneError, SilentError)}
    if kind in known:
        return known[kind](*told)
    return AttachError(f"this is a bug, please report it: {told[0]}") if told else SilentError(_KILLED)


# In the process, which ends soon: nothing is closed there


def _visit(work: Work, writer: int, silent: dict[str, str]) -> int:
    os.set_blocking(writer, True)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):  # who waits for the end of our output must not wait for a process that hangs
        os.dup2(null, standard)
    os.chdir("/")
    seccomp.try_to_forbid()

    def say(*words: Any) -> None:
        os.write(writer, json.dumps(words).encode() + b"\n")  # far less than a pipe holds

    def ask(device: str, what: str) -> None:
        if device in silent:
            raise SilentError(silent[device])
        say("asks", device, what)

    say(*_result(work, ask))
    return 0


def _result(work: Work, ask: Ask) -> tuple[Any, ...]:
    try:
        return "result", work(ask)
    except AttachError as error:
        return type(error).__name__, str(error)
    except OSError as error:
        return "OSError", error.errno, error.strerror, _text(error.filename)
    except BaseException as error:
        return "bug", f"{type(error).__name__}: {str(error)[:_MAX_TEXT]} ({', '.join(_lines(error.__traceback__))})"


def _text(name: Union[str, bytes, int, None]) -> Union[str, int, None]:
    return ascii(name)[2:-1] if isinstance(name, bytes) else name


def _lines(traceback: Optional[TracebackType]) -> Iterable[str]:
    """Yield the functions and lines that an exception came through."""
    while traceback:
        yield f"{traceback.tb_frame.f_code.co_name}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
