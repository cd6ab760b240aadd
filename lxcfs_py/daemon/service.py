"""The daemon's life: start, ready, reload, stop."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Callable, Optional

from lxcfs_py.cgroup import look_aside, try_to_look_aside
from lxcfs_py.cgroup.layout import LayoutError, find_for_all
from lxcfs_py.cgroup.layout import find as find_hierarchies
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.container import processes
from lxcfs_py.container.containers import Containers
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler
from lxcfs_py.daemon import call_agent, control, degraded, engines, last_config, late_keys, node_profile, systemd
from lxcfs_py.daemon.attaching import Supervisor
from lxcfs_py.daemon.call_figures import CallFigures
from lxcfs_py.daemon.engines import Engine
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.daemon.status import Status
from lxcfs_py.engine import End
from lxcfs_py.errors import LxcfsError, in_words
from lxcfs_py.linux import aside, limits, mountpoint, roots, runtime_directory, threads
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.mountpoint import MountError

log = logging.getLogger(__name__)

_START_SECONDS = 30

_ENDED = 0
"""The byte that stands among the signals' numbers for the engine's end."""


@dataclass(frozen=True)
class Source:
    """Where a daemon's configuration comes from."""

    file: str
    """The file's absolute path."""

    load: Callable[[], Config]
    """Reads it anew. ConfigError."""

    names_mountpoint: bool = True
    """False where the command line does."""


class Service:
    """All that one daemon holds."""

    def __init__(self, config: Config, resumed: bool = False) -> None:
        """Open the host's files and find its cgroups; OSError when that cannot be.

        LayoutError where not all cgroups can be seen, unless a mount is resumed, whose files somebody has.
        """
        place = config.mountpoint
        counters, loads = (runtime_directory.writable_path_of(place, kind) for kind in ("counters", "loads"))
        if counters is None:
            what = "CPU counters and load averages start anew"
            degraded.enter("counters", f"{runtime_directory.PATH} cannot be written: {what}")
        self.sampler = Sampler(config.loadavg.interval, loads)
        try:
            layout = find_for_all()
        except LayoutError as error:
            if not resumed:
                raise
            degraded.enter("cgroups", f"{error}; serving nevertheless, because containers use the mount")
            layout = find_hierarchies()
        _look_aside()
        self.containers = Containers(layout, Ledger(counters), self.sampler)
        proc, sys = mountpoint.machine_roots(config.mountpoint)
        self.filesystem = Filesystem(Host(proc=proc, sys=sys), self.containers, config)
        processes.begin_to_visit()
        self.sampler.start(self.containers.take_up_loads)
        self.supervisor = Supervisor()

    def show_machine(self, wanted: bool) -> None:
        """Show the machine's figures in all files, or each container its own again."""
        self.filesystem.shows_machine = wanted
        if wanted:
            degraded.enter("figures", "every container sees the machine's figures, until SIGUSR2 comes once more")
        else:
            degraded.leave("figures")


