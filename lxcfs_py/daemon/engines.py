"""The engines as the service has them: how each mounts, begins, ends, and hands over."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
from typing import Callable, Optional, Protocol

from lxcfs_py.cgroup.layout import find_for_all
from lxcfs_py.config import Config
from lxcfs_py.container import processes
from lxcfs_py.daemon import degraded, held_open, systemd
from lxcfs_py.daemon.own_mount import OwnMount, clone_of
from lxcfs_py.engine import End, Tree, keeper, kernel, session, store, watchdog
from lxcfs_py.engine.waiting import Crowd
from lxcfs_py.linux import capabilities, mountpoint, peer, runtime_directory, threads
from lxcfs_py.linux.mountpoint import MountError
from lxcfs_py.linux.notify import SECONDS, notify

log = logging.getLogger(__name__)

FUSEPY_ENDS = (
    "with the engine fusepy the mount ends with the daemon, at a restart too, and containers see errors until they get "
    "the files again"
)
"""What is promised less where that engine is chosen."""

_THREADS = 8
"""About as many as a server has beside its workers: where some cannot be had, it does without what they do."""

_FUSE = "/dev/fuse"

_HIDDEN = (
    "systemd has given this service a mount namespace of its own, and nobody else sees what is mounted there: take "
    "ProtectSystem=, PrivateTmp=, PrivateNetwork= and the like out of the drop-ins of its unit"
)

_STOP_SECONDS = 2
_LOOK_SECONDS = 0.05


class Engine(Protocol):
    """What has mounted, or has a mount from a server before, and is about to serve it."""

    name: str

    config: Config
    """The configuration that it serves: the mountpoint is that of the mount it has."""

    resumes: bool
    """Tells whether containers may use the mount already, so that it must be served whatever goes wrong."""

    stuck: watchdog.Check
    """Says which of its workers do not answer."""

    mount: Optional[OwnMount]
    """What is mounted again where it is taken away; None before the start, and where the engine cannot do that."""

    crowd: Callable[[], Crowd]
    """Says how it stands with requests that wait for their turn."""

    def start(self, tree: Tree) -> None:
        """Begin to serve. MountError when that cannot be."""

    def answers(self) -> bool:
        """Tell whether it has begun to answer the kernel. Asking the mount could make this process unkillable."""

    def wait(self) -> End:
        """Block until it has ended; return why."""

    def stop(self) -> bool:
        """End it, and unmount unless somebody keeps the mount for a successor; return whether the mount has ended."""

    def shows_machine(self) -> bool:
        """Tell whether a server before this one was told to show the machine's figures in all files."""

    def note_started(self, shows_machine: bool) -> None:
        """Keep for a successor that this server serves, and what it was told to show."""


def choose(config: Config) -> Engine:
    """Return the engine to use, which has its mount. MountError when nothing can be mounted."""
    resumes = store.inherited().session(config.mountpoint) is not None
    if systemd.hides_mounts():
        if not resumes:
            raise MountError(_HIDDEN)
        degraded.enter("namespace", _HIDDEN)
    if resumes:
        name, why = "kernel", "the mount of the server before this one goes on"
    else:
        name, why = chosen(config.fuse.engine)
        if name == "fusepy" and not _may_open_fuse():  # fusermount opens it with the rights of who calls it
            raise MountError(f"nothing can be mounted at {config.mountpoint}", what_a_mount_needs())
    log.info("engine %s: %s", name, why)
    return KernelEngine(config) if name == "kernel" else FusepyEngine(config)


def chosen(wanted: str) -> tuple[str, str]:
    """Return which engine a configuration means here, "kernel" or "fusepy", and why."""
    if wanted == "kernel":
        return wanted, "the configuration says so"
    if wanted == "fusepy":
        return wanted, "the configuration says so; the mount ends with this process"
    if capabilities.has("self", capabilities.SYS_ADMIN) and _may_open_fuse():
        return "kernel", "this process may mount, so that the mount can outlive it"
    return "fusepy", (
        "this process may not mount by itself (CAP_SYS_ADMIN, /dev/fuse), and fusermount may; the mount ends with this "
        "process"
    )


def _may_open_fuse() -> bool:
    return os.access(_FUSE, os.R_OK | os.W_OK)


