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

from lxcfs_py import metrics, mountpoint, syscalls
from lxcfs_py.accounting import Ledger
from lxcfs_py.cgroup.layout import find as find_hierarchies
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.containers import Containers
from lxcfs_py.filesystem import Filesystem, Texts
from lxcfs_py.host import Host
from lxcfs_py.load import Sampler
from lxcfs_py.mountpoint import MountError
from lxcfs_py.views import NAMES

log = logging.getLogger(__name__)

_START_SECONDS = 30
_STOP_SECONDS = 2

_ENDED = 0
"""The byte that stands among the signals' numbers for the engine's end."""


class ServiceError(Exception):
    """Why the daemon cannot run: one sentence for the operator."""


@dataclass(frozen=True)
class Engine:
    """An engine that runs, as the service sees it."""

    wait: Callable[[], str]
    """Blocks until the engine has ended; returns the reason."""

    stop: Callable[[], None]
    """Ends it, and unmounts unless somebody keeps the mount for a successor."""

    invalidate: Callable[[str], None]
    """Makes the kernel forget a path."""


class Service:
    """All that one daemon holds."""

    def __init__(self, config: Config, caller: Callable[[], int], texts: Optional[Texts] = None) -> None:
        """Open the host's files and find its cgroups; OSError when that cannot be."""
        self.sampler = Sampler(config.loadavg.interval)
        ledger = Ledger(mountpoint.runtime_file(config.mountpoint, "counters"))
        self.containers = Containers(find_hierarchies(), ledger, self.sampler)
        host = Host(proc=mountpoint.uncovered_proc(config.mountpoint))
        self.filesystem = Filesystem(host, self.containers, config, caller, texts)
        self.sampler.start()


def serve(config: Config, ready: Callable[[], None], reload: Optional[Callable[[], Config]] = None) -> int:
    """Serve until SIGTERM or SIGINT; return the exit code.

    `ready` is called once the mount answers. SIGHUP takes what `reload` returns, and keeps what there was where that
    raises ConfigError. ServiceError when the daemon cannot start.
    """
    logging.getLogger().setLevel(config.log.level.upper())
    _raise_descriptor_limit()
    name, why = choose_engine(config.fuse.engine)
    log.info("engine %s: %s", name, why)
    with _signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as (signals, wake):
        try:
            service, engine = (_start_kernel if name == "kernel" else _start_fusepy)(config)
            stop_metrics = metrics.listen(config.metrics.listen, service.filesystem, service.containers)
        except (MountError, metrics.MetricsError) as error:
            raise ServiceError(str(error)) from None
        ended: list[str] = []

        def watch() -> None:
            ended.append(engine.wait())
            wake(_ENDED)

        threading.Thread(target=watch, name="engine", daemon=True).start()
        _wait_until_it_answers(config.mountpoint, ended)
        log.info("serving %d files at %s", len(config.files.enabled), config.mountpoint)
        ready()
        _run(service, engine, signals, reload)
        stop_metrics()
        if not ended:
            engine.stop()
    log.info("%s: %s", config.mountpoint, ended[0] if ended else "stopped")
    return 0


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
    filesystem = Filesystem(Host(), containers, config, lambda: pid)
    filesystem.getattr(path)
    return filesystem.read(path, 1 << 30, 0, 0)


def _start_kernel(config: Config) -> tuple[Service, Engine]:
    from lxcfs_py.engine import kernel, session

    known = [f"/{name}" for name in NAMES]
    try:
        kept = session.inherit() or session.take_over(config.mountpoint)
        resumed = kept is not None
        if kept is None:
            mountpoint.prepare(config.mountpoint)
            kept = session.create(config.mountpoint)
        service = Service(config, kernel.caller, kept.texts)
        server = kernel.Server(service.filesystem, kept, config.fuse.threads, known)
        server.start()
    except session.SessionError as error:
        raise MountError(str(error)) from None
    kept_for_successor = session.store_with_systemd(kept) and is_started_by_systemd()
    session.offer(kept, lambda: server.stop("another server has taken over"))
    if resumed:
        log.info("resumed the mount of a server before this one")
        for path in service.filesystem.hidden():
            server.invalidate(path)

    def stop() -> None:
        server.stop("stopped")
        if not kept_for_successor:
            session.unmount(config.mountpoint)

    return service, Engine(server.wait, stop, server.invalidate)


