"""The process that attaches to new containers, kept running beside the daemon as long as the configuration wants it.

It is started by exec, since the daemon has threads, and ends with its standard input: also when the daemon is killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import threading
import time
from typing import Optional

from lxcfs_py import isolated
from lxcfs_py.attach.auto_attach import Settings
from lxcfs_py.config import Config

log = logging.getLogger(__name__)

# From the end of one to the start of the next; longer and longer while they end early.
_PAUSE_SECONDS = (1.0, 300.0)
_EARLY_SECONDS = 60.0

_STOP_SECONDS = 2.0


class Supervisor:
    """At most one such process."""

    def __init__(self) -> None:
        self._settings: Optional[Settings] = None
        self._restarter: Optional[_Restarter] = None

    def apply(self, config: Config) -> None:
        """Start, stop or replace it, as a configuration has it."""
        attach = config.attach
        settings = Settings(config.mountpoint, config.files.enabled, attach.cgroups, config.log.level)
        wanted = settings if attach.auto else None
        if wanted != self._settings:
            self.stop()
            self._settings = wanted
            self._restarter = _Restarter(wanted) if wanted else None

    def stop(self) -> None:
        """End it; what a container has stays."""
        if self._restarter:
            self._restarter.stop()
        self._settings = self._restarter = None


class _Restarter:
    """A thread that starts the process again when it ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = json.dumps(settings).encode() + b"\n"
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._stopping = threading.Event()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

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
            started = time.monotonic()
            try:
                how = f"has ended ({self._start().wait()})"
            except OSError as error:
                how = f"cannot be started: {error.strerror}"
            if self._stopping.is_set():
                return
            pause = least if time.monotonic() - started > _EARLY_SECONDS else pause
            log.error("the process that attaches to new containers %s: next one in %g s", how, pause)
            self._stopping.wait(pause)
            pause = min(pause * 2, _PAUSE_SECONDS[1])

    def _start(self) -> subprocess.Popen[bytes]:
        with self._starting:
            self._let_go()
            self._process = process = subprocess.Popen(
                isolated.command("lxcfs_py.attach.auto_attach"),
                bufsize=0,
                stdin=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is meant for the daemon
            )
            assert process.stdin
            with contextlib.suppress(BrokenPipeError):  # it has ended already
                process.stdin.write(self._settings)
            if self._stopping.is_set():
                self._let_go()
            return process

    def _let_go(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