def serve(
    config: Config,
    ready: Callable[[], None] = lambda: None,
    source: Optional[Source] = None,
    unit: Optional[systemd.Unit] = None,
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    `ready` is called once the mount answers. SIGHUP takes the configuration from its source anew, and keeps what there
    was where that raises ConfigError; so does who asks at the daemon's socket. SIGUSR2 lets all files show the
    machine's figures, and the next one the containers' again. LxcfsError or OSError when the daemon cannot start.
    """
    unit = unit or systemd.Unit()
    logging.getLogger().setLevel(config.log.level.upper())
    limits.raise_descriptors()  # each container takes some
    covered = roots.take()
    if covered:
        degraded.enter("roots", covered)
    signals = _Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
    with signals, contextlib.ExitStack() as unless_begun:
        engine = engines.choose(config)
        if not engine.resumes:  # then nobody depends on the mount yet
            unless_begun.callback(_give_up, engine)
        service = _start(engine)
        stop_calls = call_agent.start(CallFigures(service.filesystem), engine.config.mountpoint)
        config = engine.config
        file, load = (source.file, source.load) if source else (None, None)
        status = Status(service.filesystem, service.containers, engine, service.supervisor, file, load)
        stop_metrics = _listen_for_metrics(service, status, engine.resumes)
        ended: list[End] = []

        def watch() -> None:
            ended.append(engine.wait())
            signals.note(_ENDED)

        threads.start(watch, name="engine")
        _wait_until_it_answers(engine, ended)

        def begun() -> None:
            unless_begun.pop_all()
            try:
                ready()
            except Exception as error:
                log.error("serving, which could not be told: %r", error)

        if not ended:  # what it would listen at is its successor's otherwise
            _Loop(service, engine, unit, status, source, signals).run(begun)
        unit.stopping()
        if not ended:  # another server may wait for this process's end, with which all of it ends
            service.supervisor.stop()
            service.supervisor.wait_for_those_on_their_way()
            if engine.stop():
                call_agent.withdraw(config.mountpoint)
            stop_metrics()
        stop_calls()
    end = ended[0] if ended else End.STOPPED
    log.log(logging.ERROR if end is End.FAILED else logging.INFO, "%s: %s", config.mountpoint, end.value)
    return 1 if end is End.FAILED else 0


def _start(engine: Engine) -> Service:
    """Return what serves, with the engine that has begun to."""
    service = Service(engine.config, engine.resumes)
    service.show_machine(engine.shows_machine())
    aside.wait_until_begun()
    engine.start(service.filesystem)
    return service


def _give_up(engine: Engine) -> None:
    """Take the mount away again; what is wrong is told already."""
    try:
        engine.stop()
    except (MountError, OSError) as error:
        log.error("the mount is left: %s", error)


def _look_aside() -> None:
    try:
        look_aside()
    except OSError as error:
        degraded.enter("aside", f"no process that looks at cgroups can be had ({error.strerror}): some can hold all up")


def show(config: Config, path: str, pid: int) -> bytes:
    """Return what a process would read of a file, without any mount.

    UnplacedError where it cannot be told which container it is in, OSError when there is no such file.
    """
    containers = Containers(find_hierarchies(), Ledger(), Sampler(config.loadavg.interval))
    try_to_look_aside()
    containers.placed(pid)
    filesystem = Filesystem(Host(), containers, config)
    return filesystem.render(pid, filesystem.follow(pid, path))


class _Loop:
    """What comes up beside serving."""

    def __init__(
        self,
        service: Service,
        engine: Engine,
        unit: systemd.Unit,
        status: Status,
        source: Optional[Source],
        signals: _Signals,
    ) -> None:
        self._service = service
        self._signals = signals
        self._reloads: list[SimpleQueue[Any]] = []  # of those who wait for the next reload's result
        self._engine = engine
        self._unit = unit
        self._source = source
        self._patience = systemd.watchdog_seconds()
        self._was_stuck = False
        self._told = status

    def run(self, ready: Callable[[], None]) -> None:
        """Do it, until a signal says to stop or the engine has ended; say that all is ready when commands may ask."""
        self._remember()
        with contextlib.ExitStack() as stack:
            stack.callback(self._listen())
            selector = stack.enter_context(selectors.DefaultSelector())
            selector.register(self._signals, selectors.EVENT_READ)
            selector.register(self._service.containers, selectors.EVENT_READ)
            mount = self._engine.mount
            if mount:
                selector.register(mount, selectors.EVENT_READ)
            self._begin(ready)
            left = None
            while True:
                waits = (mount.look() if mount else None, self._patience and self._patience / 4, left)
                have_ended = left is not None
                for key, _ in selector.select(min((wait for wait in waits if wait is not None), default=None)):
                    if key.fileobj is self._service.containers:
                        have_ended = True
                    elif key.fileobj is self._signals and self._heed(self._signals.take()):
                        return
                if have_ended:  # else nobody's lock is waited for
                    left = self._service.containers.reap()
                if self._patience:
                    self._attend(self._patience)
                self._unit.status(self._status())

    def _begin(self, ready: Callable[[], None]) -> None:
        config = self._service.filesystem.config
        node_profile.apply(config)
        self._engine.note_started(self._service.filesystem.shows_machine)
        self._service.supervisor.apply(config)
        self._unit.ready(self._status())
        log.info("serving %d files at %s", len(config.files.enabled), config.mountpoint)
        ready()

    def _heed(self, numbers: Sequence[int]) -> bool:
        """Do what signals say, given by their numbers; return whether all is to end."""
        if not {signal.SIGTERM, signal.SIGINT, _ENDED}.isdisjoint(numbers):
            return True
        if numbers.count(signal.SIGUSR2) % 2:
            self._service.show_machine(not self._service.filesystem.shows_machine)
            self._engine.note_started(self._service.filesystem.shows_machine)
        if signal.SIGHUP in numbers:
            waiting, self._reloads = self._reloads, []
            result = self._reload()
            for each in waiting:
                each.put(result)
        return False

    def _listen(self) -> Callable[[], None]:
        """Answer commands, where that can be; return what ends it."""
        try:
            return control.listen(self._engine.config.mountpoint, self._answer, self._told.stuck)
        except OSError as error:
            degraded.enter(
                "control",
                f"commands cannot ask this server ({runtime_directory.PATH}: {error.strerror}); SIGHUP reloads",
            )
            return lambda: None

    def _answer(self, request: dict[str, Any]) -> bytes:
        """Return the answer to a command. The loop's thread reloads: what a thread has started ends with it."""
        if not request.get("reload"):
            return self._told.answer(request)
        result: SimpleQueue[Any] = SimpleQueue()
        self._reloads.append(result)
        self._signals.note(signal.SIGHUP)
        return json.dumps(result.get()).encode()

    def _attend(self, patience: float) -> None:
        """Feed the watchdog, unless a worker does not answer: then another server is started, which answers."""
        stuck = self._engine.stuck(patience / 2)
        if not stuck:
            self._unit.feed_watchdog()
        elif not self._was_stuck:
            log.error("%s: left to the watchdog. Where all threads are:", stuck)
            faulthandler.dump_traceback(sys.stderr)
        self._was_stuck = bool(stuck)

    def _status(self) -> str:
        config = self._service.filesystem.config
        states = "".join(f"; degraded: {sentence}" for sentence in degraded.states().values())
        return (
            f"Serving {len(config.files.enabled)} files at {config.mountpoint}, engine {self._engine.name}, "
            f"{len(self._service.containers)} containers seen{states}"
        )

    def _remember(self) -> None:
        if self._source:
            file = self._source.file if self._source.names_mountpoint else ""
            last_config.remember(self._service.filesystem.config, file)

    def _reload(self) -> tuple[list[str], list[str]]:
        """Take the configuration anew; return the errors because of which it was not taken, and remarks."""
        if not self._source:
            return [], []
        self._unit.reloading()
        try:
            result: tuple[list[str], list[str]] = [], _take(self._service, self._source.load())
            degraded.leave("configuration")
            self._remember()
        except (LxcfsError, OSError) as error:
            errors = error.errors if isinstance(error, ConfigError) else [in_words(error)]
            for sentence in errors:
                log.error("%s", sentence)
            log.info("the configuration was not reloaded; the old one stays")
            result = errors, []
        self._told.reloaded(result[0])
        self._unit.ready(self._status())
        return result


def _take(service: Service, new: Config) -> list[str]:
    """Serve with a new configuration from now on; return remarks."""
    taken, remarks = late_keys.keep(service.filesystem.config, new)
    for remark in remarks:
        log.warning("%s", remark)
    service.filesystem.config = taken
    service.sampler.interval = new.loadavg.interval
    service.supervisor.apply(taken)
    node_profile.apply(taken)
    logging.getLogger().setLevel(new.log.level.upper())
    log.info("the configuration was reloaded")
    return remarks


def _listen_for_metrics(service: Service, status: Status, resumes: bool) -> Callable[[], None]:
    """Serve metrics where they are wanted. MetricsError when that cannot be and nobody depends on the mount yet."""
    address = service.filesystem.config.metrics.listen
    if not address:
        return lambda: None
    from lxcfs_py.daemon import metrics  # here, as it takes 5 MB

    try:
        return metrics.listen(address, status, service.filesystem)
    except metrics.MetricsError as error:
        if not resumes:
            raise
        degraded.enter("metrics", f"there are no metrics: {error}")
        return lambda: None


class _Signals:
    """Notes signals while it is a context, however many come. A selector can wait for it."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers
        self._came: deque[int] = deque()

    def __enter__(self) -> _Signals:
        self._awaited, self._awakes = socket.socketpair()
        for end in (self._awaited, self._awakes):
            end.setblocking(False)
        # A full buffer does no harm: what is to be done is noted beside it.
        self._before = signal.set_wakeup_fd(self._awakes.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda came, _: self.note(came)) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def fileno(self) -> int:
        """Return what a selector waits for."""
        return self._awaited.fileno()

    def note(self, number: int) -> None:
        """Note a signal's number, or another that stands among them."""
        self._came.append(number)
        with contextlib.suppress(OSError):  # there is enough to be read already
            self._awakes.send(b"x")

    def take(self) -> list[int]:
        """Return the numbers that came since, in their order."""
        with contextlib.suppress(BlockingIOError):
            while self._awaited.recv(4096):
                pass
        return [self._came.popleft() for _ in range(len(self._came))]


def _wait_until_it_answers(engine: Engine, ended: list[End]) -> None:
    """Return at a takeover, too: another server may want the mount before this one has told that it serves."""
    path = engine.config.mountpoint
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if End.TAKEN_OVER in ended or (not ended and engine.answers()):
            return
        if ended:
            raise MountError(f"nothing could be mounted at {path}: {ended[0].value}", engines.what_a_mount_needs())
        time.sleep(0.005)
    raise MountError(f"the mount at {path} does not answer after {_START_SECONDS} seconds")
