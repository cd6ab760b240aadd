"""A FUSE session, and who keeps it while no server runs.

A session is two descriptors: /dev/fuse, whose closing by its last holder ends the mount, and a memory file with what
one server must know of the one before: the requests that it had taken, and the texts that readers are in the middle
of. A server may die at any moment. Whoever holds both descriptors goes on where it stopped:

- systemd's descriptor store (`store_with_systemd`, `inherit`),
- a server that makes way for a new one (`offer`, `take_over`),
- a process above the server that does nothing else (`keep`), and does for it what systemd would.

The memory file belongs to the process that has it locked. The kernel drops the lock when that process is gone with all
its threads, and not before: no two servers ever answer at the same time.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import hashlib
import logging
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from lxcfs_py import syscalls
from lxcfs_py.engine import protocol

log = logging.getLogger(__name__)

SLOTS = 32  # the most workers that a server can have

# Bytes of a slot that say more than the kernel wrote there. Single bytes: a server that is killed, at whatever
# instruction, has either written one or not.
OPCODE = 4 if sys.byteorder == "little" else 7  # in IN_HEADER.opcode; 0 when the slot holds no request
RENDERED = 38  # in IN_HEADER.padding, 0 from the kernel; 1 when a read's text is settled, and may have been sent
ATTEMPTS = 39  # in IN_HEADER.padding; how many servers took this request up from another

RUN = Path("/run/lxcfs-py")
NAME = "lxcfs"  # of the descriptors in systemd's store
PATIENCE = 5.0  # seconds that another server is given to answer, and to leave
STARTS, PERIOD = 10, 10.0  # how often `keep` starts a server within so many seconds before it gives up

_PAGE = 4096
_MAGIC, _VERSION = b"lxcfs-py", 1  # what is below is laid out in memory: another layout is another version
_HEADER = struct.Struct("=8sIIII")  # magic, version, minor and flags that INIT agreed on, length of the mountpoint
_NEGOTIATED = 12
_INDEX = struct.Struct("=QI4x")  # of a kept text: handle, length; the byte after them is 1 when all of it is written
_WHOLE = 12
_SHELVES = ((4 << 10, 2048), (64 << 10, 512), (2 << 20, 64))  # size and number of the cells that texts are kept in
_MINE = b"mine"
_UCRED = struct.Struct("=iII")  # pid, uid, gid


class SessionError(Exception):
    """A session can't be had, in one sentence for the operator."""


class _Cell(NamedTuple):
    shelf: int  # its size's place in _SHELVES
    entry: int  # offset of its _INDEX
    text: int  # offset of its text


