"""The kernel engine: FUSE spoken on /dev/fuse itself, in a session that outlives the process that serves it.

Each worker reads a request into its own slot of the session's memory, answers it and clears the slot. What a server
had taken and not answered when it died is in the slots, and the next one answers it.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import os
import select
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Callable

from lxcfs_py.container.owners import Owners
from lxcfs_py.engine import End, Tree, protocol
from lxcfs_py.engine.session import ATTEMPTS, CALLER, OPCODE, SETTLED, Session, create
from lxcfs_py.engine.sizes import SIZE, Sizes, has_end
from lxcfs_py.engine.triggers import Triggers
from lxcfs_py.engine.turns import Relay
from lxcfs_py.engine.waiting import Crowd, Queue
from lxcfs_py.files import DIRECTORIES, FILES
from lxcfs_py.linux import threads
from lxcfs_py.linux.digest import digest

log = logging.getLogger(__name__)

THREADS = 4
LASTING = 3600  # seconds for which the kernel may keep a name and its attributes
TREES = {f"/{name}/": FILES[name].lasting for name in DIRECTORIES}  # below them, names come and go
WALK_AGAIN = 1.0  # seconds from a walk of the whole tree, for a node that a predecessor had numbered, to the next
DRAIN = 3.0  # seconds that requests at hand are given when the server stops; a slow machine needs more than one
LOOK = 32  # requests of a lone reader after which it looks how many wait; more and more where few do
RARELY = 256
MANY = 16  # requests that wait: from so many on they are served fairly, not in the kernel's order
BURST = 0.0003  # seconds between two looks at what has come, while only one container's requests wait
AS_MACHINE = 8  # servers that may die of one request before it is answered as if the machine itself had asked
MAX_ATTEMPTS = 100  # servers that may die of one request before it is refused
MAX_BACKGROUND = 512  # releases that the kernel hands out at a time: among 12, one container's keep all others back

OPENED = (
    protocol.FOPEN_DIRECT_IO
    | protocol.FOPEN_KEEP_CACHE
    | protocol.FOPEN_NOFLUSH
    | protocol.FOPEN_PARALLEL_DIRECT_WRITES
)
"""How files are open. There is never anything in the page cache: without the second flag, each open would throw it away
all the same, and wait for whoever tries to read by way of it, in whatever container. Nor is there anything to flush:
without the third, each close would take the inode's lock to see that (before Linux 6.18 at least), and wait for whoever
changes attributes, until that is refused. Without the fourth, each write would keep that lock until it is answered, and
all who write triggers, in whatever container, would wait for one another. Those that append, or write behind the size
that is shown, still do."""

_HEADER = protocol.IN_HEADER.size
_REPLY_HEADER = protocol.OUT_HEADER.size
_parse_header = protocol.IN_HEADER.unpack_from
_make_header = protocol.OUT_HEADER.pack
_REFUSED = {
    protocol.IOCTL: errno.ENOTTY,  # Python's open() asks every file whether it is a terminal
    **dict.fromkeys(protocol.WRITING, errno.EROFS),
}  # all else is ENOSYS; of FLUSH and the extended attributes, the kernel remembers that

_SILENT = (protocol.FORGET, protocol.BATCH_FORGET, protocol.INTERRUPT)
"""Messages without a reply, for which there is nothing to do: nodes follow from the tree, and whoever was interrupted
gets the answer all the same. ENOSYS would have the kernel interrupt no reader of this mount any more: whoever waits for
an answer would then be in state D, which counts as blocked."""

Handler = Callable[[memoryview, int, int], bytes]  # (request, node id, caller's pid or thread id) -> the reply's body


def serve(tree: Tree, mountpoint: str, threads: int = THREADS) -> None:
    """Mount `tree` at `mountpoint` and serve it until it is unmounted. SessionError if mounting fails."""
    server = Server(tree, create(mountpoint), threads)
    server.start()
    server.wait()


class Nodes:
    """Node ids and paths. The id follows from the path, so that it means the same in every server."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._paths = {protocol.ROOT_ID: "/"}
        self._walking = threading.Lock()
        self._walk_again = 0.0

    def number(self, path: str) -> int:
        """The node id of `path`. OSError EIO should another path have the same, once in 2**63."""
        if path == "/":
            return protocol.ROOT_ID
        node = int.from_bytes(digest(path), "big") >> 1
        known = self._paths.setdefault(node, path)
        if known != path:
            raise OSError(errno.EIO, f"{path} and {known} have the same node id {node}")
        return node

    def path(self, node: int) -> str:
        """The path of a node id, also of one that a predecessor handed out. OSError ESTALE if there is none."""
        return self._paths.get(node) or self._find(node)

    def name(self, node: int) -> str:
        """What to call a node in a message."""
        return self._paths.get(node, f"node {node}")

    def _find(self, node: int) -> str:
        """Number the whole tree until `node` turns up. Where it did not, it is not looked for at once again."""
        with self._walking:
            if node not in self._paths and time.monotonic() >= self._walk_again:
                for path in self._tree.paths():
                    if self.number(path) == node:
                        break
                else:
                    self._walk_again = time.monotonic() + WALK_AGAIN
        if node not in self._paths:
            raise OSError(errno.ESTALE, f"no file has the node id {node}")
        return self._paths[node]


