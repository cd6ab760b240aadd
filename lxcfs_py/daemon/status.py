"""What a daemon tells of itself: to `lxcfs-py status`, over a socket that only root can reach, and to its metrics."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from lxcfs_py import __version__
from lxcfs_py.config import KEYS, Config, ConfigError
from lxcfs_py.daemon import degraded, systemd
from lxcfs_py.engine import store
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mountpoint

if TYPE_CHECKING:
    from lxcfs_py.container.containers import Containers
    from lxcfs_py.daemon.attaching import Supervisor
    from lxcfs_py.daemon.engines import Engine
    from lxcfs_py.daemon.filesystem import Filesystem
    from lxcfs_py.engine.waiting import Crowd

ANSWER_SECONDS = 2.0
"""A daemon that has said nothing by then does not answer."""

_STUCK_SECONDS = 10.0
"""A request that takes longer is one whose worker hangs."""

_LOOK_SECONDS = 5.0
"""From one look at the workers to the next."""

_MAX_BYTES = 1 << 24
_MAX_REQUEST = 1 << 12


class NotRunningError(LxcfsError):
    """There is no daemon."""


class NotAnsweringError(LxcfsError):
    """There is a daemon, which says nothing."""


class Status:
    """What is known of one daemon, gathered when somebody asks."""

    def __init__(
        self,
        filesystem: Filesystem,
        containers: Containers,
        engine: Engine,
        supervisor: Supervisor,
        file: Optional[str] = None,
        load: Optional[Callable[[], Config]] = None,
    ) -> None:
        """`load` reads the configuration's `file` anew."""
        self._filesystem = filesystem
        self.containers = containers
        self._engine = engine
        self._supervisor = supervisor
        self._file = file
        self._load = load
        self._since = time.time()
        self._reloaded: Optional[float] = None
        self._reload_errors: list[str] = []

    def reloaded(self, errors: list[str]) -> None:
        """Note a reload and the errors because of which it changed nothing."""
        self._reloaded = time.time()
        self._reload_errors = errors

    def describe(self, loads: bool = False) -> dict[str, Any]:
        """Return all of it as JSON has it; times in seconds since the epoch.

        With `loads`, that of each container, which is sampled from then on.
        """
        config = self._filesystem.config
        return {
            "version": __version__,
            "pid": os.getpid(),
            "engine": self._engine.name,
            "since": self._since,
            "mountpoint": config.mountpoint,
            "mounted": not self._missing(),
            "mounted_again": {
                "count": self._engine.mount.count if self._engine.mount else 0,
                "last": self._engine.mount and self._engine.mount.last,
            },
            "keeper": self.keeper(),
            "configuration": {
                "file": self._file,
                "exists": bool(self._file) and os.path.exists(self._file or ""),
                "reloaded": self._reloaded,
                "reload_errors": self._reload_errors,
                **self._compare_with_file(),
            },
            "degraded": self.degraded(),
            "trouble": self.trouble(),
            "reads": dict(self._filesystem.reads),
            "failures": sum(self._filesystem.failures.values()),
            "unplaced": self.containers.unplaced,
            "attachments": self._attachments(),
            "shares": {whose: share._asdict() for whose, share in self.crowd().shares.items()},
            "clock": time.monotonic(),
            "containers": [
                {"pid": each.init, "reads": each.reads, **({"load": each.load.read(each.states)[0]} if loads else {})}
                for each in self.containers.all()
            ],
        }

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a request: a file's text for a process, or all that is known. ValueError, OSError."""
        asked = json.loads(request)
        if "path" in asked:
            return self._filesystem.render(int(asked["pid"]), str(asked["path"]))
        return json.dumps(self.describe(asked.get("loads", False))).encode()

    def keeper(self) -> str:
        """Return who keeps the session when this daemon dies: "systemd", "keeper", or "none"."""
        if self._engine.name != "kernel":
            return "none"
        if systemd.is_started_by_systemd():
            return "systemd"
        return "keeper" if store.is_keeper() else "none"

    def trouble(self) -> str:
        """Say why it does not serve, "" where it does."""
        return self.stuck() or self._missing()

    def _missing(self) -> str:
        if self._engine.mount:
            return self._engine.mount.trouble()
        place = self._filesystem.config.mountpoint
        return "" if mountpoint.is_mounted(place) else f"nothing is mounted at {place} any more"

    def stuck(self) -> Optional[str]:
        """Say which worker of the engine hangs; to be called every now and then, as it is seen between two looks."""
        return self._engine.stuck(_STUCK_SECONDS)

    def crowd(self) -> Crowd:
        """Say how it stands with requests that wait, and what each container had while many did."""
        return self._engine.crowd()

    @property
    def attachments(self) -> Mapping[tuple[str, str], int]:
        """Of how many containers each result came, as Supervisor has it."""
        return self._supervisor.attachments

    def degraded(self) -> list[str]:
        """Return what is not as it should be, a sentence each."""
        return list(self._degraded())

    def _degraded(self) -> Iterator[str]:
        trouble = self.trouble()
        if trouble:
            yield trouble
        if self._reload_errors:
            yield f"the last reload changed nothing, because of errors in {self._file}"
        yield from (sentence for word, sentence in degraded.states().items() if word != "mountpoint" or not trouble)

    def _attachments(self) -> dict[str, dict[str, int]]:
        """Return them by kind, without those that never came."""
        counts: dict[str, dict[str, int]] = {}
        for (kind, result), count in self.attachments.items():
            if count:
                counts.setdefault(kind, {})[result] = count
        return counts

    def _compare_with_file(self) -> dict[str, list[str]]:
        """Return the keys that the file on disk has otherwise, and the errors in it."""
        if self._load is None:
            return {"differences": [], "errors": []}
        try:
            there = self._load()
        except ConfigError as error:
            return {"differences": [], "errors": error.errors}
        served = self._filesystem.config
        return {"differences": [key for key in KEYS if _differs(key, served, there)], "errors": []}


