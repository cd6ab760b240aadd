"""The daemon's life: start, ready, reload, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import psutil

from lxcfs_py import mounttable, syscalls
from lxcfs_py.accounting import Ledger
from lxcfs_py.cgroup.layout import find as find_hierarchies
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.containers import Containers
from lxcfs_py.filesystem import Filesystem
from lxcfs_py.host import Host
from lxcfs_py.load import Sampler

log = logging.getLogger(__name__)

FSTYPE = "fuse.lxcfs"

RUNTIME_DIRECTORY = "/run/lxcfs-py"

_START_SECONDS = 30
_STOP_SECONDS = 5


class ServiceError(Exception):
    """Why the daemon cannot run: one sentence for the operator."""


def serve(config: Config, ready: Callable[[], None], reload: Optional[Callable[[], Config]] = None) -> int:
    """Serve until SIGTERM or SIGINT, then unmount; return the exit code.

    `ready` is called once the mount answers. SIGHUP takes what `reload` returns, and keeps what there was where that
    raises ConfigError. ServiceError when the daemon cannot start.
    """
    logging.getLogger().setLevel(config.log.level.upper())
    _raise_descriptor_limit()
    _prepare_mountpoint(config.mountpoint)
    from lxcfs_py.engine import fusepy

    sampler = Sampler(config.loadavg.interval)
    containers = Containers(find_hierarchies(), Ledger(_ledger_path(config.mountpoint)), sampler)
    filesystem = Filesystem(Host(), containers, config, fusepy.caller)
    sampler.start()

    engine = threading.Thread(
        target=fusepy.FUSE, args=(filesystem, config.mountpoint, config.fuse.threads), name="fuse", daemon=True
    )
    with _signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        engine.start()
        _wait_until_it_answers(config.mountpoint, engine)
        log.info("serving %d files at %s", len(config.files.enabled), config.mountpoint)
        ready()
        _run(filesystem, containers, sampler, signals, engine, reload)
    with contextlib.suppress(OSError):
        syscalls.umount(config.mountpoint, syscalls.MNT_DETACH)
    engine.join(_STOP_SECONDS)
    log.info("unmounted %s", config.mountpoint)
    return 0


def is_mounted(mountpoint: str) -> bool:
    """Tell whether the views are mounted there, by this program or by the C program."""
    return any(mount.mountpoint == mountpoint and mount.fstype == FSTYPE for mount in mounttable.read())


def show(config: Config, path: str, pid: int) -> bytes:
    """Return what a process would read of a file, without any mount. OSError when there is no such file."""
    containers = Containers(find_hierarchies(), Ledger(), Sampler(config.loadavg.interval))
    filesystem = Filesystem(Host(), containers, config, lambda: pid)
    filesystem.getattr(path)
    return filesystem.read(path, 1 << 30, 0, 0)


def _run(
    filesystem: Filesystem,
    containers: Containers,
    sampler: Sampler,
    signals: socket.socket,
    engine: threading.Thread,
    reload: Optional[Callable[[], Config]],
) -> None:
    """Do what comes up beside serving, until a signal says to stop or somebody has unmounted."""
    with selectors.DefaultSelector() as selector:
        selector.register(signals, selectors.EVENT_READ)
        selector.register(containers, selectors.EVENT_READ)
        while engine.is_alive():
            for key, _ in selector.select():
                if key.fileobj is containers:
                    containers.reap()
                    continue
                for number in signals.recv(64):
                    if number in (signal.SIGTERM, signal.SIGINT):
                        return
                    if number == signal.SIGHUP and reload:
                        _reload(filesystem, sampler, reload)
    log.warning("%s was unmounted by somebody else", filesystem.config.mountpoint)


def _reload(filesystem: Filesystem, sampler: Sampler, reload: Callable[[], Config]) -> None:
    old = filesystem.config
    try:
        new = reload()
    except ConfigError as error:
        for sentence in error.errors:
            log.error("%s", sentence)
        log.error("the configuration was not reloaded; the old one stays")
        return
    if (new.mountpoint, new.fuse) != (old.mountpoint, old.fuse):
        log.warning("a change of mountpoint or in [fuse] needs a restart; the rest is reloaded")
        new = dataclasses.replace(new, mountpoint=old.mountpoint, fuse=old.fuse)
    filesystem.config = new
    sampler.interval = new.loadavg.interval
    logging.getLogger().setLevel(new.log.level.upper())
    log.info("the configuration was reloaded")


@contextlib.contextmanager
def _signals(*numbers: signal.Signals) -> Iterator[socket.socket]:
    """Give a socket from which each signal that comes can be read as a byte, its number."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    before = signal.set_wakeup_fd(pythons.fileno())
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ours.close()
        pythons.close()


def _prepare_mountpoint(mountpoint: str) -> None:
    """Make the directory, and clear away what a dead server left. ServiceError when a living one sits there."""
    path = Path(mountpoint)
    while is_mounted(mountpoint):
        try:
            os.statvfs(path)  # the attributes that stat gives may be the kernel's own, of before
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise ServiceError(f"{mountpoint} is mounted, and does not answer: {error.strerror}") from None
            syscalls.umount(mountpoint, syscalls.MNT_DETACH)
            log.info("cleared away the mount that a dead server had left at %s", mountpoint)
        else:
            raise ServiceError(f"{mountpoint} is served already, by {_servers(mountpoint)}; stop that first")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(f"the mountpoint {mountpoint} cannot be made: {error.strerror}") from None


def _servers(mountpoint: str) -> str:
    """Say which processes serve a mount: those with /dev/fuse open that name the mountpoint, else all such."""
    holders = [process for process in psutil.process_iter(["pid", "cmdline"]) if _holds_fuse(process.pid)]
    named = [process for process in holders if mountpoint in (process.info["cmdline"] or [])] or holders
    return " or ".join(f"process {process.pid}" for process in named) or "a process that cannot be seen from here"


def _holds_fuse(pid: int) -> bool:
    try:
        return any(os.readlink(entry.path) == "/dev/fuse" for entry in os.scandir(f"/proc/{pid}/fd"))
    except OSError:
        return False


def _wait_until_it_answers(mountpoint: str, engine: threading.Thread) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if not engine.is_alive():
            raise ServiceError(f"nothing could be mounted at {mountpoint}; see above for the reason")
        with contextlib.suppress(OSError):
            if is_mounted(mountpoint):
                os.stat(f"{mountpoint}/proc")
                return
        time.sleep(0.01)
    raise ServiceError(f"the mount at {mountpoint} does not answer after {_START_SECONDS} seconds")


def _ledger_path(mountpoint: str) -> Optional[str]:
    """Return where CPU counters are kept for the next server of this mount: None when there is no such place."""
    try:
        Path(RUNTIME_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return f"{RUNTIME_DIRECTORY}/{name}.counters"


def _raise_descriptor_limit() -> None:
    """Allow as many descriptors as may be had: each container takes some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