class Texts:
    """The texts of open files by their handle, where a successor finds them.

    Bounded: when all cells of a size are taken, its oldest text goes; a text of more than 2 MiB is not kept. A reader
    that is in the middle of such a text when its server dies goes on in a newer one.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        self._lock = threading.Lock()
        self._held: dict[int, _Cell] = {}  # by handle, the oldest first
        self._free: list[list[_Cell]] = [[] for _ in _SHELVES]

    def load(self) -> None:
        """Find what a predecessor kept. Not before it is gone."""
        self._held = {}
        self._free = [[] for _ in _SHELVES]
        for cell in reversed(list(_cells(self._offset))):
            if self._memory[cell.entry + _WHOLE]:
                self._held[_INDEX.unpack_from(self._memory, cell.entry)[0]] = cell
            else:
                self._free[cell.shelf].append(cell)
        self._held = dict(sorted(self._held.items()))  # handles count up: the oldest is again the first

    def get(self, handle: int) -> Optional[bytes]:
        """The text that was put for `handle`; None if there is none."""
        with self._lock:
            cell = self._held.get(handle)
            if cell is None:
                return None
            _, length = _INDEX.unpack_from(self._memory, cell.entry)
            return self._memory[cell.text : cell.text + length]

    def put(self, handle: int, text: bytes) -> None:
        """Keep `text` for `handle`, and no other."""
        with self._lock:
            cell = self._held.pop(handle, None)
            if cell is not None:
                self._memory[cell.entry + _WHOLE] = 0
                self._free[cell.shelf].append(cell)
            cell = self._take(len(text))
            if cell is not None:
                self._memory[cell.text : cell.text + len(text)] = text
                _INDEX.pack_into(self._memory, cell.entry, handle, len(text))
                self._memory[cell.entry + _WHOLE] = 1
                self._held[handle] = cell

    def _take(self, length: int) -> Optional[_Cell]:
        for shelf, (size, _) in enumerate(_SHELVES):
            if length <= size:
                if not self._free[shelf]:
                    oldest = next(handle for handle, cell in self._held.items() if cell.shelf == shelf)
                    self._drop(oldest)
                return self._free[shelf].pop()
        return None

    def drop(self, handle: int) -> None:
        """Keep nothing for `handle` any longer."""
        with self._lock:
            self._drop(handle)

    def _drop(self, handle: int) -> None:
        cell = self._held.pop(handle, None)
        if cell is not None:
            self._memory[cell.entry + _WHOLE] = 0
            self._free[cell.shelf].append(cell)


def _cells(offset: int) -> Iterator[_Cell]:
    """All cells of a memory whose index is at `offset`; the index of all sizes comes first, then their texts."""
    text = offset + _pages(sum(count for _, count in _SHELVES) * _INDEX.size)
    for shelf, (size, count) in enumerate(_SHELVES):
        for _ in range(count):
            yield _Cell(shelf, offset, text)
            offset += _INDEX.size
            text += size


def _pages(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


class Session:
    """The two descriptors, and the memory file's parts: a header page, the slots, the texts.

    `slots` are writable views of the requests at hand, one for each worker; `texts` is for the filesystem. Neither is
    this process's before `claim`.
    """

    def __init__(self, fuse: int, memory: int) -> None:
        """SessionError if the memory file was laid out by another version."""
        self.fuse, self.memory = fuse, memory
        self.predecessor: Optional[socket.socket] = None
        self._map = mmap.mmap(memory, 0)
        magic, version, *_, length = _HEADER.unpack_from(self._map)
        if (magic, version) != (_MAGIC, _VERSION):
            raise SessionError(
                f"the session at hand was laid out by another version ({magic!r} {version}): can't resume it"
            )
        self.mountpoint = os.fsdecode(self._map[_HEADER.size : _HEADER.size + length])
        view, size = memoryview(self._map), protocol.MIN_READ_BUFFER
        self.slots = [view[_PAGE + n * size : _PAGE + (n + 1) * size] for n in range(SLOTS)]
        self.texts = Texts(self._map, _PAGE + SLOTS * size)

    def negotiated(self, minor: int, flags: int) -> None:
        """Note what INIT agreed on, which the kernel tells only once."""
        struct.pack_into("=II", self._map, _NEGOTIATED, minor, flags)

    @property
    def agreed(self) -> tuple[int, int]:
        """The minor version and flags that INIT agreed on; zeros when the kernel has not asked yet."""
        minor, flags = struct.unpack_from("=II", self._map, _NEGOTIATED)
        return minor, flags

    def claim(self) -> None:
        """Make the session this process's own: let its server leave, wait until it is gone, kill it if it does not go.

        SessionError if that does not help.
        """
        if self.predecessor is not None:
            with contextlib.suppress(OSError):  # gone already
                self.predecessor.send(_MINE)
        if not (self._lock_within(PATIENCE) or (self._kill_owner() and self._lock_within(PATIENCE))):
            raise SessionError(f"another process holds the session of {self.mountpoint} and can't be ended: stop it")
        self.texts.load()

    def is_claimable(self) -> bool:
        """Whether no live process serves this session; claims it if so."""
        return self._lock_within(0)

    def _lock_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(self.memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)

    def _kill_owner(self) -> bool:
        """Kill the process that has the lock; whatever it had at hand is in the slots."""
        flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(self.memory, fcntl.F_GETLK, flock))
        if kind == fcntl.F_UNLCK:
            return True
        log.warning("process %d does not leave the session of %s: killing it", pid, self.mountpoint)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return bool(pid > 0)


def create(mountpoint: str) -> Session:
    """Mount at `mountpoint`, an absolute path. SessionError if that fails."""
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SessionError(f"can't open /dev/fuse: {error.strerror}; load the module fuse, be root") from error
    try:
        options = f"fd={fuse},rootmode=40755,user_id=0,group_id=0,allow_other"
        syscalls.mount("lxcfs", mountpoint, "fuse.lxcfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
    except OSError as error:
        os.close(fuse)
        raise SessionError(f"can't mount on {mountpoint}: {error.strerror}") from error
    return Session(fuse, new_memory(mountpoint))


def unmount(mountpoint: str) -> None:
    """Take the mount away; the places where containers have it mounted last as long as its descriptor. OSError."""
    syscalls.umount(mountpoint, syscalls.MNT_DETACH)


def new_memory(mountpoint: str) -> int:
    """An empty memory file for a session at `mountpoint`."""
    memory = os.memfd_create("lxcfs-py", os.MFD_CLOEXEC)
    *_, last = _cells(_PAGE + SLOTS * protocol.MIN_READ_BUFFER)
    os.ftruncate(memory, last.text + _SHELVES[-1][0])
    path = os.fsencode(mountpoint)
    os.pwrite(memory, _HEADER.pack(_MAGIC, _VERSION, 0, 0, len(path)) + path, 0)
    return memory


def _session_of(descriptors: Sequence[int]) -> Optional[Session]:
    """The session that these make up, or None, and they are closed, if they don't or its mount is gone."""
    fuse = [fd for fd in descriptors if stat.S_ISCHR(os.fstat(fd).st_mode)]
    memory = [fd for fd in descriptors if stat.S_ISREG(os.fstat(fd).st_mode)]
    if len(fuse) == len(memory) == 1 and len(descriptors) == 2 and not _is_unmounted(fuse[0]):
        return Session(fuse[0], memory[0])
    for fd in descriptors:
        os.close(fd)
    return None


