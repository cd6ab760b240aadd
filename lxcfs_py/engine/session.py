"""A FUSE session, and who keeps it while no server runs.

A session is two descriptors: /dev/fuse, whose closing by its last holder ends the mount, and a memory file with what
one server must know of the one before: the requests that it had taken, and the texts that readers are in the middle
of. A server may die at any moment. Whoever holds both descriptors goes on where it stopped:

- systemd's descriptor store (store.py),
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
from collections.abc import Mapping, Sequence
from typing import Callable, Optional

from lxcfs_py.engine import open_texts, protocol, waiting
from lxcfs_py.errors import LxcfsError, of_system
from lxcfs_py.linux import limits, peer, runtime_directory, serving, syscalls, threads

log = logging.getLogger(__name__)

SLOTS = 32  # the most workers that a server can have

# Bytes of a slot that say more than the kernel wrote there. Single bytes: a server that is killed, at whatever
# instruction, has either written one or not.
OPCODE = 4 if sys.byteorder == "little" else 7  # in IN_HEADER.opcode; 0 when the slot holds no request
CALLER = 32  # IN_HEADER.pid, four bytes
SETTLED = 38  # in IN_HEADER.padding, 0 from the kernel; 1 when a read's text, or whose a file's trigger is, is settled
ATTEMPTS = 39  # in IN_HEADER.padding; how many servers took this request up from another

PATIENCE = 5.0  # seconds that another server is given to answer, and to leave

_PAGE = 4096
# What is below is laid out in memory, above the texts, and for good: each version of this program must be able to go on
# from every other's.
_MAGIC = b"lxcfs-py"
_HEADER = struct.Struct("=8sIIII")  # magic, texts' version, minor and flags that INIT agreed on, mountpoint's length
_TEXTS_VERSION = 8
_NEGOTIATED = 12
_DEVICE = _PAGE - 8  # four bytes: the minor number of the mount's device; 0 where that is not known
_STARTS = _PAGE - 4  # one byte: how many servers in a row were started for it and have not served
_SHOWS_MACHINE = _PAGE - 3  # one byte: 1 when all files show the machine's figures
_SLOT = protocol.MIN_READ_BUFFER
_TEXTS = _PAGE + SLOTS * _SLOT
_WAITING = 192 << 20  # the texts end before; versions before this one know nothing of it
_END = _WAITING + waiting.size()
_DESCRIPTORS = 64  # more than a server opens from when it has the session until it serves a first container
_MINE = b"mine"
_MOST_SENT = 64  # descriptors in one message
Others = Callable[[], Mapping[str, int]]
"""Gives the descriptors beside the session, by name."""


class SessionError(LxcfsError):
    """A session can't be had, in one sentence for the operator."""


class TakenError(SessionError):
    """Another process has got it first, and can be asked for it in turn."""


