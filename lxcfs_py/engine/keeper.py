"""A process above the server that does nothing else than keep its session, and does for it what systemd would."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Optional

from lxcfs_py.engine import node_keeper, session
from lxcfs_py.linux import mountpoint

log = logging.getLogger(__name__)

STARTS, PERIOD = 10, 10.0  # how often a server is started within so many seconds before it is given up
START = 60.0  # seconds that a server has to begin to serve the session of the one before
_LOOK, _ALONE = 0.5, 3.0  # seconds: how often a successor is looked for, and how long it may be missing
WATCHDOG = 20.0  # seconds without a sign of life after which a server that has a session is killed

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def keep(command: Sequence[str], stay: bool = False) -> int:
    """Run a server and keep its session; start it again when it dies. Returns an exit status.

    SIGTERM, SIGINT and SIGHUP are passed on. It ends with its server when that ends with status 0, was told to stop, or
    has no session yet. A server that gives no sign of life is killed, and so is one that does not begin to serve what
    is kept for it. One that dies too often is given up, and its filesystem unmounted.

    With `stay`, as a pod, it ends only when it is told to. Where another server has taken the session over, it waits,
    and starts its own again when nobody serves the session any more. When it is told to stop, the mount stays if the
    node's systemd holds it for the next pod (node_keeper.py), or if a pod of before waits for it.
    """
    session.RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Containers that share the directory may have the same process ids.
    address = str(session.RUN / f"keeper-{os.urandom(8).hex()}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address)
        notified.setblocking(False)
        try:
            return _Keeper(command, notified, stay).run()
        finally:
            with contextlib.suppress(FileNotFoundError):  # all that is there may have been removed
                os.unlink(address)


class _Keeper:
    def __init__(self, command: Sequence[str], notified: socket.socket, stay: bool) -> None:
        self._command, self._notified, self._stay = command, notified, stay
        self._kept: list[int] = []
        self._handed_over = False
        self._is_held = False  # by the node's systemd
        self._heard = 0.0  # when the server was started, or gave a sign of life
        self._patience = START  # for how long it may give none
        self._server = 0
        self._told_to_stop = False

    def run(self) -> int:
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _PASSED_ON:
            signal.signal(number, self._pass_on)
        if self._stay:
            self._take_back()
        status = self._run_servers(woken)
        while self._stay and (self._handed_over or not status) and self._waits_until_nobody_serves(woken):
            log.warning("nobody serves what another server had taken over: serving it again")
            status = self._run_servers(woken)
        if self._handed_over:  # however the server went then
            status = 0
        elif (status or self._told_to_stop) and not self._is_kept_elsewhere():
            self._unmount()
        return status if status >= 0 else 128 - status

    def _run_servers(self, woken: int) -> int:
        """Run one server after the other until there is nothing to start another one for; the last one's status."""
        self._handed_over = False
        starts: collections.deque[float] = collections.deque(maxlen=STARTS)
        while len(starts) < STARTS or time.monotonic() - starts[0] > PERIOD:
            starts.append(time.monotonic())
            status = self._serve(woken)
            if not status or self._told_to_stop or self._handed_over or not self._kept:
                return status
            log.warning("the server ended with status %d: starting it again", status)
        log.error("the server ended %d times within %.0f s: giving up", STARTS, PERIOD)
        return status

    def _waits_until_nobody_serves(self, woken: int) -> bool:
        """Return when nobody serves what another server had taken over; False when told to stop."""
        mark = session.wait_for(self._kept[1]) if self._kept else -1
        served = time.monotonic()
        try:
            while not self._told_to_stop:
                select.select([woken], [], [], _LOOK)
                with contextlib.suppress(BlockingIOError):
                    os.read(woken, 64)
                self._reap()
                if not self._kept or session.is_over(self._kept[0]) or session.is_served(self._kept[1]):
                    served = time.monotonic()
                elif time.monotonic() - served > _ALONE:
                    return True
        finally:
            if mark >= 0:
                os.close(mark)
        return False

    def _take_back(self) -> None:
        """Take what the node's systemd holds, unless another server lives, which is asked to hand it over."""
        try:
            held = node_keeper.take_back()
        except node_keeper.NodeKeeperError as error:
            log.warning("the mount ends with this pod: %s", error)
            return
        if held and not session.is_served(held[1]):
            self._kept = held
        else:
            for fd in held:
                os.close(fd)

    def _hold(self) -> None:
        """Let the node's systemd hold what is kept, for the pod after this one."""
        try:
            node_keeper.hold(self._kept)
            self._is_held = True
        except node_keeper.NodeKeeperError as error:
            self._is_held = False
            log.warning("the mount ends with this pod: %s", error)

    def _is_kept_elsewhere(self) -> bool:
        return self._is_held or (self._stay and bool(self._kept) and session.somebody_waits_for(self._kept[1]))

    def _unmount(self) -> None:
        kept = session.session_of(self._kept)
        if kept is not None:
            with contextlib.suppress(mountpoint.MountError):  # it ends with its descriptor all the same
                mountpoint.unmount(kept.mountpoint)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._told_to_stop |= number != signal.SIGHUP
        if self._server:
            with contextlib.suppress(ProcessLookupError):  # it has just been reaped
                os.kill(self._server, number)

    def _serve(self, woken: int) -> int:
        """One life of the server; its status, negative for a signal."""
        # A signal from here on is passed on once it is known to whom.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        try:
            if self._told_to_stop:
                return 0
            self._server = os.fork()
            if not self._server:
                self._become_server(before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        status: Optional[int] = None
        self._heard, self._patience = time.monotonic(), START
        silenced = False
        while status is None:
            if self._kept and time.monotonic() - self._heard > self._patience:
                log.warning("the server gives no sign of life: killing it")
                # SIGABRT lets it say where it was, unless it stands still.
                os.kill(self._server, signal.SIGKILL if silenced else signal.SIGABRT)
                self._heard, self._patience, silenced = time.monotonic(), WATCHDOG, True
            select.select([self._notified, woken], [], [], WATCHDOG / 4)
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 64)
            status = self._reap()
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._take(*session.receive(self._notified))
        self._server = 0
        return status

    def _become_server(self, mask: Iterable[int]) -> None:
        try:
            for number in _PASSED_ON:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.setpgid(0, 0)  # a terminal's signals are the keeper's to pass on
            address = self._notified.getsockname()  # now: one of the descriptors may take this one's number
            spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in self._kept]
            for target, fd in enumerate(spare, 3):
                os.dup2(fd, target)
            environment = {
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDS": str(len(spare)),
                "LISTEN_FDNAMES": ":".join([session.NAME] * len(spare)),
                "NOTIFY_SOCKET": address,
                "WATCHDOG_PID": str(os.getpid()),
                "WATCHDOG_USEC": str(round(WATCHDOG * 1e6)),
            }
            if self._stay:  # as a server that systemd has started, it leaves the mount to who started it
                environment["SYSTEMD_EXEC_PID"] = str(os.getpid())
            os.execvpe(self._command[0], list(self._command), {**os.environ, **environment})
        finally:
            os._exit(127)

    def _reap(self) -> Optional[int]:
        """The server's status if it has ended; reaps orphans too, as it may be a container's first process."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self._server:
                    return os.waitstatus_to_exitcode(status)
                if not pid:
                    break
        return None

    def _take(self, message: bytes, descriptors: list[int]) -> None:
        lines = message.split(b"\n")
        if b"READY=1" in lines or b"WATCHDOG=1" in lines:
            self._heard, self._patience = time.monotonic(), WATCHDOG
        discarded: list[int] = []
        if b"FDSTOREREMOVE=1" in lines:
            self._handed_over = bool(self._kept)
            if not self._stay:
                discarded, self._kept = self._kept, []
        elif b"FDSTORE=1" in lines:
            discarded, self._kept = self._kept, descriptors
            self._handed_over = False
            if self._stay:
                self._hold()
        else:
            discarded = descriptors
        for fd in discarded:
            os.close(fd)
