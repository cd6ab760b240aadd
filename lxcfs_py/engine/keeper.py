"""A process above the server that does nothing else than keep its session, and does for it what systemd would."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

from lxcfs_py.engine import node_keeper, session, store
from lxcfs_py.linux import limits, mountpoint, runtime_directory, signals
from lxcfs_py.linux.notify import INHERITED

log = logging.getLogger(__name__)

PAUSES = (0.1, 5.0)  # seconds from the second failed start to the next, longer and longer; and the most
START = 60.0  # seconds that a server has to begin to serve the session of the one before
_LOOK, _ALONE = 0.5, 3.0  # seconds: how often a successor is looked for, and how long it may be missing
WATCHDOG = 20.0  # seconds without a sign of life after which a server that has a session is killed
STOP = 5.0  # the same for one that has just been told to stop: `docker stop` waits for 10
_SOCKET = "keeper-"  # what the names of keepers' sockets begin with
_SIGNS_OF_LIFE = {"READY=1", "WATCHDOG=1", "STOPPING=1"}
HANDED_OVER = "X_HANDED_OVER=1"  # what a server says when another one takes its session over

_NOT_STARTED = 127  # the status of a server that could not even be forked, as of one that could not be executed

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def keep(command: Sequence[str], stay: bool = False) -> int:
    """Run a server and keep its session; start it again as long as there is one. Returns an exit status.

    SIGTERM, SIGINT, SIGHUP and SIGUSR2 are passed on, the latter two once a server is ready. It ends with its server
    when that ends with status 0, was told to stop, or has no session yet. A server that gives no sign of life is
    killed, and so is one that does not begin to serve what is kept for it.

    With `stay`, as a pod, it ends only when it is told to. Where another server has taken the session over, it waits,
    and starts its own again when nobody serves the session any more. When it is told to stop, the mount stays if the
    node's systemd holds it for the next pod (node_keeper.py), or if a pod of before waits for it.
    """
    limits.raise_descriptors()
    spared = limits.spare_from_oom_kills()
    with _listening() as notified, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connected:
        connected.connect(notified.getsockname())
        return _Keeper(command, notified, connected, stay, spared).run()


@contextlib.contextmanager
def _listening() -> Iterator[socket.socket]:
    """A socket that only root can send to."""
    with contextlib.ExitStack() as stack:
        notified = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        # Containers that share the directory may have the same process ids.
        address = f"{runtime_directory.PATH}/{_SOCKET}{os.urandom(8).hex()}"
        try:
            runtime_directory.make(runtime_directory.PATH)
            _remove_those_of_the_dead()
            notified.bind(address)
        except OSError as error:
            import tempfile  # here, as its imports take much memory

            why = f"{runtime_directory.PATH} cannot be used ({error.strerror})"
            log.warning("%s: the keeper's socket is elsewhere", why)
            address = stack.enter_context(tempfile.TemporaryDirectory(prefix="lxcfs-py-")) + "/keeper"
            notified.bind(address)
        stack.callback(_remove, address)
        notified.setblocking(False)
        yield notified


def _remove_those_of_the_dead() -> None:
    """Remove the sockets of keepers that were killed. One that has just been made may not be heard at yet."""
    for path in Path(runtime_directory.PATH).glob(f"{_SOCKET}*"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asked:
            left = path.lstat()
            if stat.S_ISSOCK(left.st_mode) and left.st_uid == os.geteuid() and time.time() - left.st_mtime > START:
                try:
                    asked.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class _Keeper:
    def __init__(
        self, command: Sequence[str], notified: socket.socket, connected: socket.socket, stay: bool, oom_score: str
    ) -> None:
        """`connected` to `notified` is what a server inherits; `oom_score` is what it gets: this process was spared."""
        self._command, self._notified, self._connected = command, notified, connected
        self._stay, self._oom_score = stay, oom_score
        self._kept: dict[str, list[int]] = {}  # by the name that the server gave them
        self._others: dict[str, list[int]] = {}  # what is kept beside the session, by its name
        self._handed_over = False
        self._is_held = False  # by the node's systemd
        self._heard = 0.0  # when the server was started, or gave a sign of life
        self._patience = START  # for how long it may give none
        self._failed = 0  # starts in a row of which none has come to serve
        self._server = 0
        self._is_ready = False  # it has said so
        self._noted: set[int] = set()  # signals that it gets once it is ready
        self._told_to_stop = False
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signals.ignore_all_but(*_PASSED_ON)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)
        if self._stay:
            self._take_back()
        status = self._run_servers()
        while self._stay and (self._handed_over or not status) and self._waits_until_nobody_serves():
            log.warning("nobody serves what another server had taken over: serving it again")
            self._noted.clear()  # they came long ago
            status = self._run_servers()
        if self._handed_over and not self._told_to_stop:  # however the server went then
            status = 0
        elif (status or self._told_to_stop) and not self._handed_over and not self._is_kept_elsewhere():
            self._unmount()
        if self._told_to_stop and -status in _STOPPING:  # before it heeded that
            status = 0
        return status if status >= 0 else 128 - status

    def _run_servers(self) -> int:
        """Run one server after the other until there is nothing to start another one for; the last one's status."""
        while True:
            status = self._serve()
            if self._told_to_stop or self._fuse() is None:
                return status
            if self._handed_over:
                if self._is_taken():
                    return status
                self._handed_over = False
            elif status == 0:
                return status
            log.warning("the server ended with status %d: starting it again", status)
            self._sleep(self._pause())

    def _pause(self) -> float:
        """Seconds until the next start: none after a server that served."""
        first, most = PAUSES
        self._failed += 1
        return min(first * 2.0 ** (self._failed - 2), most) if self._failed > 1 else 0.0

    def _fuse(self) -> Optional[int]:
        """What is kept of /dev/fuse, as long as it is mounted."""
        return next((fd for fd in self._all() if _is_fuse(fd) and not session.is_over(fd)), None)

    def _is_served(self) -> bool:
        return any(session.is_served(fd) for fd in self._memories())

    def _has_come_to_serve(self) -> bool:
        return any(session.is_served(fd) and session.has_come_to_serve(fd) for fd in self._memories())

    def _memories(self) -> list[int]:
        return [fd for fd in self._all() if not _is_fuse(fd)]

    def _all(self) -> list[int]:
        return [fd for descriptors in self._kept.values() for fd in descriptors]

    def _is_taken(self) -> bool:
        """Return whether another server has come to serve the session; False when none is about to any more."""
        deadline = time.monotonic() + session.PATIENCE
        while time.monotonic() < deadline:
            if self._is_served():
                if self._told_to_stop or self._has_come_to_serve():
                    return True
                deadline = time.monotonic() + session.PATIENCE
            elif self._told_to_stop:
                return False
            self._sleep(0.01)
        return False

    def _waits_until_nobody_serves(self) -> bool:
        """Return when nobody serves what another server had taken over; False when told to stop."""
        marks = [session.wait_for(fd) for fd in self._memories()]
        served = time.monotonic()
        while not self._told_to_stop and time.monotonic() - served <= _ALONE:
            self._sleep(_LOOK)
            if self._fuse() is None or self._is_served():
                served = time.monotonic()
        for mark in marks:
            os.close(mark)
        return not self._told_to_stop

    def _take_back(self) -> None:
        """Take what the node's systemd holds, unless another server lives, which is asked to hand it over."""
        try:
            held = node_keeper.take_back()
        except node_keeper.NodeKeeperError as error:
            log.warning("the mount ends with this pod: %s", error)
            return
        if held and not session.is_served(held[1]):
            self._kept = {store.NAMES[0]: held}
            self._is_held = True  # the server, which inherits it, does not store it again
        else:
            for fd in held:
                os.close(fd)

    def _hold(self, descriptors: Sequence[int]) -> None:
        """Let the node's systemd hold a session, for the pod after this one."""
        try:
            node_keeper.hold(descriptors)
            self._is_held = True
        except node_keeper.NodeKeeperError as error:
            self._is_held = False
            log.warning("the mount ends with this pod: %s", error)

    def _is_kept_elsewhere(self) -> bool:
        waits = self._stay and any(session.somebody_waits_for(fd) for fd in self._memories())
        return self._is_held or waits or self._is_served()

    def _sleep(self, seconds: float) -> None:
        """Wait, unless told to stop."""
        deadline = time.monotonic() + seconds
        while not self._told_to_stop and (left := deadline - time.monotonic()) > 0:
            select.select([self._woken], [], [], left)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 64)
            self._reap()

    def _unmount(self) -> None:
        for descriptors in self._kept.values():
            kept = session.session_of(descriptors, "/")
            if kept is not None and kept.mountpoint != "/":
                with contextlib.suppress(mountpoint.MountError):  # it ends with its descriptor all the same
                    mountpoint.unmount_all(kept.mountpoint)

    def _pass_on(self, number: int, _frame: object) -> None:
        if number in _STOPPING and not self._told_to_stop:
            self._told_to_stop = True
            self._heard, self._patience = time.monotonic(), STOP
        if self._server and (self._is_ready or number in _STOPPING):
            with contextlib.suppress(ProcessLookupError):  # it has just been reaped
                os.kill(self._server, number)
        elif number == signal.SIGUSR2:
            self._noted ^= {number}  # two are none
        else:
            self._noted |= {number}

    def _serve(self) -> int:
        """One life of the server; its status, negative for a signal."""
        # A signal from here on is passed on once it is known to whom.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            if self._told_to_stop:
                return 0
            self._handed_over = self._is_ready = False
            self._heard, self._patience = time.monotonic(), START
            self._server = os.fork()
            if not self._server:
                self._become_server(before)
        except OSError as error:  # too many processes, or no memory: for now
            log.warning("no server can be started: %s", error.strerror)
            return _NOT_STARTED
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        status: Optional[int] = None
        while status is None:
            has_to_tell = self._kept or self._told_to_stop
            if has_to_tell and time.monotonic() - self._heard > self._patience:
                log.warning("the server gives no sign of life: killing it")
                os.kill(self._server, signal.SIGKILL)
                self._heard = time.monotonic()
            select.select([self._notified, self._woken], [], [], STOP / 10 if self._told_to_stop else WATCHDOG / 4)
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 64)
            status = self._reap()
            if status is not None:
                self._server = 0
            self._listen()
        return status

    def _listen(self) -> None:
        """Do what the server has said. Whatever that is, this process goes on: the session is in its hands."""
        while True:
            try:
                self._take(*session.receive(self._notified))
            except BlockingIOError:
                return
            except Exception as error:
                log.error("what the server said could not be done: %r", error)
                return

    def _become_server(self, mask: Iterable[int]) -> None:
        try:
            # A signal that comes before the server heeds it must not end what is to go on.
            for number in _PASSED_ON:
                signal.signal(number, signal.SIG_DFL if number in _STOPPING else signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.setpgid(0, 0)  # a terminal's signals are the keeper's to pass on
            limits.set_oom_score(self._oom_score)
            address = self._notified.getsockname()  # now: one of the descriptors may take this one's number
            everything = {**self._kept, **self._others}
            names = [name for name, descriptors in everything.items() for _ in descriptors]
            kept = [fd for descriptors in everything.values() for fd in descriptors]
            inherited = [*kept, self._connected.fileno()]
            spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3 + len(inherited)) for fd in inherited]
            for target, fd in enumerate(spare, 3):
                os.dup2(fd, target)
            environment = {
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDS": str(len(kept)),
                "LISTEN_FDNAMES": ":".join(names),
                "NOTIFY_SOCKET": address,
                INHERITED: f"{os.getpid()}:{3 + len(kept)}",
                "WATCHDOG_PID": str(os.getpid()),
                "WATCHDOG_USEC": str(round(WATCHDOG * 1e6)),
            }
            if self._stay:  # as a server that systemd has started, it leaves the mount to who started it
                environment["SYSTEMD_EXEC_PID"] = str(os.getpid())
            os.execvpe(self._command[0], list(self._command), {**os.environ, **environment})
        finally:
            os._exit(_NOT_STARTED)

    def _reap(self) -> Optional[int]:
        """The server's status if it has ended; reaps orphans too, as it may be a container's first process."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == self._server:
                    return os.waitstatus_to_exitcode(status)
        return None

    def _take(self, message: bytes, descriptors: list[int]) -> None:
        """Do what a server says. Nothing is let go of that could still be served, whatever it says."""
        lines = message.decode(errors="replace").split("\n")
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), store.NAMES[0])
        if not _SIGNS_OF_LIFE.isdisjoint(lines):
            self._heard, self._patience = time.monotonic(), WATCHDOG
        if "READY=1" in lines or "WATCHDOG=1" in lines:
            self._failed = 0
            self._is_ready = True
            noted, self._noted = self._noted, set()
            for number in noted:
                self._pass_on(number, None)
        if name not in store.NAMES:
            descriptors = self._take_other(name, lines, descriptors)
        elif "FDSTORE=1" in lines and descriptors:
            self._handed_over = False
            before = self._kept.get(name, [])
            if any(map(_is_fuse, descriptors)):  # a whole session in place of another
                self._kept[name], descriptors = descriptors, before
            else:
                self._kept[name], descriptors = before + descriptors, []
            fuse, *_, memory = sorted(self._kept[name], key=_is_fuse, reverse=True)
            if self._stay:
                self._hold([fuse, memory])
        elif HANDED_OVER in lines:
            self._handed_over = True
        elif "FDSTOREREMOVE=1" in lines:
            if any(_is_fuse(fd) and not session.is_over(fd) for fd in self._kept.get(name, [])):
                self._handed_over = True  # so says a server of version 0.1
            else:
                descriptors = descriptors + self._kept.pop(name, [])
        for fd in descriptors:
            os.close(fd)

    def _take_other(self, name: str, lines: Sequence[str], descriptors: list[int]) -> list[int]:
        """Keep, or let go of, what a server has beside its session; return what is kept no longer."""
        before = self._others.pop(name, [])
        if "FDSTORE=1" in lines:
            self._others[name] = descriptors
        return before


def _is_fuse(fd: int) -> bool:
    return stat.S_ISCHR(os.fstat(fd).st_mode)