class KernelEngine:
    """FUSE spoken on /dev/fuse itself, in a session that outlives this process."""

    name = "kernel"
    stuck: watchdog.Check
    crowd: Callable[[], Crowd]

    def __init__(self, config: Config) -> None:
        """Take up the session that is kept, that of a server that runs, or mount. MountError."""
        try:
            kept = store.inherited().session(config.mountpoint)
            if kept is not None and not kept.is_claimable():
                kept = None  # another server has it: to be asked for it
            if kept is None:
                find_for_all()  # whoever cannot see all cgroups mounts nothing, nor does it serve in place of another
                kept = _take_over(config.mountpoint)
                if kept is not None and kept.predecessor is not None:
                    _require_sight(peer.of(kept.predecessor)[0])
            self.resumes = kept is not None
            if kept is None:
                mountpoint.prepare(config.mountpoint)
                kept = session.create(config.mountpoint, config.fuse.options)
        except session.SessionError as error:
            raise MountError(str(error), error.hint) from None
        if kept.mountpoint != config.mountpoint:
            log.warning("%s is in use and stays the mountpoint until the service is stopped", kept.mountpoint)
            config = dataclasses.replace(config, mountpoint=kept.mountpoint)
        self.config = config
        self._session = kept
        self._clone: Optional[int] = None
        if kept.predecessor is not None:  # which may be told to stop, and unmount, before this one serves
            with contextlib.suppress(OSError):
                self._clone = clone_of(kept)
        self._pause()
        self._server: Optional[kernel.Server] = None
        self.mount: Optional[OwnMount] = None
        self._handed_over = threading.Event()
        self._end_offer: Callable[[], object] = lambda: None
        # Before a server that runs is told to leave: until then, it has the session, too.
        self._is_kept = self._keep() and systemd.is_started_by_systemd()

    def _pause(self) -> None:
        """Wait, as systemd itself can since version 254 only, where servers in a row have not come to serve."""
        failed = self._session.starts - 1
        if failed > 1 and systemd.is_started_by_systemd():
            first, most = keeper.PAUSES
            time.sleep(min(first * 2.0 ** (failed - 2), most))

    def _keep(self) -> bool:
        try:
            return store.inherited().put(self._session)
        except OSError as error:
            degraded.enter("store", f"nobody keeps the mount should this process die ({error.strerror})")
            return False

    def start(self, tree: Tree) -> None:
        """Begin to serve, as soon as a server that has the session is gone.

        MountError when it does not go; OSError, while it serves, where this one lacks threads or descriptors.
        """
        self._server = kernel.Server(tree, self._session, self.config.fuse.threads)
        self.stuck, self.crowd = watchdog.of_workers(self._server.at_hand), self._server.crowd
        if self._session.predecessor is not None:  # it serves: what could fail is tried before it is told to leave
            threads.require(_THREADS)
        try:
            self._server.start()
        except session.SessionError as error:
            raise MountError(str(error), error.hint) from None
        self._keep_the_rest()
        self.mount = OwnMount(self._session, self._clone)
        if self.mount.clone is not None:
            held_open.start(self.mount.clone, self.resumes)
        if self.resumes:
            log.info("resumed the mount of a server before this one")
        try:
            self._end_offer = session.offer(self._session, self._leave, store.inherited().hand_over)
        except OSError as error:
            why = f"{runtime_directory.PATH}: {error.strerror}"
            degraded.enter("takeover", f"no other server can take the mount over ({why})")

    def _keep_the_rest(self) -> None:
        """Keep what the server before had beside the session. Where nobody listens who would keep it, wait once."""
        seconds = SECONDS
        for name, descriptor in self._session.others:
            try:
                store.inherited().keep(name, descriptor, seconds)
            except OSError:
                seconds = 0.0

    def _leave(self) -> None:
        self._handed_over.set()
        with contextlib.suppress(OSError):  # who keeps it may be gone; the successor waits for this one to leave
            notify(keeper.HANDED_OVER)
        assert self._server
        self._server.stop(End.TAKEN_OVER)

    def answers(self) -> bool:
        """Tell whether INIT has been answered, by whichever server."""
        return self._session.agreed != (0, 0)

    def wait(self) -> End:
        """Block until it has ended; return why."""
        assert self._server
        return self._server.wait()

    def stop(self) -> bool:
        """End it, and unmount unless systemd has the session, or another server, which may have yet to say so."""
        self._end_offer()
        if self._server:
            self._server.stop(End.STOPPED)
        ends = not self._is_kept and not self._handed_over.is_set()
        if ends:
            session.withdraw(self.config.mountpoint)
            mountpoint.unmount_all(self.config.mountpoint)
        if self.mount and self.mount.is_left_below() and not self._goes_on():
            with contextlib.suppress(OSError):
                self.mount.take_away_below()
        return ends

    def _goes_on(self) -> bool:
        """Tell whether a server follows this one, which has been told to stop."""
        return self._handed_over.is_set() or (self._is_kept and systemd.will_be_started_again(systemd.UNIT))

    def shows_machine(self) -> bool:
        """Tell what is noted in the session."""
        return self._session.shows_machine

    def note_started(self, shows_machine: bool) -> None:
        """Note it in the session."""
        self._session.starts = 0
        self._session.shows_machine = shows_machine