class Session:
    """The two descriptors, and the memory file's parts: a header page, the slots, the texts.

    `slots` are writable views of the requests at hand, one for each worker; `texts` is for the filesystem. Neither is
    this process's before `claim`.
    """

    def __init__(self, fuse: int, memory: int) -> None:
        """SessionError if that is no session's memory file."""
        self.fuse, self.memory = fuse, memory
        self.predecessor: Optional[socket.socket] = None
        self.others: list[tuple[str, int]] = []
        """What the server before this one has handed over beside the session, by name; known after `claim`."""

        self.is_salvaged = False
        """Tells whether its memory file is a new one, which does not know the mountpoint by itself."""

        try:
            if os.fstat(memory).st_size < _END:  # another version kept fewer
                os.ftruncate(memory, _END)
            self._map = mmap.mmap(memory, 0)
        except OSError as error:
            raise SessionError(f"the memory file cannot be used: {error.strerror}") from error
        magic, *_, length = _HEADER.unpack_from(self._map)
        self.mountpoint = os.fsdecode(self._map[_HEADER.size : min(_HEADER.size + length, _DEVICE)])
        if magic != _MAGIC or not self.mountpoint.startswith("/") or "\0" in self.mountpoint:
            raise SessionError(f"the memory file that was kept begins with {self._map[:64]!r}: it is no session's")
        view = memoryview(self._map)
        self.slots = [view[_PAGE + n * _SLOT : _PAGE + (n + 1) * _SLOT] for n in range(SLOTS)]
        self.texts = open_texts.Texts(self._map, _TEXTS)
        self.waiting = waiting.Slots(self._map, _WAITING, OPCODE)
        self.left_waiting: list[memoryview] = []

    def move(self, mountpoint: str) -> None:
        """Note another mountpoint."""
        path = os.fsencode(mountpoint)
        self._map[_HEADER.size : _HEADER.size + len(path)] = path
        struct.pack_into("=I", self._map, _HEADER.size - 4, len(path))
        self.mountpoint = mountpoint

    def negotiated(self, minor: int, flags: int) -> None:
        """Note what INIT agreed on, which the kernel tells only once."""
        struct.pack_into("=II", self._map, _NEGOTIATED, minor, flags)

    @property
    def agreed(self) -> tuple[int, int]:
        """The minor version and flags that INIT agreed on; zeros when the kernel has not asked yet."""
        minor, flags = struct.unpack_from("=II", self._map, _NEGOTIATED)
        return minor, flags

    @property
    def device(self) -> str:
        """The mount's device as mountinfo has it, "0:45"; "" where no server has noted it."""
        (minor,) = struct.unpack_from("=I", self._map, _DEVICE)
        return f"0:{minor}" if minor else ""

    @device.setter
    def device(self, device: str) -> None:
        struct.pack_into("=I", self._map, _DEVICE, int(device.rpartition(":")[2] or 0))

    @property
    def starts(self) -> int:
        """How many servers in a row were started for it and have not served; at most 255."""
        return self._map[_STARTS]

    @starts.setter
    def starts(self, count: int) -> None:
        self._map[_STARTS] = min(count, 255)

    @property
    def shows_machine(self) -> bool:
        """Whether all files show the machine's figures, because somebody wanted it so."""
        return bool(self._map[_SHOWS_MACHINE])

    @shows_machine.setter
    def shows_machine(self, wanted: bool) -> None:
        self._map[_SHOWS_MACHINE] = wanted

    def claim(self) -> None:
        """Make the session this process's own: let its server leave, wait until it is gone, kill it if it does not go.

        SessionError if that does not help; OSError, before its server is told, if too few descriptors are to be had.
        """
        with contextlib.ExitStack() as spare:  # what else the server hands over must not take the last ones
            if self.predecessor is not None:
                spare.enter_context(limits.spare_descriptors(_DESCRIPTORS))
                self.starts = max(self.starts, 1)
                with contextlib.suppress(OSError):  # gone already
                    self.predecessor.send(_MINE)
            if not self._lock_within(PATIENCE):
                self._kill_owner()
                if not self._lock_within(PATIENCE):
                    raise SessionError(
                        f"another process holds the session of {self.mountpoint} and can't be ended: stop it"
                    )
            self._receive_others()
        if struct.unpack_from("=I", self._map, _TEXTS_VERSION) != (open_texts.VERSION,):
            self.texts.clear()
            struct.pack_into("=I", self._map, _TEXTS_VERSION, open_texts.VERSION)
        self.texts.load()
        self.left_waiting = self.waiting.load()

    def _receive_others(self) -> None:
        while self.predecessor is not None:
            message = b""
            with contextlib.suppress(OSError):
                message, descriptors = receive(self.predecessor)
                self.others += zip(message.decode().split("\n"), descriptors)
            if not message:
                self.predecessor = None

    def is_claimable(self) -> bool:
        """Whether no live process serves this session; claims it if so."""
        return self._lock_within(0)

    def close(self) -> None:
        """Let go of it. What others hold of it stays."""
        os.close(self.fuse)
        os.close(self.memory)

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

    def _kill_owner(self) -> None:
        """Kill the process that has the lock; whatever it had at hand is in the slots.

        SessionError where it cannot be named.
        """
        pid = _claimed_by(self.memory)
        if pid is None:
            return
        if not pid:
            raise SessionError(
                f"a process of another pid namespace holds the session of {self.mountpoint} and does not leave: stop it"
            )
        log.warning("process %d does not leave the session of %s: killing it", pid, self.mountpoint)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def create(mountpoint: str, options: str = "") -> Session:
    """Mount at `mountpoint`, an absolute path, with more options of mount(2) if there are any.

    SessionError if that fails.
    """
    with contextlib.ExitStack() as unless_mounted:
        try:
            fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SessionError(f"can't open /dev/fuse: {error.strerror}; load the module fuse, be root") from error
        unless_mounted.callback(os.close, fuse)
        try:
            memory = new_memory(mountpoint)
        except OSError as error:
            raise SessionError(f"can't make a memory file for {mountpoint}: {error.strerror}") from error
        unless_mounted.callback(os.close, memory)
        made = Session(fuse, memory)
        own = f"fd={fuse},rootmode=40755,user_id=0,group_id=0,allow_other"
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        try:  # last of all: where anything fails after it, a mount is left that nobody serves
            syscalls.mount("lxcfs", mountpoint, "fuse.lxcfs", flags, ",".join(filter(None, (own, options))))
        except OSError as error:
            because = f" with {options}: has this kernel SELinux?" if options and error.errno == errno.EINVAL else ""
            raise SessionError(f"can't mount on {mountpoint}: {error.strerror}{because}") from error
        unless_mounted.pop_all()
    return made


