"""What may have to wait for a container, without an end, is done by processes of their own, which hold nothing.

Whoever lists a directory has the kernel's lock of it until he is done, and can take as long as he likes: with memory
whose pages he holds back, or in a thread that seldom runs. Who looks a name up there for the first time, or lists it,
waits, and no signal ends that. So it would be with each thread of a server in a directory that is a container's, such
as its cgroup's, and a server that is killed would not end.

Work is named here by functions. Where `start` was not called, they are simply called.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import logging
import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional, TypeVar

from lxcfs_py.linux import fork, roots, seccomp, signals
from lxcfs_py.linux.ancillary import descriptors_in

log = logging.getLogger(__name__)

R = TypeVar("R")

_OPEN_SECONDS, _LOOK_SECONDS = 1.0, 2.0
"""For which one may wait in the kernel for one thing, until something is open, and until it is looked at."""

_MOST_SECONDS = 4.0
"""For which is waited for one that has not waited as long: the machine is busy. The watchdog lets a worker have 10."""

_PART = (1.0, 0.5, 0.25, 0.0)
"""Which part of that, for somebody who has answered always, who has once not, twice, and more often."""

_GRUDGE_SECONDS = 100.0
"""For which it is remembered who has not answered."""

_MANY_SILENT = 16
"""So many processes that wait in one branch of the tree of cgroups, two levels below the root, make each of the others
there count as one who has once not answered."""

_MOST_SILENT = 128
"""Processes that wait: then nobody else is waited for."""

_MOST_IDLE = 3
"""Who asks finds as many: to start one takes some milliseconds, and more on a busy machine."""

_PAUSE_SECONDS = 0.01
_NONE_SECONDS = 10.0
"""For which the server looks itself, where no process is to be had."""

_MOST_BYTES = 1 << 16
"""Of a message; a longer answer is in a file, whose descriptor comes with this."""

_IN_A_FILE = b"\0"


class GoneError(FileNotFoundError):
    """A file's directory is not there, or no longer."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, os.strerror(errno.ENOENT), path)


class SilentError(TimeoutError):
    """Somebody's directory does not answer."""

    def __init__(self, whose: str) -> None:
        super().__init__(errno.ETIMEDOUT, "directories there do not answer", whose)