def _differs(key: str, one: Config, other: Config) -> bool:
    return bool(attrgetter(key)(one) != attrgetter(key)(other))


def listen(path: str, status: Status) -> Callable[[], None]:
    """Answer whoever connects to a socket at `path`, in a thread; return what ends that. OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    mine = os.stat(path)

    def serve() -> None:
        listener.settimeout(_LOOK_SECONDS)
        while True:
            try:
                connection, _ = listener.accept()
            except socket.timeout:
                status.stuck()
                continue
            connection.settimeout(ANSWER_SECONDS)  # who does not read must not keep others waiting
            with connection, contextlib.suppress(OSError, ValueError):
                connection.sendall(status.answer(connection.recv(_MAX_REQUEST)))

    def stop() -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), mine):  # not a successor's
                os.unlink(path)

    threading.Thread(target=serve, name="status", daemon=True).start()
    return stop


def ask(place: str, loads: bool = False) -> dict[str, Any]:
    """Return what the daemon at a mountpoint tells of itself, as `describe` has it.

    NotRunningError, NotAnsweringError.
    """
    try:
        told: dict[str, Any] = json.loads(_request(place, {"loads": loads}))
    except ValueError:
        raise NotAnsweringError(_silent(place), _SILENT_HINT) from None
    return told


def read(place: str, pid: int, path: str) -> bytes:
    """Return what a process reads of a file by the daemon at a mountpoint, b"" where that fails.

    NotRunningError, NotAnsweringError.
    """
    return _request(place, {"pid": pid, "path": path})


def _request(place: str, request: dict[str, Any]) -> bytes:
    path = mountpoint.runtime_file(place, "status")
    deadline = time.monotonic() + ANSWER_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(path or "")
        except socket.timeout:
            raise NotAnsweringError(_silent(place), _SILENT_HINT) from None
        except OSError:
            raise NotRunningError(_not_running(place), _start(place)) from None
        reply = bytearray()
        try:
            connection.sendall(json.dumps(request).encode())
            while len(reply) < _MAX_BYTES:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = connection.recv(1 << 16)
                if not part:
                    break
                reply += part
        except OSError:
            raise NotAnsweringError(_silent(place), _SILENT_HINT) from None
    return bytes(reply)


_SILENT_HINT = "its log says why; a restart keeps the mount"


def _silent(place: str) -> str:
    return f"the daemon of {place} does not answer: it said nothing within {ANSWER_SECONDS:.0f} s"


def _not_running(place: str) -> str:
    if mountpoint.is_mounted(place):
        return f"no daemon runs for {place}, where a mount is left that nobody serves"
    return f"no daemon runs for {place}"


def _start(place: str) -> str:
    if Path("/run/systemd/system").is_dir():
        return "start it: systemctl start lxcfs-py"
    return f"start it: lxcfs-py run {place}"