def _is_unmounted(fuse: int) -> bool:
    poll = select.poll()
    poll.register(fuse, 0)
    return bool(poll.poll(0))  # POLLERR


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptors that came with it."""
    message, descriptors, _, _ = socket.recv_fds(connection, 4096, 8)
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return message, descriptors


# systemd's descriptor store


def inherit() -> Optional[Session]:
    """The session that whoever started this process has kept; None if there is none, or another process serves it."""
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()):
        return None
    descriptors = [3 + n for n, name in zip(range(int(count or 0)), names.split(":")) if name == NAME]
    for fd in descriptors:
        os.set_inheritable(fd, False)
    session = _session_of(descriptors)
    if session is not None and not session.is_claimable():
        os.close(session.fuse)
        os.close(session.memory)
        return None
    return session


def store_with_systemd(session: Session) -> bool:
    """Give the session, in place of an earlier one, to whoever started this process. False if nobody offers to keep it.

    Without FDPOLL=0, each request would wake systemd, which watches for the descriptor's end.
    """
    if "NOTIFY_SOCKET" not in os.environ:
        return False
    _notify(f"FDSTOREREMOVE=1\nFDNAME={NAME}", [])
    _notify(f"FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0", [session.fuse, session.memory])
    return True


def _notify(message: str, descriptors: list[int]) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        socket.send_fds(notify, [message.encode()], descriptors)


# From one running server to the next


def _socket_path(mountpoint: str) -> str:
    return str(RUN / hashlib.blake2b(os.fsencode(mountpoint), digest_size=8).hexdigest())


def offer(session: Session, leave: Callable[[], None]) -> None:
    """Let a later server take the session over; `leave` is called, in another thread, when one does. OSError."""
    RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = _socket_path(session.mountpoint)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.new")
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # over a predecessor's: whoever finds it, finds it answered
    threading.Thread(target=_hand_over, args=(session, listener, leave), name="offer", daemon=True).start()


def withdraw(session: Session) -> None:
    """Offer it no longer: it is about to end."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_socket_path(session.mountpoint))


