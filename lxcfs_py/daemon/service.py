"""The daemon's life: start, ready, reload, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Optional

from lxcfs_py.cgroup.layout import LayoutError, find_for_all
from lxcfs_py.cgroup.layout import find as find_hierarchies
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.container.containers import Containers
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler
from lxcfs_py.daemon import metrics, reload_socket, systemd
from lxcfs_py.daemon.attaching import Supervisor
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.daemon.status import Status, listen
from lxcfs_py.engine import watchdog
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mountpoint, roots
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.mountpoint import MountError

log = logging.getLogger(__name__)

_START_SECONDS = 30
_STOP_SECONDS = 2

_STOPPED, _UNMOUNTED, _TAKEN_OVER = "stopped", "unmounted", "another server has taken over"
"Why an engine ends in order; any other reason is a failure."

_ENDED = 0
"""The byte that stands among the signals' numbers for the engine's end."""


class ServiceError(LxcfsError):
    """Why the daemon cannot run: one sentence for the operator."""


@dataclass(frozen=True)
class Engine:
    """An engine that runs, as the service sees it."""

    name: str

    answers: Callable[[], bool]
    """Tells whether it has begun to answer the kernel. Asking the mount itself could make this process unkillable."""

    wait: Callable[[], str]
    """Blocks until the engine has ended; returns the reason."""

    stop: Callable[[], None]
    """Ends it, and unmounts unless somebody keeps the mount for a successor."""

    invalidate: Callable[[str], None]
    """Makes the kernel forget a path."""

    stuck: watchdog.Check
    """Says which of its workers do not answer."""


class Service:
    """All that one daemon holds."""

    def __init__(self, config: Config, resumed: bool = False) -> None:
        """Open the host's files and find its cgroups; OSError when that cannot be.

        LayoutError where not all cgroups can be seen, unless a mount is resumed, whose files somebody has.
        """
        self.sampler = Sampler(config.loadavg.interval)
        ledger = Ledger(mountpoint.runtime_file(config.mountpoint, "counters"))
        try:
            layout = find_for_all()
        except LayoutError as error:
            if not resumed:
                raise
            log.error("%s; serving nevertheless, because containers use the mount", error)
            layout = find_hierarchies()
        self.containers = Containers(layout, ledger, self.sampler)
        proc, sys = mountpoint.machine_roots(config.mountpoint)
        self.filesystem = Filesystem(Host(proc=proc, sys=sys), self.containers, config)
        self.sampler.start()
        self.supervisor = Supervisor()


def serve(
    config: Config,
    ready: Callable[[], None] = lambda: None,
    reload: Optional[Callable[[], Config]] = None,
    remember: Callable[[Config], None] = lambda config: None,
    control_path: Optional[str] = None,
    unit: Optional[systemd.Unit] = None,
    source: Optional[str] = None,
) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    `ready` is called once the mount answers. SIGHUP takes what `reload` returns, and keeps what there was where that
    raises ConfigError; who asks at the socket `control_path` is told how that went. `remember` is given what is served,
    at first and after each reload. `source` is the file that `reload` reads. ServiceError when the daemon cannot start.
    """
    unit = unit or systemd.Unit()
    logging.getLogger().setLevel(config.log.level.upper())
    _raise_descriptor_limit()
    covered = roots.take()
    if covered:
        log.warning("%s", covered)
    resumes = systemd.keeps_a_session()
    if resumes:
        name, why = "kernel", "the mount of the server before this one goes on"
    else:
        name, why = choose_engine(config.fuse.engine)
    log.info("engine %s: %s", name, why)
    with _signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as (signals, wake):
        try:
            service, engine = (_start_kernel if name == "kernel" else _start_fusepy)(config)
            config = service.filesystem.config
        except (MountError, LayoutError, OSError) as error:
            raise ServiceError(str(error)) from None
        try:
            status = Status(service.filesystem, service.containers, engine.name, engine.stuck, source, reload)
            stop_metrics = _listen_for_metrics(service, status, resumes)
        except metrics.MetricsError as error:
            engine.stop()
            raise ServiceError(str(error)) from None
        ended: list[str] = []

        def watch() -> None:
            ended.append(engine.wait())
            wake(_ENDED)

        threading.Thread(target=watch, name="engine", daemon=True).start()
        try:
            _wait_until_it_answers(engine, config.mountpoint, ended)
        except ServiceError:
            engine.stop()
            raise
        log.info("serving %d files at %s", len(config.files.enabled), config.mountpoint)
        ready()
        remember(config)
        service.supervisor.apply(config)
        unit.ready(_status(service, engine.name))
        stop_status = _listen_for_status(status, config.mountpoint)
        _run(service, engine, unit, signals, status, reload, remember, control_path)
        stop_status()
        unit.stopping()
        if not ended:  # another server may wait for this process's end, with which all of it ends
            service.supervisor.stop()
            engine.stop()
            stop_metrics()
    reason = ended[0] if ended else _STOPPED
    if reason in (_STOPPED, _UNMOUNTED, _TAKEN_OVER):
        log.info("%s: %s", config.mountpoint, reason)
        return 0
    log.error("%s: %s", config.mountpoint, reason)
    return 1


