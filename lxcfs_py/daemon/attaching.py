"""The processes that attach to new containers, and that speak with the runtime, kept running beside the daemon.

Each runs as long as the configuration wants it. It is started by exec, since the daemon has threads, and ends with its
standard input: also when the daemon is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import threading
import time
from functools import partial
from typing import IO, Callable, NamedTuple, Optional, Union

from lxcfs_py import isolated
from lxcfs_py.attach import auto_attach, nri, results
from lxcfs_py.config import Config
from lxcfs_py.daemon import degraded
from lxcfs_py.linux import threads

log = logging.getLogger(__name__)

_Settings = Union[auto_attach.Settings, nri.Settings]


class _Kind(NamedTuple):
    name: str
    module: str
    does: str
    socket: str = ""
    """Of whom it speaks with: without it, none runs."""


_ATTACHES = _Kind("auto", auto_attach.__name__, "attaches to new containers")
_SPEAKS_NRI = _Kind("nri", nri.__name__, "speaks NRI with the container runtime", nri.SOCKET)

# From the end of one to the start of the next; longer and longer while they end early.
_PAUSE_SECONDS = (1.0, 300.0)
_EARLY_SECONDS = 60.0

_STOP_SECONDS = 2.0

# From a runtime's question what a container gets to the mounts of its files: a mount without a source lets none start.
_ON_ITS_WAY_SECONDS = 3.0
_LOOK_SECONDS = 2.0  # for a socket that is not there


class Supervisor:
    """At most one process of each kind."""

    def __init__(self) -> None:
        self.attachments = {(kind.name, result): 0 for kind in (_ATTACHES, _SPEAKS_NRI) for result in results.RESULTS}
        """How many containers each result came of, by the kind of process, "auto" or "nri", and attach.results."""
        self._wanted: dict[_Kind, _Settings] = {}
        self._restarters: dict[_Kind, _Restarter] = {}
        self._given_at = float("-inf")  # when a runtime was last told to mount files

    def apply(self, config: Config) -> None:
        """Start, stop or replace them, as a configuration has it.

        Where no thread can be had for one, that is a degraded state until it can, which is tried each time.
        """
        wanted: dict[_Kind, _Settings] = {}
        common = (config.mountpoint, config.files.enabled)
        if config.attach.auto:
            wanted[_ATTACHES] = auto_attach.Settings(*common, config.attach.cgroups, config.log.level)
        if config.nri.enabled == "auto" and os.geteuid() == 0:
            wanted[_SPEAKS_NRI] = nri.Settings(*common, config.nri.default, config.log.level)
        for kind in (_ATTACHES, _SPEAKS_NRI):
            if kind not in wanted:
                degraded.leave(kind.name)
            if wanted.get(kind) == self._wanted.get(kind):
                continue
            if kind in self._restarters:
                self._restarters.pop(kind).stop()
            if kind in wanted and not self._start(kind, wanted[kind]):
                del wanted[kind]
        self._wanted = wanted

    def _start(self, kind: _Kind, settings: _Settings) -> bool:
        try:
            self._restarters[kind] = _Restarter(kind, settings, partial(self._count, kind))
        except OSError as error:
            degraded.enter(kind.name, f"no process {kind.does}: {error.strerror}; lxcfs-py reload tries it again")
            return False
        degraded.leave(kind.name)
        return True

    def _count(self, kind: _Kind, result: str) -> None:
        if (kind.name, result) in self.attachments:
            self.attachments[kind.name, result] += 1
        if result == results.GIVEN:
            self._given_at = time.monotonic()

    def stop(self) -> None:
        """End them; what a container has stays."""
        for restarter in self._restarters.values():
            restarter.stop()
        self._restarters, self._wanted = {}, {}

    def wait_for_those_on_their_way(self) -> None:
        """Wait, some seconds at most, until containers that were given files have been started with them."""
        time.sleep(max(self._given_at + _ON_ITS_WAY_SECONDS - time.monotonic(), 0))


class _Restarter:
    """A thread that starts the process again when it ends."""

    def __init__(self, kind: _Kind, settings: _Settings, count: Callable[[str], None]) -> None:
        """`count` is called with each result that the process tells."""
        self._kind, self._count = kind, count
        self._settings = json.dumps(settings).encode() + b"\n"
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread = threads.start(self._run, name="supervisor")

    def stop(self) -> None:
        with self._starting:
            self._stopping.set()
            self._let_go()
        self._thread.join(_STOP_SECONDS)
        if self._process:
            self._process.kill()

    def _run(self) -> None:
        pause = least = _PAUSE_SECONDS[0]
        while not self._stopping.is_set():
            if self._kind.socket and not os.path.exists(self._kind.socket):
                self._stopping.wait(_LOOK_SECONDS)
                continue
            started = time.monotonic()
            try:
                how = f"has ended ({self._start().wait()})"
            except OSError as error:
                how = f"cannot be started: {error.strerror}"
            if self._stopping.is_set():
                return
            pause = least if time.monotonic() - started > _EARLY_SECONDS else pause
            log.error("the process that %s %s: next one in %g s", self._kind.does, how, pause)
            self._stopping.wait(pause)
            pause = min(pause * 2, _PAUSE_SECONDS[1])

    def _start(self) -> subprocess.Popen[bytes]:
        with self._starting:
            self._let_go()
            self._process = process = subprocess.Popen(
                isolated.command(self._kind.module),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd="/",  # ours may be a procfs of our own, which has no path
                start_new_session=True,  # a terminal's Ctrl-C is meant for the daemon
            )
            assert process.stdin
            assert process.stdout
            # Not this thread: what the process has forked may hold its standard output for longer than it lives.
            try:
                threads.start(self._listen, process.stdout, name="results")
            except OSError:
                process.stdout.close()
                process.kill()
                process.wait()
                raise
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                process.stdin.write(self._settings)
            if self._stopping.is_set():
                self._let_go()
            return process

    def _listen(self, told: IO[bytes]) -> None:
        with open(told.fileno(), "rb", closefd=False) as lines, told:
            for line in lines:
                self._count(line.decode(errors="replace").strip())

    def _let_go(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