def new_memory(mountpoint: str, agreed: tuple[int, int] = (0, 0)) -> int:
    """An empty memory file for a session at `mountpoint`, with what INIT agreed on, if it has."""
    memory = os.memfd_create("lxcfs-py", os.MFD_CLOEXEC)
    os.ftruncate(memory, _END)
    path = os.fsencode(mountpoint)
    os.pwrite(memory, _HEADER.pack(_MAGIC, open_texts.VERSION, *agreed, len(path)) + path, 0)
    return memory


def session_of(descriptors: Sequence[int], mountpoint: str) -> Optional[Session]:
    """The session that these make up; None if its mount is gone.

    /dev/fuse alone is enough: where no memory file can be used, a new one takes its place, for a session at
    `mountpoint`.
    """
    fuse = next((fd for fd in descriptors if stat.S_ISCHR(os.fstat(fd).st_mode) and not is_over(fd)), None)
    if fuse is None:
        return None
    problem = "there is none"
    memories = [fd for fd in descriptors if stat.S_ISREG(os.fstat(fd).st_mode)]
    for memory in memories:
        try:
            return Session(fuse, memory)
        except SessionError as error:
            problem = str(error)
    log.error(
        "the session goes on with a new memory file, and who is in the middle of a file goes on in another text: %s",
        problem,
    )
    session = Session(fuse, _salvage(memories, mountpoint))
    session.is_salvaged = True
    return session


def _salvage(memories: Sequence[int], mountpoint: str) -> int:
    """A new memory file, with the requests that old ones may have: the kernel refuses a wrong answer.

    What the end of the header says goes with those at hand, where its beginning is that of a header.
    """
    new = new_memory(mountpoint, (protocol.KERNEL_MINOR_VERSION, protocol.WANTED))
    for old in memories:
        with contextlib.suppress(OSError):
            first = _DEVICE if os.pread(old, len(_MAGIC), 0) == _MAGIC else _PAGE
            for start, end in ((first, _TEXTS), (_WAITING, _END)):
                os.pwrite(new, os.pread(old, end - start, start), start)
    return new


def is_served(memory: int) -> bool:
    """Tell whether a process has claimed the session of a memory file, and lives."""
    return _claimed_by(memory) is not None


def _claimed_by(memory: int) -> Optional[int]:
    """Return the process that has the lock, 0 for one of another pid namespace; None when nobody has it."""
    flock = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(memory, fcntl.F_GETLK, flock))
    return None if kind == fcntl.F_UNLCK else int(pid)


