"""What a daemon tells of itself: to `lxcfs-py status`, and to its metrics."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, Optional

from lxcfs_py import __version__
from lxcfs_py import config as configuration
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.daemon import degraded, late_keys, systemd
from lxcfs_py.engine import store
from lxcfs_py.linux import mountpoint

if TYPE_CHECKING:
    from lxcfs_py.container.containers import Containers
    from lxcfs_py.daemon.attaching import Supervisor
    from lxcfs_py.daemon.engines import Engine
    from lxcfs_py.daemon.filesystem import Filesystem
    from lxcfs_py.engine.waiting import Crowd

_STUCK_SECONDS = 10.0
"""A request that takes longer is one whose worker hangs."""


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

    def describe(self, loads: Sequence[int] = ()) -> dict[str, Any]:
        """Return all of it as JSON has it; times in seconds since the epoch.

        With `loads`, which are processes, that of each container and of theirs, which are sampled from then on.
        """
        for pid in loads:
            self.containers.of(pid)
        config, states = self._filesystem.config, self.degraded()
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
                "exists": bool(self._file) and os.path.lexists(self._file or ""),
                "reloaded": self._reloaded,
                "reload_errors": self._reload_errors,
                "settings": configuration.dump(config),
                **self._compare_with_file(),
            },
            "degraded": states,
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

    def answer(self, request: dict[str, Any]) -> bytes:
        """Return the answer to a request: a file's text for a process, or all that is known. ValueError, OSError."""
        if "path" in request:
            pid = int(request["pid"])
            return self._filesystem.render(pid, self._filesystem.follow(pid, str(request["path"])))
        return json.dumps(self.describe([int(pid) for pid in request.get("loads", ())])).encode()

    def keeper(self) -> str:
        """Return who keeps the session when this daemon dies: "systemd", "keeper", or "none"."""
        if self._engine.name != "kernel":
            return "none"
        if systemd.is_started_by_systemd():
            return "systemd"
        return "keeper" if store.is_keeper() and systemd.KEEPER not in degraded.states() else "none"

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
        systemd.look_for_keeper()
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
        return {"differences": late_keys.differing(self._filesystem.config, there), "errors": []}
