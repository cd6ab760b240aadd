"""What systemd is told of the daemon, and asked about its unit. Without systemd, nothing is told to anybody."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from typing import Optional

from lxcfs_py.daemon import degraded
from lxcfs_py.engine import store
from lxcfs_py.linux import roots
from lxcfs_py.linux.notify import SECONDS, notify

_SYSTEMCTL_SECONDS = 10

_LISTENER = "listener"

UNIT = "lxcfs-py.service"

KEEPER = "keeper"
"""The word for a keeper that has died."""


class Unit:
    """The unit that this process is the main process of, as sd_notify(3) has it."""

    def __init__(self) -> None:
        """Keep an eye on the log from now on: what goes wrong is part of the status."""
        self._problems = LastProblem()
        logging.getLogger().addHandler(self._problems)
        self._status = ""
        self._is_told = True

    def ready(self, status: str) -> None:
        """It serves, for the first time or after a reload."""
        # For this alone it waits: systemd takes a unit that never says it for one that does not start.
        self._is_told = _tell("READY=1", seconds=SECONDS)
        self.status(status)

    def status(self, text: str) -> None:
        """Set what `systemctl status` says of it: `text`, and what went wrong last."""
        status = f"{text}{self._problems}".replace("\n", " ")
        if status != self._status:
            _tell(f"STATUS={status}")
            self._status = status

    def reloading(self) -> None:
        """It reads its configuration, until it is ready again."""
        microseconds = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        _tell(f"RELOADING=1\nMONOTONIC_USEC={microseconds}")

    def stopping(self) -> None:
        """It is about to end."""
        _tell("STOPPING=1")

    def feed_watchdog(self) -> None:
        """It works: systemd need not restart it."""
        self._is_told = self._is_told or _tell("READY=1")
        _tell("WATCHDOG=1")


class LastProblem(logging.Handler):
    """Keeps the last warning or error that was logged, and when."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record's text."""
        self._text = f". Last problem, {time.strftime('%F %T', time.localtime(record.created))}: {record.getMessage()}"

    def __str__(self) -> str:
        """Return it as the end of a sentence, "" if there was none."""
        return self._text


def watchdog_seconds() -> Optional[float]:
    """Return how long systemd waits for a sign of life before it restarts this process; None: for ever."""
    if os.environ.get("WATCHDOG_PID") != str(os.getpid()):
        return None
    return int(os.environ["WATCHDOG_USEC"]) / 1e6


def look_for_keeper() -> None:
    """Take note of a keeper that has died: it cannot be told anything, not even this."""
    if store.is_keeper():
        _tell("")


def _tell(text: str, seconds: float = 0) -> bool:
    """Say it, without waiting for longer: serving, commands and stopping do not depend on who listens.

    Return whether that was not in vain.
    """
    try:
        notify(text, seconds=seconds)
        degraded.leave(_LISTENER)
        return True
    except BlockingIOError:
        degraded.enter(_LISTENER, "whoever started this server does not listen to it: it hangs, or is stopped")
    except OSError:
        if store.is_keeper():
            _lose_keeper()
    return False


def _lose_keeper() -> None:
    degraded.enter(
        KEEPER,
        "nobody keeps the mount should this process die: the one above it cannot be reached; start another, which "
        "takes over: lxcfs-py run --keep",
    )


def is_started_by_systemd() -> bool:
    """Tell whether systemd itself has started this process, so that it knows whether there will be a successor."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def hides_mounts() -> bool:
    """Tell whether systemd has given this process a mount namespace of its own: nobody else sees what it mounts there.

    Before systemd 248, that is not known. What a keeper has started may see its mounts go to the node's.
    """
    return is_started_by_systemd() and not store.is_keeper() and len(roots.host_mounts()) > 1


def will_be_started_again(unit: str) -> bool:
    """Tell, while a unit's process has just ended, whether another one follows. True when that is not known.

    A process that systemd did not stop (there is no job) is followed by another if it failed: Restart=on-failure.
    """
    command = ["systemctl", "list-jobs", "--no-legend", "--plain"]
    try:
        jobs = subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS).stdout
    except (OSError, subprocess.SubprocessError):
        return True
    kinds = [job.split()[2] for job in jobs.splitlines() if job.split()[1:2] == [unit]]
    return kinds[0] != "stop" if kinds else os.environ.get("SERVICE_RESULT") != "success"