def has_come_to_serve(memory: int) -> bool:
    """Tell whether the last server that was started for the session of a memory file has come to serve it."""
    return os.pread(memory, 1, _STARTS) == b"\0"


def is_over(fuse: int) -> bool:
    """Tell whether what this /dev/fuse serves is mounted nowhere any more."""
    poll = select.poll()
    poll.register(fuse, 0)
    return bool(poll.poll(0))  # POLLERR


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A message and the descriptors that came with it."""
    message, descriptors, _, _ = socket.recv_fds(connection, 4096, _MOST_SENT)
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


# From one running server to the next


def was_offered(mountpoint: str) -> bool:
    """Tell whether a server of this program has served there since the machine's start, and was not stopped."""
    return os.path.exists(runtime_directory.path_of(mountpoint))


def offer(session: Session, leave: Callable[[], None], others: Others = dict) -> Callable[[], object]:
    """Let a later server take the session over, and what `others` gives then. OSError.

    `leave` is called, in another thread, when one does. What is returned ends the offer: whoever has been sent the
    session by then has PATIENCE to say that it takes it, and then `leave` has been called.
    """
    runtime_directory.make(runtime_directory.PATH)
    path = runtime_directory.path_of(session.mountpoint)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{path}.new")
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # over a predecessor's: whoever finds it, finds it answered
    turn = threading.Lock()
    try:
        threads.start(_hand_over, session, others, listener, leave, turn, name="offer")
    except OSError:
        listener.close()
        raise
    return turn.acquire  # for good: whoever comes then waits for this process's end


def withdraw(mountpoint: str) -> None:
    """Offer the session at a mountpoint no longer: it is about to end."""
    with contextlib.suppress(OSError):
        os.unlink(runtime_directory.path_of(mountpoint))


def _hand_over(
    session: Session, others: Others, listener: socket.socket, leave: Callable[[], None], turn: threading.Lock
) -> None:
    taken = False
    while not taken:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # there is no descriptor to be had
            log.warning("a process that wants to take %s over is kept waiting: %s", session.mountpoint, error.strerror)
            time.sleep(1)
            continue
        with connection, turn:
            taken = _is_taken(connection, session)
            if taken:
                log.info("process %d takes %s over", peer.of(connection)[0], session.mountpoint)
                _send_others(connection, others)
                listener.close()
                leave()


def _is_taken(connection: socket.socket, session: Session) -> bool:
    """Send the session to who asks for it; return whether it takes it."""
    with contextlib.suppress(OSError):
        _, uid = peer.of(connection)
        if uid == 0:
            connection.settimeout(PATIENCE)
            socket.send_fds(connection, [b"session"], [session.fuse, session.memory])
            return connection.recv(len(_MINE)) == _MINE
    return False


def _send_others(connection: socket.socket, others: Others) -> None:
    # With a timeout, a send would wait for a queue that is three quarters empty, and the successor reads only when this
    # process has left.
    connection.settimeout(None)
    with contextlib.suppress(OSError):
        named = list(others().items())
        for start in range(0, len(named), _MOST_SENT):
            names, descriptors = zip(*named[start : start + _MOST_SENT])
            socket.send_fds(connection, ["\n".join(names).encode()], descriptors)


def take_over(mountpoint: str) -> Optional[Session]:
    """The session of the server that runs at `mountpoint`; it leaves at `claim`. None if there is no such server.

    TakenError where it hands over to another at this moment, SessionError if it does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(PATIENCE)
    try:
        connection.connect(runtime_directory.path_of(mountpoint))
        stranger = peer.stranger(connection)
        if stranger:
            log.warning("%s listens for who takes %s over, and is not asked", stranger, mountpoint)
            return None
        _, descriptors = receive(connection)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except ConnectionResetError:
        raise TakenError(f"the server at {mountpoint} has just handed it over to another") from None
    except OSError as error:
        silent = f"the server at {mountpoint} does not hand it over ({of_system(error)}): stop that server"
        raise SessionError(silent, serving.cure(mountpoint, peer.of(connection)[0])) from error
    session = session_of(descriptors, mountpoint)
    if session is not None:
        session.predecessor = connection
    return session