def _start_fusepy(config: Config) -> tuple[Service, Engine]:
    try:
        from lxcfs_py.engine import fusepy
    except (ImportError, OSError) as error:
        raise MountError(f"the engine fusepy needs the Python package fusepy and libfuse: {error}") from None

    mountpoint.prepare(config.mountpoint)
    service = Service(config, fusepy.caller)
    ended = threading.Event()
    reason = ["unmounted"]

    def run() -> None:
        try:
            fusepy.FUSE(service.filesystem, config.mountpoint, config.fuse.threads)
        except RuntimeError as error:
            reason[0] = f"libfuse ended with {error}"
        ended.set()

    threading.Thread(target=run, name="fuse", daemon=True).start()

    def wait() -> str:
        ended.wait()
        return reason[0]

    def stop() -> None:
        with contextlib.suppress(OSError):
            syscalls.umount(config.mountpoint, syscalls.MNT_DETACH)
        # A container that has files of the mount bound keeps it: it ends with this process.
        ended.wait(_STOP_SECONDS)

    return service, Engine(wait, stop, lambda _: None)


def _run(service: Service, engine: Engine, signals: socket.socket, reload: Optional[Callable[[], Config]]) -> None:
    """Do what comes up beside serving, until a signal says to stop or the engine has ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        selector.register(service.containers, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is service.containers:
                    service.containers.reap()
                    continue
                for number in signals.recv(64):
                    if number in (signal.SIGTERM, signal.SIGINT, _ENDED):
                        return
                    if number == signal.SIGHUP and reload:
                        _reload(service, engine, reload)


def _reload(service: Service, engine: Engine, reload: Callable[[], Config]) -> None:
    filesystem = service.filesystem
    old = filesystem.config
    try:
        new = reload()
    except ConfigError as error:
        for sentence in error.errors:
            log.error("%s", sentence)
        log.error("the configuration was not reloaded; the old one stays")
        return
    if (new.mountpoint, new.fuse, new.metrics) != (old.mountpoint, old.fuse, old.metrics):
        log.warning("a change of mountpoint, [fuse] or [metrics] needs a restart; the rest is reloaded")
    hidden = filesystem.hidden()
    filesystem.config = dataclasses.replace(new, mountpoint=old.mountpoint, fuse=old.fuse, metrics=old.metrics)
    service.sampler.interval = new.loadavg.interval
    logging.getLogger().setLevel(new.log.level.upper())
    for path in filesystem.hidden() - hidden:
        engine.invalidate(path)
    log.info("the configuration was reloaded")


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


def _wait_until_it_answers(path: str, ended: list[str]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if ended:
            raise ServiceError(f"nothing could be mounted at {path}: {ended[0]}")
        with contextlib.suppress(OSError):
            if mountpoint.is_mounted(path):
                os.stat(f"{path}/proc")
                return
        time.sleep(0.005)
    raise ServiceError(f"the mount at {path} does not answer after {_START_SECONDS} seconds")


def _may_mount() -> bool:
    """Tell whether this process has CAP_SYS_ADMIN."""
    with open("/proc/self/status") as file:
        capabilities = next(line for line in file if line.startswith("CapEff:"))
    return bool(int(capabilities.split()[1], 16) >> 21 & 1)


def is_started_by_systemd() -> bool:
    """Tell whether systemd itself has started this process, so that it knows whether there will be a successor."""
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as may be had: each container takes some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