def _take_over(place: str) -> Optional[session.Session]:
    """Return the session of the server that runs at a mountpoint, None where none does. SessionError.

    Where others want it at the same moment, one after the other gets it: each is asked in its turn.
    """
    deadline = time.monotonic() + session.PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(session.TakenError):
            kept = session.take_over(place)
            if kept is not None or not _is_served(place):
                return kept
        time.sleep(_LOOK_SECONDS)
    return None


def _require_sight(server: int) -> None:
    """Do nothing where this process may look at that one, which serves, and at whatever that may. MountError else."""
    if not server:
        raise MountError("the server before this one goes on: it is in another pid namespace, where pids are others")
    try:
        processes.require_visit(server)
    except PermissionError as error:
        raise MountError(
            f"process {server} goes on to serve: this one may not look at it, and so at no container "
            f"({error.strerror})",
            "run it as root of the machine, with CAP_SYS_ADMIN and CAP_SYS_PTRACE",
        ) from None


def _is_served(place: str) -> bool:
    """Tell whether a server of this program is there, or about to come, which does not offer it at this moment."""
    return session.was_offered(place) and mountpoint.is_mounted(place) and mountpoint.may_answer(place)


class FusepyEngine:
    """The library libfuse, in this process: the mount ends with it."""

    name = "fusepy"
    resumes = False
    mount: Optional[OwnMount] = None
    stuck: watchdog.Check
    crowd: Callable[[], Crowd]

    def __init__(self, config: Config) -> None:
        """Load the library and make the mountpoint. MountError."""
        try:
            from lxcfs_py.engine import fusepy
        except (ImportError, OSError) as error:
            raise MountError(
                f"the engine fusepy needs a library that is missing ({error}): install python3-fusepy, or, where there "
                'is no libfuse 2, libfuse 3 and the Python package mfusepy; or set fuse.engine = "kernel", which needs '
                "neither"
            ) from None

        self._fusepy = fusepy
        self._ended = threading.Event()
        self._end = End.UNMOUNTED
        self.config = config
        mountpoint.prepare(config.mountpoint)

    def start(self, tree: Tree) -> None:
        """Begin to serve, in a thread."""
        # At its end, libfuse gives SIGPIPE its deadly default where that is ignored; a handler it leaves alone.
        signal.signal(signal.SIGPIPE, lambda *_: None)
        self._operations = self._fusepy.Operations(tree)
        self.stuck, self.crowd = self._operations.stuck, Crowd  # libfuse tells nothing of its queue
        threads.start(self._run, name="fuse")

    def _run(self) -> None:
        try:
            self._fusepy.run(self._operations, self.config.mountpoint, self.config.fuse.options)
        except RuntimeError as error:
            log.error("libfuse ended with %s", error)
            self._end = End.FAILED
        self._ended.set()

    def answers(self) -> bool:
        """Tell whether libfuse has begun."""
        return self._operations.answers.is_set()

    def wait(self) -> End:
        """Block until it has ended; return why."""
        self._ended.wait()
        return self._end

    def stop(self) -> bool:
        """Unmount. A container that has files of the mount bound keeps it: it ends with this process."""
        mountpoint.unmount(self.config.mountpoint)
        self._ended.wait(_STOP_SECONDS)
        return True

    def shows_machine(self) -> bool:
        """Nothing is known of a server before this one."""
        return False

    def note_started(self, shows_machine: bool) -> None:
        """There is no successor."""


def what_a_mount_needs() -> str:
    """Return a hint of what this process lacks, "" where it lacks nothing."""
    lacking = []
    if not os.path.exists(_FUSE):
        lacking.append(f"{_FUSE}, which the kernel's module fuse makes (in a container: --device {_FUSE})")
    elif not _may_open_fuse():
        lacking.append(f"the right to open {_FUSE}, which root has (in a container: --device {_FUSE})")
    if not capabilities.has("self", capabilities.SYS_ADMIN):
        lacking.append("the capability CAP_SYS_ADMIN, which root has (in a container: --cap-add SYS_ADMIN)")
    return f"this process has not got {' nor '.join(lacking)}" if lacking else ""