def choose_engine(wanted: str) -> tuple[str, str]:
    """Return the engine to use, "kernel" or "fusepy", and why."""
    if wanted != "auto":
        return wanted, "the configuration says so"
    if _may_mount() and os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "kernel", "this process may mount, so that the mount can outlive it"
    return "fusepy", "this process may not mount by itself (CAP_SYS_ADMIN, /dev/fuse), and fusermount may"


def show(config: Config, path: str, pid: int) -> bytes:
    """Return what a process would read of a file, without any mount. OSError when there is no such file."""
    containers = Containers(find_hierarchies(), Ledger(), Sampler(config.loadavg.interval))
    filesystem = Filesystem(Host(), containers, config)
    filesystem.getattr(pid, path)
    return filesystem.render(pid, path)


def _start_kernel(config: Config) -> tuple[Service, Engine]:
    from lxcfs_py.engine import kernel, session

    try:
        kept = session.inherit() or session.take_over(config.mountpoint)
        resumed = kept is not None
        if kept is None:
            find_for_all()  # whoever cannot see all cgroups mounts nothing
            mountpoint.prepare(config.mountpoint)
            kept = session.create(config.mountpoint, config.fuse.options)
        elif kept.mountpoint != config.mountpoint:
            log.warning("%s is in use and stays the mountpoint until the service is stopped", kept.mountpoint)
            config = dataclasses.replace(config, mountpoint=kept.mountpoint)
        service = Service(config, resumed)
        server = kernel.Server(service.filesystem, kept, config.fuse.threads)
        server.start()
    except session.SessionError as error:
        raise MountError(str(error)) from None
    kept_for_successor = session.store_with_systemd(kept) and systemd.is_started_by_systemd()
    handed_over = threading.Event()

    def leave() -> None:
        handed_over.set()
        with contextlib.suppress(OSError):  # who keeps it may be gone; the successor waits for this one to leave
            session.remove_from_store()  # what is told to stop from now on must not unmount what is another's
        server.stop(_TAKEN_OVER)

    session.offer(kept, leave)
    if resumed:
        log.info("resumed the mount of a server before this one")
        for path in service.filesystem.hidden():
            server.invalidate(path)

    def stop() -> None:
        server.stop(_STOPPED)
        if not kept_for_successor and not handed_over.is_set():
            session.withdraw(kept)
            mountpoint.unmount(config.mountpoint)

    return service, Engine(
        name="kernel",
        answers=lambda: kept.agreed != (0, 0),
        wait=server.wait,
        stop=stop,
        invalidate=server.invalidate,
        stuck=watchdog.of_workers(server.at_hand),
    )


def _start_fusepy(config: Config) -> tuple[Service, Engine]:
    try:
        from lxcfs_py.engine import fusepy
    except (ImportError, OSError) as error:
        raise MountError(
            f"the engine fusepy needs a library that is missing ({error}): install python3-fusepy, or, where there is "
            'no libfuse 2, libfuse 3 and the Python package mfusepy; or set fuse.engine = "kernel", which needs neither'
        ) from None

    mountpoint.prepare(config.mountpoint)
    service = Service(config)
    operations = fusepy.Operations(service.filesystem)
    ended = threading.Event()
    reason = [_UNMOUNTED]

    def run() -> None:
        try:
            fusepy.run(operations, config.mountpoint, config.fuse.options)
        except RuntimeError as error:
            reason[0] = f"libfuse ended with {error}"
        ended.set()

    threading.Thread(target=run, name="fuse", daemon=True).start()

    def wait() -> str:
        ended.wait()
        return reason[0]

    def stop() -> None:
        mountpoint.unmount(config.mountpoint)
        # A container that has files of the mount bound keeps it: it ends with this process.
        ended.wait(_STOP_SECONDS)

    return service, Engine(
        name="fusepy",
        answers=operations.answers.is_set,
        wait=wait,
        stop=stop,
        invalidate=lambda _: None,
        stuck=operations.stuck,
    )