def owner_in(request: memoryview) -> tuple[int, int]:
    """Return the pid and uid in a request."""
    pid: int
    uid: int
    uid, pid = protocol.OWNER.unpack_from(request, protocol.OWNER_OFFSET)
    return pid, uid


def child(directory: str, name: str) -> str:
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def lasting(path: str) -> int:
    """For how many seconds the kernel may keep a path's name and attributes."""
    return next((seconds for directory, seconds in TREES.items() if path.startswith(directory)), LASTING)


def inode(node: int) -> int:
    """The inode number to show: what also the stat(2) of old 32-bit programs has room for."""
    return node & 0xFFFFFFFF or 1


def reply(unique: int, body: bytes) -> bytes:
    return protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), 0, unique) + body


def refusal(unique: int, number: int) -> bytes:
    """A reply with an errno; the kernel takes none that is not below 512."""
    return protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size, -number if 0 < number < 512 else -errno.EIO, unique)


def describe(error: Exception) -> str:
    """An exception and where it was raised, in one line."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return f"{error!r} at {place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else repr(error)


def attributes(node: int, st: Mapping[str, Any], size: int = SIZE) -> bytes:
    """A fuse_attr from what a tree's getattr returns, of a file of that size."""
    size = size if stat.S_ISREG(st["st_mode"]) else 0
    times = [st.get(name, 0) for name in ("st_atime", "st_mtime", "st_ctime")]
    return protocol.ATTR.pack(
        inode(node),
        size,
        (size + 511) // 512,
        *[int(seconds) for seconds in times],
        *[int(seconds % 1 * 1e9) for seconds in times],
        st["st_mode"],
        st.get("st_nlink", 1),
        st.get("st_uid", 0),
        st.get("st_gid", 0),
        st.get("st_rdev", 0),
        size,
        0,
    )


