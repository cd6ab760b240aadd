"""Give the files to the pods of a node by NRI: `python -m lxcfs_py.attach.nri`, a process beside the daemon.

The daemon holds its standard input: the settings come there, and when it ends, so does this. It has one thread, which
answers the runtime and does nothing else that takes time: what is to be attached is attached by forked processes. Where
there is no socket, it looks for one; where the runtime goes, it registers with the next one.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import json
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Optional

from lxcfs_py.attach import attach, results, running
from lxcfs_py.attach.errors import EndedError
from lxcfs_py.attach.forks import Forks
from lxcfs_py.linux import mountpoint, runtime_directory, syscalls
from lxcfs_py.log import to_stderr
from lxcfs_py.runtimes.bind_snippets import is_here
from lxcfs_py.runtimes.nri.connection import Connection, ConnectionLostError
from lxcfs_py.runtimes.nri.plugin import Attachment, Plugin
from lxcfs_py.runtimes.nri.policy import Policy

log = logging.getLogger("lxcfs_py.attach.nri")

SOCKET = "/var/run/nri/nri.sock"
_LOOK_SECONDS = 1.0  # for a socket; a runtime that comes starts containers some seconds later
_PAUSE_SECONDS = (0.2, 30.0)  # from one connection that was lost to the next, longer and longer; and the most
_PATIENCE = 5.0  # seconds that a runtime is given to take an answer, or to let the plugin register
_MAX_ATTACHING = 8
_MAX_BACKLOG = 4096


class Settings(NamedTuple):
    """What the daemon says, as a line of JSON."""

    mountpoint: str
    names: Sequence[str]
    """As in files.NAMES."""

    default: str
    """As config.Nri has it."""

    level: str
    """Of the log."""


class Process:
    """The loop: the runtime's calls, the forked processes, the end of the standard input."""

    def __init__(self, settings: Settings, path: str = SOCKET) -> None:
        self._settings, self._path = settings, path
        # What this kernel has not, no container has: one that is to mount something there does not start.
        self._policy = Policy(settings.mountpoint, tuple(filter(is_here, settings.names)), settings.default)
        self._backlog: collections.deque[Attachment] = collections.deque(maxlen=_MAX_BACKLOG)
        self._poll = select.poll()
        self._attaching: Forks[Attachment] = Forks(self._poll, _MAX_ATTACHING)
        self._poll.register(0, 0)  # its hangup is always told
        self._connection: Optional[Connection] = None
        self._plugin: Optional[Plugin] = None
        self._pause = _PAUSE_SECONDS[0]
        self._next_try = 0.0
        self._device = ""

    def run(self) -> None:
        """Serve until the standard input ends."""
        while True:
            now = time.monotonic()
            if self._plugin is None and now >= self._next_try:
                self._connect(now)
            self._attach_one()
            pause = None if self._plugin else max(self._next_try - time.monotonic(), 0) * 1000
            if self._may_attach():  # one after the other: what the runtime asks meanwhile comes first
                pause = 0
            for descriptor, _ in self._poll.poll(pause):
                if descriptor == 0:
                    return
                if self._connection and descriptor == self._connection.fileno():
                    self._attend()
                elif descriptor in self._attaching:
                    self._attaching.reap(descriptor)

    def _connect(self, now: float) -> None:
        self._next_try = now + _LOOK_SECONDS
        opened = socket.socket(socket.AF_UNIX)
        opened.settimeout(_PATIENCE)
        try:
            opened.connect(self._path)
        except OSError:
            opened.close()
            return
        self._connection = Connection(opened)
        try:
            self._plugin = Plugin(self._connection, self._policy, self._is_mounted, results.tell)
        except ConnectionLostError as error:
            self._lose(error)
            return
        self._poll.register(self._connection, select.POLLIN)

    def _attend(self) -> None:
        assert self._plugin
        try:
            self._backlog.extend(self._plugin.attend())
        except ConnectionLostError as error:
            self._lose(error)

    def _lose(self, error: ConnectionLostError) -> None:
        assert self._connection
        log.warning("NRI: %s; containers start with the machine's files until it is back", error)
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._connection)
        self._connection.close()
        if self._plugin and self._plugin.is_registered:
            self._pause = _PAUSE_SECONDS[0]
        self._next_try = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _PAUSE_SECONDS[1])
        self._connection = self._plugin = None

    def _is_mounted(self) -> bool:
        """Tell whether there are files. The table of mounts is long: it is read when the device is another one."""
        try:
            device = syscalls.device(self._settings.mountpoint)
        except OSError:
            return False
        if device != self._device and mountpoint.is_mounted(self._settings.mountpoint):
            self._device = device
        return device == self._device

    def _may_attach(self) -> bool:
        return bool(self._backlog) and not self._attaching.are_enough

    def _attach_one(self) -> None:
        if not self._may_attach():
            return
        wanted = self._backlog.popleft()
        if not self._has_all(wanted):
            self._attaching.start(partial(_attach, wanted, self._settings.mountpoint), wanted)

    def _has_all(self, wanted: Attachment) -> bool:
        """Tell whether there is nothing to attach: after a daemon's start, that is so of nearly all containers."""
        if not self._is_mounted():
            return False
        try:
            seen = {mount.mountpoint for mount in running.mounts(wanted.pid) if mount.device == self._device}
        except EndedError:
            return True
        return seen >= {f"/{name}" for name in wanted.names}


def _attach(wanted: Attachment, place: str) -> int:
    """Attach and log what came of it; return 0."""
    try:
        outcomes = attach.attach(wanted.pid, place, list(wanted.names))
        results.tell(results.of(outcomes))
        for outcome in outcomes:
            if outcome.result == "refused":
                log.warning("container %d: /%s: %s", wanted.pid, outcome.name, outcome.reason)
    except EndedError as error:
        log.debug("container %d: %s", wanted.pid, error)
    except attach.AttachError as error:
        results.tell(results.of_error(error))
        log.debug("container %d: %s", wanted.pid, error)
    except Exception:
        results.tell(results.FAILED)
        log.exception("container %d", wanted.pid)
    return 0


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other daemon's process is registered: a runtime starts no container that both adjust."""
    try:
        lock = os.open(f"{runtime_directory.PATH}/nri.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # a directory that cannot be written to is nobody's
        yield
        return
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if select.select([0], [], [], 0.1)[0]:
                sys.exit(0)
        yield
    finally:
        os.close(lock)


def main() -> int:
    """Serve until the standard input ends; return the exit code."""
    line = sys.stdin.buffer.readline()
    if not line:  # the daemon has ended
        return 0
    settings = Settings(*json.loads(line))
    to_stderr(settings.level)
    with _alone():
        Process(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