def open_file(whose: str, directory: str, name: str, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a file in somebody's directory, "" for a directory that nobody can keep the lock of.

    OSError; of a file that is not there FileNotFoundError, but GoneError where the directory is not. SilentError.
    """
    return _do(whose, _OPEN_SECONDS, _open, directory, name, flags)


def look(whose: str, function: Callable[..., R], *arguments: Any) -> R:
    """Return what a function returns that looks at somebody's directories.

    It is one of a module, which takes and returns what JSON can say. OSError, ValueError. SilentError.
    """
    return _do(whose, _LOOK_SECONDS, function, *arguments)


def start(functions: Iterable[Callable[..., Any]], prepare: Callable[[], None] = lambda: None) -> None:
    """Have these functions, and what opens files, done by other processes from now on. OSError.

    Call it after `roots.take`, where there are no threads that hold a lock; nothing happens the second time. `prepare`
    is called in each process, before it may do less.
    """
    global _helpers
    if _helpers is not None:
        return
    known: Sequence[Callable[..., Any]] = (_open, *functions)
    _helpers = _Helpers({_name(function): function for function in known}, prepare)


def is_used() -> bool:
    """Tell whether anything is done by other processes."""
    return _helpers is not None


def wait_until_begun() -> None:
    """Wait for a process that can be asked, so that who asks does not; on a busy machine not for long."""
    if _helpers is not None:
        _helpers.wait_until_begun()


def thread_time() -> float:
    """Return the seconds of CPU time that this thread has taken, and what was done for it aside."""
    return time.thread_time() + float(getattr(_spent, "seconds", 0.0))


def _do(whose: str, seconds: float, function: Callable[..., R], *arguments: Any) -> R:
    if _helpers is None or not whose:
        return function(*arguments)
    return _helpers.do(whose, seconds, function, arguments)  # type: ignore[no-any-return]


def _open(directory: str, name: str, flags: int) -> int:
    try:
        return os.open(f"{directory}/{name}", flags | os.O_CLOEXEC)
    except FileNotFoundError:
        if not os.path.isdir(directory):
            raise GoneError(f"{directory}/{name}") from None
        raise


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


class _Answer(NamedTuple):
    """What a process has to say."""

    seconds: float
    """Of CPU time that it took."""

    error: str
    """The name of an exception, "" for none, and what belongs to that."""

    number: int
    words: str

    value: Any = None
    descriptor: Optional[int] = None


class _Helper:
    """One of the processes, which does one thing at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = 0  # until it has said it

    def begin(self, name: str, arguments: Any) -> None:
        """Let it do something. OSError where it has ended."""
        _send(self._connection, json.dumps([name, arguments]).encode())

    def is_done(self, patience: float) -> bool:
        """Tell whether it is done. False when it has waited in the kernel for so many seconds, for one thing.

        It may take longer where the machine is busy. OSError where it has ended.
        """
        now = since = time.monotonic()
        end, before = now + _MOST_SECONDS, ""
        while not self.has_answered(patience / 4):
            waits, now = self._waits(), time.monotonic()
            if not waits or waits != before:
                before, since = waits, now
            if now - since >= patience or now > end:
                return self.has_answered(0)
        return True

    def has_answered(self, seconds: float) -> bool:
        """Tell whether it is done within so many seconds. OSError where it has ended."""
        end = time.monotonic() + seconds
        return self.begins(seconds) and self._has_said(max(end - time.monotonic(), 0))

    def begins(self, seconds: float) -> bool:
        """Tell whether it has been started within so many seconds. OSError where it has ended."""
        if not self._pid and self._has_said(seconds):
            message, _ = _receive(self._connection)
            self._pid = int(message)
        return bool(self._pid)

    def _has_said(self, seconds: float) -> bool:
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        return bool(waiting.poll(seconds * 1000))

    def _waits(self) -> str:
        """Return what tells for what it waits from what else, "" while it does not, or has not been started."""
        if not self._pid:
            return ""
        try:
            with open(f"{roots.PROC}/{self._pid}/status", encoding="utf-8", errors="replace") as file:
                fields = dict(line.split(":", 1) for line in file if ":" in line)
        except OSError:
            return ""
        return fields["voluntary_ctxt_switches"] if fields["State"].split()[0] in ("D", "S") else ""

    def answer(self) -> _Answer:
        """Return what it says when it is done. OSError where it has ended."""
        message, descriptors = _receive(self._connection)
        return _Answer(*json.loads(message), *descriptors)

    def close(self) -> None:
        """Let it end, as soon as it is done."""
        self._connection.close()


@dataclass
class _Silence:
    """Of somebody who has not answered."""

    times: int = 0
    last: float = 0.0
    helpers: list[_Helper] = field(default_factory=list)
    """Those that he keeps waiting still."""


class _Helpers:
    """The processes, and who keeps some of them waiting."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], prepare: Callable[[], None]) -> None:
        self._silent: dict[str, _Silence] = {}
        self._none_until = 0.0
        self._lock = threading.Lock()
        self._parent, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._pid = fork.start(lambda: _be_parent(its, functions, prepare))
        self._idle = [self._new() for _ in range(_MOST_IDLE)]

    def do(self, whose: str, seconds: float, function: Callable[..., Any], arguments: Any) -> Any:
        """Have something done in which somebody may keep waiting who does it, and return what comes of it."""
        began = time.monotonic()
        patience = seconds * self._part(whose, began)
        if not patience:
            raise SilentError(whose)
        while True:
            helper = None
            try:
                helper = self._idle_or_new()
                helper.begin(_name(function), arguments)
                is_done = helper.is_done(patience)
                answer = helper.answer() if is_done else None
                break
            except OSError as error:  # one that was idle has ended, or there is no room for another
                if helper is not None:
                    helper.close()
                if error.errno in (errno.EMFILE, errno.ENFILE):  # who asked makes room
                    raise
                if began >= self._none_until and time.monotonic() - began < seconds:
                    time.sleep(_PAUSE_SECONDS)
                    continue
                self._tell_of_none(error.strerror)  # to wait is better than to show somebody what is not his
                return function(*arguments)
        if answer is None:
            if not helper.begins(0):
                helper.close()
                self._tell_of_none("none was started in time")
                return function(*arguments)
            self._note(whose, helper)
            raise SilentError(whose)
        self._take_back(helper)
        _spent.seconds = getattr(_spent, "seconds", 0.0) + answer.seconds
        if answer.error:
            raise _error(answer)
        if function is not _open:
            return answer.value
        if answer.descriptor is None:  # it was opened, and could not be taken
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return answer.descriptor

    def wait_until_begun(self) -> None:
        """Wait until those that were started first have begun, for a second each at most."""
        for helper in self._idle:
            with contextlib.suppress(OSError):
                helper.begins(_OPEN_SECONDS)

    def _tell_of_none(self, reason: Optional[str]) -> None:
        """Note that no process is to be had, so that nobody waits for one for a while."""
        now = time.monotonic()
        if now > self._none_until:
            log.warning("no process that looks at cgroups can be had: the server looks itself (%s)", reason)
            self._none_until = now + _NONE_SECONDS

    def _idle_or_new(self) -> _Helper:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new()

    def _new(self) -> _Helper:
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            _send(self._parent, b"another", its.fileno())
        return _Helper(mine)

    def _take_back(self, helper: _Helper) -> None:
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(helper)
        else:
            helper.close()

    def _part(self, whose: str, now: float) -> float:
        """Return for which part of the usual time somebody is waited for, 0 for not at all."""
        if not self._silent:
            return 1.0
        with self._lock:
            for name, silence in list(self._silent.items()):
                if silence.helpers:
                    silence.helpers = [helper for helper in silence.helpers if not _is_back(helper)]
                    silence.last = now
                elif now > silence.last + _GRUDGE_SECONDS:
                    del self._silent[name]
            known = self._silent.get(whose)
            if known is not None and known.helpers:
                return 0.0
            waiting = [_branch(name) for name, silence in self._silent.items() for _ in silence.helpers]
            if len(waiting) >= _MOST_SILENT:
                return 0.0
            near = waiting.count(_branch(whose)) // _MANY_SILENT
            return _PART[min((known.times if known else 0) + near, len(_PART) - 1)]

    def _note(self, whose: str, helper: _Helper) -> None:
        """Note that somebody does not answer, as once where several wait at a time."""
        with self._lock:
            silence = self._silent.setdefault(whose, _Silence())
            if not silence.helpers:
                silence.times += 1
                silence.last = time.monotonic()
                log.info("%r: directories there do not answer, and are not waited for", whose)
            silence.helpers.append(helper)


def _send(connection: socket.socket, content: bytes, descriptor: Optional[int] = None) -> None:
    """Send a message, and a descriptor with it; a long one, which has none, in a file. OSError, as for want of room."""
    if len(content) > _MOST_BYTES:
        with open(os.memfd_create("message"), "wb") as file:
            file.write(content)
            file.flush()
            _send(connection, _IN_A_FILE, file.fileno())
        return
    passed = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=i", descriptor))]
    connection.sendmsg([content], passed, socket.MSG_DONTWAIT)


def _receive(connection: socket.socket) -> tuple[bytes, Sequence[int]]:
    """Return a message and the descriptor that came with it, if any. OSError, ConnectionError where the other ended."""
    space = socket.CMSG_SPACE(struct.calcsize("i"))
    message, ancillary, _, _ = connection.recvmsg(_MOST_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    if not message:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    descriptors = descriptors_in(ancillary)
    if message != _IN_A_FILE:
        return message, descriptors
    if not descriptors:  # it could not be taken
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with open(descriptors[0], "rb") as file:
        file.seek(0)
        return file.read(), []


def _branch(whose: str) -> list[str]:
    """Return the names of the cgroups that somebody is in, two levels below the root."""
    return whose.split("/", 3)[:3]


def _error(answer: _Answer) -> Exception:
    if answer.error == "GoneError":
        return GoneError(answer.words)
    if answer.error == "ValueError":
        return ValueError(answer.words)
    return OSError(answer.number, os.strerror(answer.number), answer.words)


def _is_back(helper: _Helper) -> bool:
    """Tell whether one that was kept waiting no longer is: it is let go then, with what nobody wants any more."""
    with contextlib.suppress(OSError):
        if not helper.has_answered(0):
            return False
        descriptor = helper.answer().descriptor
        if descriptor is not None:
            os.close(descriptor)
    helper.close()
    return True


_helpers: Optional[_Helpers] = None
_spent = threading.local()


# In the processes


def _be_parent(
    requests: socket.socket, functions: Mapping[str, Callable[..., Any]], prepare: Callable[[], None]
) -> int:
    """Fork one that works each time that one is wanted, until the server has ended."""
    os.setsid()  # a terminal's Ctrl-C is meant for the server
    signals.ignore_all_but()
    gc.freeze()  # else what is found to be garbage closes its descriptors, whose numbers are others' by then
    _keep_open({requests.fileno(), *roots.descriptors()})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while True:
        try:
            _, descriptors = _receive(requests)
        except OSError:
            return 0
        for descriptor in descriptors:  # one, unless there was no room for it
            with socket.socket(fileno=descriptor) as connection, contextlib.suppress(OSError):
                fork.start(lambda connection=connection: _work(requests, connection, functions, prepare))  # type: ignore[misc]


def _keep_open(descriptors: Collection[int]) -> None:
    """Close all other files, and let the standard ones lead nowhere."""
    for descriptor in map(int, os.listdir(f"{roots.PROC}/self/fd")):
        if descriptor > 2 and descriptor not in descriptors:
            with contextlib.suppress(OSError):  # the one by which it was listed
                os.close(descriptor)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.close(nowhere)


def _work(
    requests: socket.socket,
    connection: socket.socket,
    functions: Mapping[str, Callable[..., Any]],
    prepare: Callable[[], None],
) -> int:
    """Do one thing after the other, as long as the server lives."""
    requests.close()  # its other end tells whether the parent lives
    prepare()
    seccomp.try_to_forbid()
    _send(connection, str(os.getpid()).encode())
    while True:
        try:
            message, _ = _receive(connection)
        except OSError:
            return 0
        name, arguments = json.loads(message)
        began, value, failed = time.process_time(), None, ("", 0, "")
        try:
            value = functions[name](*arguments)
        except GoneError as error:
            failed = ("GoneError", errno.ENOENT, error.filename)
        except OSError as error:
            failed = ("OSError", error.errno or errno.EIO, str(error.filename or ""))
        except ValueError as error:
            failed = ("ValueError", 0, str(error))
        except Exception as error:  # of a file that holds what the kernel never writes, or for want of memory
            failed = ("OSError", errno.EIO, repr(error))
        took = time.process_time() - began
        if functions[name] is _open and value is not None:
            _send(connection, json.dumps([took, *failed, None]).encode(), value)
            os.close(value)
        else:
            _send(connection, json.dumps([took, *failed, value]).encode())