class Server:
    """Answers the requests of one session with `threads` workers."""

    def __init__(self, tree: Tree, session: Session, threads: int = THREADS) -> None:
        self._tree = tree
        self._session = session
        self._workers = [
            threading.Thread(target=self._work, args=(number,), name=f"fuse-{number}", daemon=True)
            for number in range(min(threads, len(session.slots)))
        ]
        self._is_ours = threading.Event()
        self._gives_up = False
        self._nodes = Nodes(tree)
        # Handles are unique over all processes that serve this mount one after the other.
        self._handles = itertools.count(time.monotonic_ns())  # a clock that nobody sets back
        self._sizes = Sizes(tree.lengths())
        self._relay = Relay(session.slots)
        self._queue = Queue()
        self._owners = Owners()
        self._triggers = Triggers(tree, session.texts, self._wake)
        self._reasons: SimpleQueue[End] = SimpleQueue()
        self._handlers: dict[int, tuple[Handler, int]] = {  # and the least that a request has after its header
            protocol.INIT: (self._init, protocol.INIT_IN.size),
            protocol.LOOKUP: (self._lookup, 2),
            protocol.GETATTR: (self._getattr, protocol.GETATTR_IN.size),
            protocol.READLINK: (self._readlink, 0),
            protocol.SETATTR: (self._setattr, protocol.SETATTR_IN.size),
            protocol.OPEN: (self._open, protocol.OPEN_IN.size),
            protocol.READ: (self._read, protocol.READ_IN.size),
            protocol.WRITE: (self._write, protocol.WRITE_IN.size),
            protocol.POLL: (self._poll, protocol.POLL_IN.size),
            protocol.RELEASE: (self._release, protocol.RELEASE_IN.size),
            protocol.OPENDIR: (self._opendir, 0),
            protocol.READDIR: (self._readdir, protocol.READ_IN.size),
            protocol.READDIRPLUS: (self._readdirplus, protocol.READ_IN.size),
            protocol.RELEASEDIR: (self._releasedir, protocol.RELEASE_IN.size),
            protocol.ACCESS: (self._access, protocol.ACCESS_IN.size),
            protocol.STATFS: (self._statfs, 0),
            protocol.GETLK: (self._getlk, 0),
            protocol.SETLK: (self._setlk, 0),
            protocol.SETLKW: (self._setlk, 0),
            protocol.DESTROY: (self._destroy, 0),
        }

    def start(self) -> None:
        """Take the session over from whoever serves it, and serve it.

        SessionError if it can't be had; OSError, before a server that runs is told to leave, if threads or descriptors
        can't.
        """
        try:
            for worker in self._workers:
                threads.begin(worker)
            self._session.claim()
        except Exception:
            self._gives_up = True
            self._is_ours.set()
            raise
        self._triggers.take_up()
        self._is_ours.set()
        if self._session.agreed != (0, 0):
            self._forget_attributes()

    def _forget_attributes(self) -> None:
        """Let the kernel ask anew for what it keeps of a predecessor, which may have given other attributes."""
        for path in itertools.takewhile(lambda path: not path.startswith(tuple(TREES)), self._tree.paths()):
            self._notify(protocol.NOTIFY_INVAL_INODE, self._inval_inode(path))

    def _wake(self, waits: int) -> None:
        """Let who waits in poll(2) for an open file, by the kernel's name, ask again."""
        self._notify(protocol.NOTIFY_POLL, protocol.NOTIFY_POLL_OUT.pack(waits))

    def _inval_inode(self, path: str) -> bytes:
        return protocol.NOTIFY_INVAL_INODE_OUT.pack(self._nodes.number(path), -1, 0)

    def stop(self, reason: End) -> None:
        """Take no more requests and let `wait` return `reason`. Fit for signal handlers."""
        self._relay.stop()
        self._reasons.put(reason)

    def _end(self, error: OSError) -> None:
        """Stop because of what read(2) says."""
        if error.errno != errno.ENODEV:
            log.error("/dev/fuse cannot be read: %s", error.strerror)
        self.stop(End.UNMOUNTED if error.errno == errno.ENODEV else End.FAILED)

    def wait(self) -> End:
        """Block until the server is stopped or unmounted and, for DRAIN at most, has answered what it holds.

        Returns why it stopped. A worker that is waiting in read(2) can't be called back: until the process ends it may
        take one more request, which it answers, or the successor does.
        """
        reason = self._reasons.get()
        deadline = time.monotonic() + DRAIN
        while self._holds_requests() and time.monotonic() < deadline:
            time.sleep(0.001)
        return reason

    def _holds_requests(self) -> bool:
        return bool(self._queue) or any(slot[OPCODE] for slot in (*self.at_hand, *self._session.left_waiting))

    @property
    def at_hand(self) -> Sequence[memoryview]:
        """The requests that the workers are at, opcode 0 where a worker is at none."""
        return self._relay.at_hand

    def crowd(self) -> Crowd:
        """How it stands with requests that wait, and what each container, by its cgroup, had while many did."""
        return self._queue.crowd()

    def _notify(self, code: int, body: bytes) -> None:
        try:
            os.write(self._session.fuse, protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(body), code, 0) + body)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # it knew nothing of it, or is unmounted by now
                raise

    # One request, start to end

    def _work(self, number: int) -> None:
        self._is_ours.wait()
        if self._gives_up:
            return
        for slot in self._session.slots[number :: len(self._workers)]:
            if slot[OPCODE]:
                self._take_up(slot)
        if not number:
            for slot in self._session.left_waiting:
                self._relay.show(number, slot)
                self._take_up(slot)
                self._session.waiting.put(slot)
        slot = self._session.slots[number]
        self._relay.show(number, slot)
        slot[OPCODE] = slot[-1] = 0  # both pages are here now: SIGKILL must not cut the kernel's copying short
        while not self._relay.stopped:
            self._relay.stand_by(number)
            self._read_requests(number, slot)

    def _read_requests(self, number: int, slot: memoryview) -> None:
        """Answer requests as long as it is this worker's turn."""
        fuse, buffers, answer, relay = self._session.fuse, [slot], self._answer, self._relay
        patience = LOOK
        alone = LOOK if self._queue else 0  # requests in a row that this worker, alone, has answered
        while relay.reads(number):
            if alone >= patience:
                patience = LOOK if self._serve_fairly(number) else min(2 * patience, RARELY)
                alone = 0
                continue
            try:
                received = os.readv(fuse, buffers)
            except OSError as error:
                if error.errno == errno.ENOENT:  # its reader was killed before it was read
                    continue
                self._end(error)
                return
            if not received:
                self.stop(End.UNMOUNTED)
                return
            relay.begin(number)
            answer(slot, received)
            slot[OPCODE] = 0
            alone = alone + 1 if relay.companion is None else 0

    def _serve_fairly(self, number: int) -> bool:
        """Take what waits and serve the containers in turn, as long as many requests wait and it is this worker's turn.

        Return whether many did. Another worker that has got the turn meanwhile finds the same queue.
        """
        queue, relay, clock = self._queue, self._relay, time.perf_counter
        arrivals = select.poll()
        arrivals.register(self._session.fuse, select.POLLIN)
        many = False
        if relay.reader == number:
            relay.sharer = number
        while relay.reader == number and not relay.stopped and self._take_all(number, arrivals) >= MANY:
            until, many = clock() + BURST, True
            self._serve_next(number)
            while queue.lines == 1 and clock() < until:
                self._serve_next(number)
        if relay.sharer == number:
            relay.sharer = None
        # Few are left, or one that was taken just after others had got the turn. A reader that serves the queue by now
        # comes here too, later than what is in it: nobody leaves a request to one that has been here.
        while queue and not relay.shares:
            self._serve_next(number)
        relay.show(number, self._session.slots[number])
        return many

    def _take_all(self, number: int, arrivals: select.poll) -> int:
        """Take all requests that wait for a server; return how many wait in the queue.

        The kernel has no read for one file's readers that does not block, other than by a flag that a successor would
        inherit. So it is asked first. The request may be gone by then, with a reader that was killed: for as long as
        this read blocks, the relay sees a request at hand that does not change, and has another worker go on.
        """
        session, queue, relay = self._session, self._queue, self._relay
        rest = bytearray(protocol.MIN_READ_BUFFER)
        released = 0
        while arrivals.poll(0):
            slot = session.waiting.get()
            if slot is None:
                break
            waits = queue.first()
            relay.show(number, waits or slot)
            if waits is not None:
                relay.begin(number)
            try:
                received = os.readv(session.fuse, [slot, rest])
            except OSError as error:
                session.waiting.put(slot)
                if error.errno == errno.ENOENT:
                    continue
                self._end(error)
                break
            if not received:
                session.waiting.put(slot)
                self.stop(End.UNMOUNTED)
                break
            relay.begin(number)
            if slot[OPCODE] in _SILENT:
                session.waiting.put(slot)
            elif slot[OPCODE] == protocol.RELEASE:  # it names nobody: all of them would wait in one line
                self._answer(slot, received)
                session.waiting.put(slot)
                released += 1
                if released >= MANY and queue:
                    break
            else:
                queue.add(self._owners.of(*owner_in(slot)), slot, received, slot[OPCODE] in protocol.LOCKING)
            if relay.reader != number:
                break
        return len(queue)

    def _serve_next(self, number: int) -> None:
        """Answer whoever is next."""
        request = self._queue.next()
        if request is None:
            return
        self._relay.show(number, request.slot)
        self._relay.begin(number)
        began = time.perf_counter()
        self._answer(request.slot, request.length)
        self._session.waiting.put(request.slot)
        self._queue.charge(request, began, time.perf_counter())

    def _take_up(self, slot: memoryview) -> None:
        """Answer what a predecessor left in `slot`. Where it did answer and no more, the kernel refuses our reply."""
        length, opcode, unique, _, _ = protocol.IN_HEADER.unpack_from(slot)
        slot[ATTEMPTS] = min(slot[ATTEMPTS] + 1, 255)
        if slot[ATTEMPTS] > MAX_ATTEMPTS and opcode not in _SILENT:
            log.error("request %d (opcode %d) ended %d servers and is refused", unique, opcode, MAX_ATTEMPTS)
            self._send(refusal(unique, errno.EIO))
            slot[OPCODE] = 0
            return
        if slot[ATTEMPTS] > AS_MACHINE:  # whatever it is of its container that ends servers is then left alone
            slot[CALLER : CALLER + 4] = bytes(4)
        if opcode == protocol.READ:
            self._take_up_read(slot, length, unique)
        elif opcode == protocol.WRITE:
            self._take_up_write(slot, length)
        else:
            self._answer(slot, length)
        slot[OPCODE] = 0

    def _take_up_write(self, slot: memoryview, length: int) -> None:
        """Answer a write; where its file is closed by now, it has set no trigger."""
        handle, *_ = protocol.WRITE_IN.unpack_from(slot, _HEADER)
        held = self._triggers.holds(handle)
        if not self._answer(slot, length) and not held:
            self._triggers.drop(handle)

    def _take_up_read(self, slot: memoryview, length: int, unique: int) -> None:
        """Answer a read with the text that was rendered for it: its reader may have a part already, and go on in it."""
        handle, offset, size, flags = protocol.READ_IN.unpack_from(slot, _HEADER)
        if self._triggers.moved:
            offset = self._triggers.offset(handle, offset, owner_in(slot))
        texts = self._session.texts
        text = texts.get(handle)
        if text is not None and (offset or slot[SETTLED]) and flags & protocol.READ_LOCKOWNER:
            self._send(reply(unique, text[offset : offset + size]))
        elif not self._answer(slot, length) and text is None:
            texts.drop(handle)  # the file is closed, by a release that was taken after this read

    def _answer(self, slot: memoryview, received: int) -> bool:
        """Answer the request in `slot`; False if the kernel no longer waits for it."""
        length, opcode, unique, node, pid = _parse_header(slot)
        if length != received or length < _HEADER:
            log.warning("%d bytes from /dev/fuse that are no request: passed over", received)
            return False
        handler, least = self._handlers.get(opcode, (None, 0))
        if handler is None:
            return opcode in _SILENT or self._send(refusal(unique, _REFUSED.get(opcode, errno.ENOSYS)))
        try:
            if length < _HEADER + least:
                raise OSError(errno.EINVAL, "truncated request")
            body = handler(slot, node, pid)
            message = _make_header(_REPLY_HEADER + len(body), 0, unique) + body
        except OSError as error:
            message = refusal(unique, error.errno or errno.EIO)
        except Exception as error:
            log.error("%s of %s for process %d: %s", handler.__name__[1:], self._nodes.name(node), pid, describe(error))
            message = refusal(unique, errno.EIO)
        return self._send(message)

    def _send(self, message: bytes) -> bool:
        try:
            os.write(self._session.fuse, message)
        except OSError as error:
            # ENOENT: nobody waits for it any longer; otherwise the filesystem is gone, which the next read tells
            if error.errno == errno.EINVAL:
                log.error("the kernel refused a reply of %d bytes: %r", len(message), message[:64])
            return False
        return True

    # One method for each opcode: (request, node id, caller) -> body of the reply

    def _init(self, request: memoryview, _node: int, _caller: int) -> bytes:
        major, minor, max_readahead, offered = protocol.INIT_IN.unpack_from(request, _HEADER)
        if major < protocol.KERNEL_VERSION:
            raise OSError(errno.EPROTO, f"this kernel speaks FUSE {major}.{minor}")
        flags = offered & protocol.WANTED
        self._session.negotiated(min(minor, protocol.KERNEL_MINOR_VERSION), flags)
        version = (protocol.KERNEL_VERSION, protocol.KERNEL_MINOR_VERSION)
        return protocol.INIT_OUT.pack(*version, max_readahead, flags, MAX_BACKGROUND, 0, protocol.MAX_WRITE, 1)

    def _lookup(self, request: memoryview, node: int, _caller: int) -> bytes:
        """Find whatever is there for anybody: all share the kernel's entry for a name.

        Where it is said not to be there, the kernel unmounts what is mounted below it, in every mount namespace. What
        the caller must not see is refused to it by all else.
        """
        name = os.fsdecode(bytes(request[_HEADER:]).partition(b"\0")[0])
        if name in ("", ".", "..") or "/" in name:
            raise OSError(errno.EINVAL, f"{name!r} is no file name")
        path = child(self._nodes.path(node), name)
        return self._entry(path, self._tree.attributes(path))

    def _entry(self, path: str, st: Mapping[str, Any]) -> bytes:
        node = self._nodes.number(path)
        known = lasting(path)
        sure = known if has_end(path, st["st_mode"]) else 0
        return protocol.ENTRY_OUT.pack(node, 0, known, sure, 0, 0) + attributes(node, st, self._sizes.of(path))

    def _getattr(self, request: memoryview, node: int, caller: int) -> bytes:
        """Give the attributes, but of what has no end not to lseek(2), which alone asks for those of an open file.

        For it to ask, the kernel must not keep them. It asks again after each read anyway, for the time of that.
        """
        path = self._nodes.path(node)
        st = self._tree.getattr(caller, path)
        if has_end(path, st["st_mode"]):
            return protocol.ATTR_OUT.pack(lasting(path), 0, 0) + attributes(node, st, self._sizes.of(path))
        flags, _ = protocol.GETATTR_IN.unpack_from(request, _HEADER)
        if flags & protocol.GETATTR_FH:
            raise OSError(errno.EINVAL, f"a seek to the end of {path}")
        return protocol.ATTR_OUT.pack(0, 0, 0) + attributes(node, st, self._sizes.of(path))

    def _readlink(self, _request: memoryview, node: int, caller: int) -> bytes:
        return os.fsencode(self._tree.readlink(caller, self._nodes.path(node)))

    def _access(self, request: memoryview, node: int, caller: int) -> bytes:
        mask, _ = protocol.ACCESS_IN.unpack_from(request, _HEADER)
        self._tree.access(caller, self._nodes.path(node), mask)
        return b""

    def _statfs(self, _request: memoryview, _node: int, _caller: int) -> bytes:
        fs = self._tree.statfs()
        fields = ("f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_bsize", "f_namemax", "f_frsize")
        return protocol.STATFS_OUT.pack(*[fs.get(field, 0) for field in fields])

    def _open(self, request: memoryview, node: int, caller: int) -> bytes:
        flags, _ = protocol.OPEN_IN.unpack_from(request, _HEADER)
        self._tree.open(caller, self._nodes.path(node), flags)
        return protocol.OPEN_OUT.pack(next(self._handles), OPENED, 0)

    def _read(self, request: memoryview, node: int, caller: int) -> bytes:
        handle, offset, size, flags = protocol.READ_IN.unpack_from(request, _HEADER)
        if not flags & protocol.READ_LOCKOWNER:  # who reads next would find this caller's text in the page cache
            raise OSError(errno.EINVAL, "a read for the page cache")
        if self._triggers.moved:
            offset = self._triggers.offset(handle, offset, owner_in(request))
        texts = self._session.texts
        text = texts.get(handle) if offset else None
        if text is None:
            path = self._nodes.path(node)
            text = self._tree.render(caller, path)
            texts.put(handle, text, owner_in(request))
            self._sizes.note(path, len(text))
        if not offset:
            request[SETTLED] = 1  # from here on, this read has no other text
        return text[offset : offset + size]

    def _setattr(self, request: memoryview, node: int, caller: int) -> bytes:
        """Do nothing, where a file is opened for writing with O_TRUNC."""
        (valid,) = protocol.SETATTR_IN.unpack_from(request, _HEADER)
        if not valid & protocol.FATTR_SIZE or valid & ~protocol.FATTR_TRUNCATING:
            raise OSError(errno.EROFS, "attributes are as they are")
        path = self._nodes.path(node)
        self._tree.open(caller, path, os.O_WRONLY)
        return protocol.ATTR_OUT.pack(0, 0, 0) + attributes(node, self._tree.getattr(caller, path))

    def _write(self, request: memoryview, node: int, caller: int) -> bytes:
        handle, offset, size, flags = protocol.WRITE_IN.unpack_from(request, _HEADER)
        if request[SETTLED] and self._triggers.holds(handle):  # set by a predecessor that could not say so any more
            return protocol.WRITE_OUT.pack(size)
        start = _HEADER + protocol.WRITE_IN.size
        what = self._tree.trigger(caller, self._nodes.path(node), bytes(request[start : start + size]))
        request[SETTLED] = not self._triggers.holds(handle)
        self._triggers.set(handle, what, owner_in(request), offset, size, appends=bool(flags & os.O_APPEND))
        return protocol.WRITE_OUT.pack(size)

    def _poll(self, request: memoryview, node: int, caller: int) -> bytes:
        handle, name, flags, _ = protocol.POLL_IN.unpack_from(request, _HEADER)
        if not self._tree.getattr(caller, self._nodes.path(node))["st_mode"] & stat.S_IWOTH:
            return protocol.POLL_OUT.pack(protocol.POLL_ALWAYS)
        waits = name if flags & protocol.POLL_SCHEDULE_NOTIFY else 0
        return protocol.POLL_OUT.pack(self._triggers.poll(handle, waits, owner_in(request)))

    def _release(self, request: memoryview, _node: int, _caller: int) -> bytes:
        (handle,) = protocol.RELEASE_IN.unpack_from(request, _HEADER)
        self._session.texts.drop(handle)
        if handle in self._triggers:
            self._triggers.drop(handle)
        return b""

    def _opendir(self, _request: memoryview, node: int, caller: int) -> bytes:
        self._tree.getattr(caller, self._nodes.path(node))  # READDIR is too late: readdir(3) takes ENOENT for the end
        return protocol.OPEN_OUT.pack(0, 0, 0)

    def _readdir(self, request: memoryview, node: int, caller: int) -> bytes:
        return self._directory(request, node, caller, plus=False)

    def _readdirplus(self, request: memoryview, node: int, caller: int) -> bytes:
        return self._directory(request, node, caller, plus=True)

    def _releasedir(self, _request: memoryview, _node: int, _caller: int) -> bytes:
        return b""

    def _directory(self, request: memoryview, node: int, caller: int, plus: bool) -> bytes:
        """The entries from offset on, as many as fit; an entry's offset is its place in the list."""
        _, offset, size, _ = protocol.READ_IN.unpack_from(request, _HEADER)
        directory = self._nodes.path(node)
        names = self._tree.readdir(caller, directory)
        body = bytearray()
        for place in range(offset, len(names)):
            entry = self._dirent(caller, directory, node, names[place], place + 1, plus)
            if len(body) + len(entry) > size:
                break
            body += entry
        return bytes(body)

    def _dirent(self, caller: int, directory: str, node: int, name: str, offset: int, plus: bool) -> bytes:
        """A fuse_dirent or fuse_direntplus; empty for a file that has gone meanwhile."""
        encoded = os.fsencode(name)
        if name in (".", ".."):
            looked_up = bytes(protocol.ENTRY_OUT.size + protocol.ATTR.size)  # node 0: the kernel takes nothing from it
            mode = stat.S_IFDIR
        else:
            path = child(directory, name)
            try:
                st = self._tree.attributes(path)
            except OSError:
                return b""
            looked_up, mode, node = self._entry(path, st), st["st_mode"], self._nodes.number(path)
        dirent = protocol.DIRENT.pack(inode(node), offset, len(encoded), stat.S_IFMT(mode) >> 12) + encoded
        return (looked_up if plus else b"") + dirent + bytes(-len(dirent) % 8)

    def _getlk(self, _request: memoryview, _node: int, _caller: int) -> bytes:
        return protocol.LK_OUT.pack(0, 0, fcntl.F_UNLCK, 0)

    def _setlk(self, _request: memoryview, _node: int, _caller: int) -> bytes:
        """Grant any lock: nobody shares what is read, so that one container's lock is nothing to another."""
        return b""

    def _destroy(self, _request: memoryview, _node: int, _caller: int) -> bytes:
        return b""