def _run(
    service: Service,
    engine: Engine,
    unit: systemd.Unit,
    signals: socket.socket,
    status: Status,
    reload: Optional[Callable[[], Config]],
    remember: Callable[[Config], None],
    control_path: Optional[str],
) -> None:
    """Do what comes up beside serving, until a signal says to stop or the engine has ended."""

    def reloaded() -> tuple[list[str], list[str]]:
        unit.reloading()
        result = _reload(service, engine, reload) if reload else ([], [])
        status.reloaded(result[0])
        remember(service.filesystem.config)
        unit.ready(_status(service, engine.name))
        return result

    patience = systemd.watchdog_seconds()
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(signals, selectors.EVENT_READ)
        selector.register(service.containers, selectors.EVENT_READ)
        requests = _listen_for_requests(control_path)
        if requests:
            selector.register(stack.enter_context(requests), selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(patience and patience / 4):
                if key.fileobj is service.containers:
                    service.containers.reap()
                elif key.fileobj is requests:
                    reload_socket.answer(requests, reloaded)
                else:
                    numbers = signals.recv(64)
                    if not {signal.SIGTERM, signal.SIGINT, _ENDED}.isdisjoint(numbers):
                        return
                    reloaded()
            if patience:
                _attend(engine, unit, patience)
            unit.status(_status(service, engine.name))


def _attend(engine: Engine, unit: systemd.Unit, patience: float) -> None:
    """Feed the watchdog, unless a worker does not answer: then systemd starts another server, which answers."""
    stuck = engine.stuck(patience / 2)
    if stuck:
        log.error("%s: left to the watchdog", stuck)
    else:
        unit.feed_watchdog()


def _status(service: Service, engine: str) -> str:
    config = service.filesystem.config
    return (
        f"Serving {len(config.files.enabled)} files at {config.mountpoint}, engine {engine}, "
        f"{len(service.containers)} containers seen"
    )


def _listen_for_requests(path: Optional[str]) -> Optional[socket.socket]:
    try:
        return reload_socket.listen(path) if path else None
    except OSError as error:
        log.warning("nobody can ask for a reload at %s (%s); SIGHUP does it", path, error.strerror)
        return None


def _listen_for_status(status: Status, place: str) -> Callable[[], None]:
    path = mountpoint.runtime_file(place, "status")
    try:
        return listen(path, status) if path else lambda: None
    except OSError as error:
        log.warning("lxcfs-py status cannot ask this daemon at %s (%s)", path, error.strerror)
        return lambda: None


def _listen_for_metrics(service: Service, status: Status, resumes: bool) -> Callable[[], None]:
    """Serve metrics. MetricsError when that cannot be and nobody depends on the mount yet."""
    try:
        return metrics.listen(service.filesystem.config.metrics.listen, status, service.filesystem)
    except metrics.MetricsError as error:
        if not resumes:
            raise
        status.troubles["metrics"] = f"there are no metrics: {error}"
        log.error("%s", status.troubles["metrics"])
        return lambda: None


def _reload(service: Service, engine: Engine, reload: Callable[[], Config]) -> tuple[list[str], list[str]]:
    """Take a new configuration; return the errors because of which it was not taken, and remarks."""
    filesystem = service.filesystem
    old = filesystem.config
    try:
        new = reload()
    except ConfigError as error:
        for sentence in error.errors:
            log.error("%s", sentence)
        log.info("the configuration was not reloaded; the old one stays")
        return error.errors, []
    remarks = []
    if (new.mountpoint, new.fuse.engine, new.fuse.options) != (old.mountpoint, old.fuse.engine, old.fuse.options):
        remarks.append(
            "mountpoint, fuse.engine and fuse.options stay what they are until the service is stopped and started"
        )
    if (new.fuse.threads, new.metrics) != (old.fuse.threads, old.metrics):
        remarks.append("fuse.threads and metrics.* stay what they are until the service is restarted")
    for remark in remarks:
        log.warning("%s", remark)
    hidden = filesystem.hidden()
    filesystem.config = dataclasses.replace(new, mountpoint=old.mountpoint, fuse=old.fuse, metrics=old.metrics)
    service.sampler.interval = new.loadavg.interval
    service.supervisor.apply(filesystem.config)
    logging.getLogger().setLevel(new.log.level.upper())
    for path in filesystem.hidden() - hidden:
        engine.invalidate(path)
    log.info("the configuration was reloaded")
    return [], remarks


@contextlib.contextmanager
def _signals(*numbers: signal.Signals) -> Iterator[tuple[socket.socket, Callable[[int], None]]]:
    """Give a socket from which each signal that comes can be read as a byte, its number, and what sends such a byte."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield ours, lambda number: pythons.sendall(bytes([number]))
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _wait_until_it_answers(engine: Engine, path: str, ended: list[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if ended:
            raise ServiceError(f"nothing could be mounted at {path}: {ended[0]}", _what_a_mount_needs())
        if engine.answers():
            return
        time.sleep(0.005)
    raise ServiceError(f"the mount at {path} does not answer after {_START_SECONDS} seconds")


def _what_a_mount_needs() -> str:
    """Return a hint of what this process lacks, "" where it lacks nothing."""
    lacking = []
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        lacking.append("/dev/fuse, which the kernel's module fuse makes (in a container: --device /dev/fuse)")
    if not _may_mount():
        lacking.append("the capability CAP_SYS_ADMIN, which root has (in a container: --cap-add SYS_ADMIN)")
    return f"this process has not got {' nor '.join(lacking)}" if lacking else ""


def _may_mount() -> bool:
    """Tell whether this process has CAP_SYS_ADMIN."""
    with open(f"{roots.PROC}/self/status") as file:
        capabilities = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(capabilities.split()[1], 16) >> 21 & 1)


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as may be had: each container takes some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
