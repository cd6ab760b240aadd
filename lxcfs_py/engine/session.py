"""A FUSE session, and who keeps it while no server runs.

A session is two descriptors: /dev/fuse, whose closing by its last holder ends the mount, and a memory file with what
one server must know of the one before: the requests that it had taken, and the texts that readers are in the middle
of. A server may die at any moment. Whoever holds both descriptors goes on where it stopped:

- systemd's descriptor store (`store_with_systemd`, `inherit`),
- a server that makes way for a new one (`offer`, `take_over`),
- a process above the server (keeper.py), which does for it what systemd would.

The memory file belongs to the process that has it locked. The kernel drops the lock when that process is gone with all
its threads, and not before: no two servers ever answer at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

from lxcfs_py.engine import open_texts, protocol, waiting
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import syscalls
from lxcfs_py.linux.digest import digest

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

_PAGE = 4096
# What is below is laid out in memory, above the texts, and for good: each version of this program must be able to go on
# from every other's.
_MAGIC = b"lxcfs-py"
_HEADER = struct.Struct("=8sIIII")  # magic, texts' version, minor and flags that INIT agreed on, mountpoint's length
_TEXTS_VERSION = 8
_NEGOTIATED = 12
_SLOT = protocol.MIN_READ_BUFFER
_TEXTS = _PAGE + SLOTS * _SLOT
_WAITING = 192 << 20  # the texts end before; versions before this one know nothing of it
_END = _WAITING + waiting.size()
_MINE = b"mine"
_UCRED = struct.Struct("=iII")  # pid, uid, gid


class SessionError(LxcfsError):
    """A session can't be had, in one sentence for the operator."""


class Session:
    """The two descriptors, and the memory file's parts: a header page, the slots, the texts.

    `slots` are writable views of the requests at hand, one for each worker; `texts` is for the filesystem. Neither is
    this process's before `claim`.
    """

    def __init__(self, fuse: int, memory: int) -> None:
        """SessionError if that is no session's memory file."""
        self.fuse, self.memory = fuse, memory
        self.predecessor: Optional[socket.socket] = None
        if os.fstat(memory).st_size < _END:  # another version kept fewer
            os.ftruncate(memory, _END)
        self._map = mmap.mmap(memory, 0)
        magic, *_, length = _HEADER.unpack_from(self._map)
        if magic != _MAGIC:
            raise SessionError(f"the memory file that was kept begins with {magic!r}: it is no session's")
        self.mountpoint = os.fsdecode(self._map[_HEADER.size : _HEADER.size + length])
        view = memoryview(self._map)
        self.slots = [view[_PAGE + n * _SLOT : _PAGE + (n + 1) * _SLOT] for n in range(SLOTS)]
        self.texts = open_texts.Texts(self._map, _TEXTS)
        self.waiting = waiting.Slots(self._map, _WAITING, OPCODE)
        self.left_waiting: list[memoryview] = []

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
        if struct.unpack_from("=I", self._map, _TEXTS_VERSION) != (open_texts.VERSION,):
            self.texts.clear()
            struct.pack_into("=I", self._map, _TEXTS_VERSION, open_texts.VERSION)
        self.texts.load()
        self.left_waiting = self.waiting.load()

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
        pid = _claimed_by(self.memory)
        if pid is None:
            return True
        log.warning("process %d does not leave the session of %s: killing it", pid, self.mountpoint)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid > 0


def create(mountpoint: str, options: str = "") -> Session:
    """Mount at `mountpoint`, an absolute path, with more options of mount(2) if there are any.

    SessionError if that fails.
    """
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SessionError(f"can't open /dev/fuse: {error.strerror}; load the module fuse, be root") from error
    try:
        own = f"fd={fuse},rootmode=40755,user_id=0,group_id=0,allow_other"
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("lxcfs", mountpoint, "fuse.lxcfs", flags, ",".join(filter(None, (own, options))))
    except OSError as error:
        os.close(fuse)
        raise SessionError(f"can't mount on {mountpoint}: {error.strerror}") from error
    return Session(fuse, new_memory(mountpoint))


def new_memory(mountpoint: str) -> int:
    """An empty memory file for a session at `mountpoint`."""
    memory = os.memfd_create("lxcfs-py", os.MFD_CLOEXEC)
    os.ftruncate(memory, _END)
    path = os.fsencode(mountpoint)
    os.pwrite(memory, _HEADER.pack(_MAGIC, open_texts.VERSION, 0, 0, len(path)) + path, 0)
    return memory


def session_of(descriptors: Sequence[int]) -> Optional[Session]:
    """The session that these make up, or None, and they are closed, if they don't or its mount is gone."""
    fuse = [fd for fd in descriptors if stat.S_ISCHR(os.fstat(fd).st_mode)]
    memory = [fd for fd in descriptors if stat.S_ISREG(os.fstat(fd).st_mode)]
    if len(fuse) == len(memory) == 1 and len(descriptors) == 2 and not is_over(fuse[0]):
        return Session(fuse[0], memory[0])
    for fd in descriptors:
        os.close(fd)
    return None


def is_served(memory: int) -> bool:
    """Tell whether a process has claimed the session of a memory file, and lives."""
    return _claimed_by(memory) is not None


def _claimed_by(memory: int) -> Optional[int]:
    """Return the process that has the lock, 0 for one of another pid namespace; None when nobody has it."""
    flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(memory, fcntl.F_GETLK, flock))
    return None if kind == fcntl.F_UNLCK else int(pid)


def is_over(fuse: int) -> bool:
    """Tell whether what this /dev/fuse serves is mounted nowhere any more."""
    poll = select.poll()
    poll.register(fuse, 0)
    return bool(poll.poll(0))  # POLLERR


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptors that came with it."""
    message, descriptors, _, _ = socket.recv_fds(connection, 4096, 8)
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return message, descriptors


def wait_for(memory: int) -> int:
    """Tell who asks `somebody_waits_for` that this process would serve a session, until the result is closed."""
    mark = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(mark, fcntl.LOCK_SH)
    return mark


def somebody_waits_for(memory: int) -> bool:
    """Tell whether a process of before would serve this session again."""
    mark = os.open(f"/proc/self/fd/{memory}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(mark)
    return False


# systemd's descriptor store


def inherit() -> Optional[Session]:
    """The session that whoever started this process has kept; None if there is none, or another process serves it."""
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()):
        return None
    descriptors = [3 + n for n, name in zip(range(int(count or 0)), names.split(":")) if name == NAME]
    for fd in descriptors:
        os.set_inheritable(fd, False)
    session = session_of(descriptors)
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
    remove_from_store()
    _notify(f"FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0", [session.fuse, session.memory])
    return True


def remove_from_store() -> None:
    """Let whoever started this process keep no session any longer."""
    if "NOTIFY_SOCKET" in os.environ:
        _notify(f"FDSTOREREMOVE=1\nFDNAME={NAME}", [])


def _notify(message: str, descriptors: list[int]) -> None:
    address = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        socket.send_fds(notify, [message.encode()], descriptors)


# From one running server to the next


def _socket_path(mountpoint: str) -> str:
    return str(RUN / digest(mountpoint).hex())


def was_offered(mountpoint: str) -> bool:
    """Tell whether a server of this program has served there since the machine's start, and was not stopped."""
    return os.path.exists(_socket_path(mountpoint))


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
        _, descriptors = receive(connection)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError as error:
        raise SessionError(f"the server at {mountpoint} does not hand it over ({error}): stop that server") from error
    session = session_of(descriptors)
    if session is not None:
        session.predecessor = connection
    return session