def _hand_over(session: Session, listener: socket.socket, leave: Callable[[], None]) -> None:
    taken = False
    while not taken:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            if uid == 0:
                connection.settimeout(PATIENCE)
                socket.send_fds(connection, [b"session"], [session.fuse, session.memory])
                taken = connection.recv(len(_MINE)) == _MINE
    log.info("process %d takes %s over", pid, session.mountpoint)
    listener.close()
    leave()


def take_over(mountpoint: str) -> Optional[Session]:
    """The session of the server that runs at `mountpoint`; it leaves at `claim`. None if there is no such server.

    SessionError if there is one that does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(_socket_path(mountpoint))
        _, descriptors = _receive(connection)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise SessionError(f"the server at {mountpoint} does not hand it over ({error}): stop that server") from error
    session = _session_of(descriptors)
    if session is not None:
        session.predecessor = connection
    return session


# A process above the server


def keep(command: Sequence[str]) -> int:
    """Run a server and keep its session; start it again when it dies. Returns an exit status.

    SIGTERM, SIGINT and SIGHUP are passed on. It ends with its server when that ends with status 0, was told to stop, or
    has no session yet. A server that dies too often is given up, and its filesystem unmounted.
    """
    RUN.mkdir(mode=0o700, parents=True, exist_ok=True)
    address = str(RUN / f"keeper-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)  # of a container's first process before this one
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(address)
        notified.setblocking(False)
        try:
            return _Keeper(command, notified).run()
        finally:
            os.unlink(address)


class _Keeper:
    def __init__(self, command: Sequence[str], notified: socket.socket) -> None:
        self._command, self._notified = command, notified
        self._kept: list[int] = []
        self._server = 0
        self._told_to_stop = False

    def run(self) -> int:
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        starts: collections.deque[float] = collections.deque(maxlen=STARTS)
        while len(starts) < STARTS or time.monotonic() - starts[0] > PERIOD:
            starts.append(time.monotonic())
            status = self._serve(woken)
            if not status or self._told_to_stop or not self._kept:
                break
            log.warning("the server ended with status %d: starting it again", status)
        else:
            log.error("the server ended %d times within %.0f s: giving up and unmounting", STARTS, PERIOD)
        if status or self._told_to_stop:
            self._unmount()
        return status if status >= 0 else 128 - status

    def _unmount(self) -> None:
        session = _session_of(self._kept)
        if session is not None:
            with contextlib.suppress(OSError):  # the server has done it, and has failed after that
                unmount(session.mountpoint)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._told_to_stop |= number != signal.SIGHUP
        if self._server:
            os.kill(self._server, number)

    def _serve(self, woken: int) -> int:
        """One life of the server; its status, negative for a signal."""
        self._server = os.fork()
        if not self._server:
            self._become_server()
        status: Optional[int] = None
        while status is None:
            select.select([self._notified, woken], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 64)
            status = self._reap()
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._take(*_receive(self._notified))
        self._server = 0
        return status

    def _become_server(self) -> None:
        try:
            os.setpgid(0, 0)  # a terminal's signals are the keeper's to pass on
            address = self._notified.getsockname()  # now: one of the descriptors may take this one's number
            spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in self._kept]
            for target, fd in enumerate(spare, 3):
                os.dup2(fd, target)
            listen = {"PID": os.getpid(), "FDS": len(spare), "FDNAMES": ":".join([NAME] * len(spare))}
            environment = {f"LISTEN_{name}": str(value) for name, value in listen.items()}
            os.execvpe(self._command[0], list(self._command), {**os.environ, **environment, "NOTIFY_SOCKET": address})
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
        if b"FDSTOREREMOVE=1" in lines:
            discarded, self._kept = self._kept, []
        elif b"FDSTORE=1" in lines:
            discarded, self._kept = self._kept, descriptors
        else:
            discarded = descriptors
        for fd in discarded:
            os.close(fd)
