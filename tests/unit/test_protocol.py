"""The kernel engine against a kernel that sends anything, without a mount."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lxcfs_py.engine import End, kernel, protocol, session, watchdog

pytestmark = pytest.mark.timeout(60)

OPCODES = st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1))
PATHS = ["/", "/proc", "/proc/meminfo", "/proc/strange"]


class Tree:
    """PATHS, of which the last one fails in ways that a view should not."""

    failure: Any = ValueError("broken")

    def attributes(self, path: str) -> dict[str, Any]:
        return self.getattr(0, path)

    def __init__(self) -> None:
        self.gate = threading.Event()  # what a rendering waits for
        self.gate.set()

    def getattr(self, caller: int, path: str) -> dict[str, Any]:
        if path not in PATHS:
            raise OSError(errno.ENOENT, path)
        return {"st_mode": 0o444 | (stat.S_IFDIR if path in PATHS[:2] else stat.S_IFREG)}

    def readdir(self, caller: int, path: str) -> list[str]:
        return [
            ".",
            "..",
            *(other.rpartition("/")[2] for other in PATHS[1:] if other.rpartition("/")[0] == path.rstrip("/")),
        ]

    def render(self, caller: int, path: str) -> bytes:
        assert self.gate.wait(5)
        if path == PATHS[-1]:
            if isinstance(self.failure, BaseException):
                raise self.failure
            return self.failure
        return b"MemTotal: 1 kB\n"

    def readlink(self, caller: int, path: str) -> str:
        raise OSError(errno.EINVAL, path)

    def open(self, caller: int, path: str, flags: int) -> None:
        pass

    access = open

    def trigger(self, caller: int, path: str, text: bytes) -> str:
        raise OSError(errno.EINVAL, path)

    def arm(self, trigger: str, owner: str) -> None:
        raise OSError(errno.EINVAL, trigger)

    def renewed(self, trigger: str) -> str:
        return trigger

    def lengths(self) -> dict[str, int]:
        return {}

    def statfs(self) -> dict[str, int]:
        return {"f_bsize": 4096}

    def paths(self) -> Iterator[str]:
        yield from PATHS


class Kernel:
    """The other end of a server's descriptor."""

    def __init__(self, left: bytes = b"", attempts: int = 0, memory: Optional[int] = None) -> None:
        """Let a server begin with a request that so many before it have left, and in a memory file of theirs."""
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(5)
        self.tree = Tree()
        self.session = session.Session(theirs.detach(), memory or session.new_memory("/nowhere"))
        slot = self.session.slots[7]
        slot[: len(left)] = left
        slot[session.ATTEMPTS] = attempts
        self.server = kernel.Server(self.tree, self.session, threads=1)
        self.server.start()
        self.unique = 0

    def send(self, opcode: int, node: int = 1, body: bytes = b"") -> int:
        self.unique += 2
        self.socket.send(request(opcode, self.unique, node, body))
        return self.unique

    def reply(self) -> tuple[int, int, bytes]:
        """(errno, the request's unique, body)"""
        message = self.socket.recv(1 << 20)
        length, error, unique = protocol.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        assert -512 < error <= 0
        return -error, unique, message[protocol.OUT_HEADER.size :]

    def ask(self, opcode: int, node: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        """(errno, body) in reply to this request; replies to earlier ones are passed over."""
        sent = self.send(opcode, node, body)
        while True:
            error, unique, answer = self.reply()
            if unique == sent:
                return error, answer

    def is_served(self) -> bool:
        error, body = self.ask(protocol.STATFS)
        return (error, len(body)) == (0, protocol.STATFS_OUT.size)

    def close(self) -> None:
        self.socket.close()
        assert self.server.wait() is End.UNMOUNTED
        os.close(self.session.fuse)
        os.close(self.session.memory)


def request(opcode: int, unique: int, node: int, body: bytes, length: int = -1) -> bytes:
    size = protocol.IN_HEADER.size + len(body)
    return protocol.IN_HEADER.pack(size if length < 0 else length, opcode, unique, node, os.getpid()) + body


def reading(offset: int, size: int, flags: int = protocol.READ_LOCKOWNER) -> bytes:
    return protocol.READ_IN.pack(7, offset, size, flags)


def node(path: str) -> int:
    return kernel.Nodes(Tree()).number(path)


@pytest.fixture(scope="module")
def peer() -> Iterator[Kernel]:
    peer = Kernel()
    yield peer
    peer.close()


def anything(function: Any) -> Any:
    return settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])(function)


@anything
@given(message=st.binary(min_size=1, max_size=12_000))
def test_noise_does_not_end_the_server(peer: Kernel, message: bytes) -> None:
    peer.socket.send(message)
    assert peer.is_served()


@anything
@given(
    opcode=OPCODES,
    node=st.sampled_from([*map(node, PATHS), 0, 99]),
    body=st.binary(max_size=200),
    cut=st.integers(0, 60),
)
def test_a_request_of_any_kind_and_length_gets_an_errno_or_silence(
    peer: Kernel, opcode: int, node: int, body: bytes, cut: int
) -> None:
    message = request(opcode, 1, node, body)
    peer.socket.send(message[: max(len(message) - cut, 1)])
    assert peer.is_served()


@anything
@given(opcode=OPCODES, body=st.binary(max_size=60), length=st.integers(0, 2**32 - 1))
def test_a_request_whose_length_is_not_what_it_says_gets_silence(
    peer: Kernel, opcode: int, body: bytes, length: int
) -> None:
    if length != protocol.IN_HEADER.size + len(body):
        peer.socket.send(request(opcode, 1, 1, body, length))
        peer.send(protocol.DESTROY)
        assert peer.reply()[1] == peer.unique


@pytest.mark.parametrize(
    ("opcode", "body", "expected"),
    [
        (protocol.READ, b"1234", errno.EINVAL),
        (protocol.OPEN, b"", errno.EINVAL),
        (protocol.INIT, b"1234", errno.EINVAL),
        (protocol.INIT, protocol.INIT_IN.pack(6, 1, 0, 0), errno.EPROTO),
        (protocol.LOOKUP, b"..\0", errno.EINVAL),
        (protocol.LOOKUP, b"proc/meminfo\0", errno.EINVAL),
        (protocol.LOOKUP, b"n\xff\xfe\0", errno.ENOENT),
        (25, b"", errno.ENOSYS),  # FLUSH
        (protocol.SETATTR, bytes(88), errno.EROFS),
        (protocol.WRITE, bytes(40), errno.EINVAL),  # what is written is no trigger
        (4096, b"", errno.ENOSYS),
        (protocol.IOCTL, b"", errno.ENOTTY),
        *((opcode, b"", errno.EROFS) for opcode in protocol.WRITING),
    ],
)
def test_what_a_read_only_filesystem_does_not_do_is_refused(
    peer: Kernel, opcode: int, body: bytes, expected: int
) -> None:
    assert peer.ask(opcode, 1, body) == (expected, b"")


def test_poll_says_that_any_file_is_ready(peer: Kernel) -> None:
    assert peer.ask(protocol.POLL, node("/proc/meminfo"), bytes(24)) == (0, b"\x45\1\0\0\0\0\0\0")


@pytest.mark.parametrize("opcode", kernel._SILENT)
def test_a_message_without_a_reply_is_not_answered(peer: Kernel, opcode: int) -> None:
    peer.send(opcode, node("/proc"), bytes(8))
    peer.send(protocol.STATFS)
    assert peer.reply()[1] == peer.unique


@pytest.mark.parametrize("opcode", kernel._SILENT)
def test_a_message_without_a_reply_is_not_refused_either_that_many_servers_have_left(opcode: int) -> None:
    peer = Kernel(request(opcode, 3, 0, bytes(8)), kernel.MAX_ATTEMPTS)
    peer.send(protocol.STATFS)
    assert peer.reply()[1] == peer.unique
    peer.close()


def test_init_agrees_on_what_both_can_and_notes_it(peer: Kernel) -> None:
    offered = protocol.PARALLEL_DIROPS | 1 << 27
    error, body = peer.ask(protocol.INIT, 0, protocol.INIT_IN.pack(7, 45, 131072, offered))
    assert (error, protocol.INIT_OUT.unpack(body)[:4]) == (0, (7, 31, 131072, protocol.PARALLEL_DIROPS))
    assert session.Session(peer.session.fuse, peer.session.memory).agreed == (31, protocol.PARALLEL_DIROPS)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ValueError("a bug"), errno.EIO),
        (RecursionError(), errno.EIO),
        (OSError(errno.ENODATA, "none"), errno.ENODATA),
        (OSError("without a number"), errno.EIO),
        (OSError(100_000, "no errno of the kernel's"), errno.EIO),
        (None, errno.EIO),
        ("no bytes", errno.EIO),
    ],
)
def test_an_operation_that_fails_is_an_errno_for_its_reader(peer: Kernel, failure: Any, expected: int) -> None:
    peer.tree.failure = failure
    assert peer.ask(protocol.READ, node("/proc/strange"), reading(0, 4096)) == (expected, b"")
    error, text = peer.ask(protocol.READ, node("/proc/meminfo"), reading(4, 4))
    assert (error, text) == (0, b"otal")


def test_a_read_for_the_page_cache_gets_nothing_also_of_a_text_that_there_is(peer: Kernel) -> None:
    path = node("/proc/meminfo")
    assert peer.ask(protocol.READ, path, reading(0, 4096))[0] == 0
    for offset in (0, 4):
        assert peer.ask(protocol.READ, path, reading(offset, 4096, 0)) == (errno.EINVAL, b"")


def test_attributes_are_not_kept_and_refused_to_who_seeks_to_the_end(peer: Kernel) -> None:
    text = node("/proc/meminfo")
    error, body = peer.ask(protocol.GETATTR, text, protocol.GETATTR_IN.pack(0, 0))
    assert (error, protocol.ATTR_OUT.unpack_from(body)[0]) == (0, 0)
    assert peer.ask(protocol.GETATTR, text, protocol.GETATTR_IN.pack(protocol.GETATTR_FH, 7)) == (errno.EINVAL, b"")
    error, body = peer.ask(protocol.GETATTR, node("/proc"), protocol.GETATTR_IN.pack(0, 0))
    assert (error, protocol.ATTR_OUT.unpack_from(body)[0]) == (0, kernel.LASTING)


@pytest.mark.parametrize("opcode", [protocol.SETLK, protocol.SETLKW])
def test_every_lock_is_granted_and_none_is_seen(peer: Kernel, opcode: int) -> None:
    assert peer.ask(opcode, node("/proc/meminfo"), bytes(48)) == (0, b"")
    error, lock = peer.ask(protocol.GETLK, node("/proc/meminfo"), bytes(48))
    assert (error, protocol.LK_OUT.unpack(lock)[2]) == (0, fcntl.F_UNLCK)


def test_who_appends_a_trigger_reads_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Kernel()
    monkeypatch.setattr(peer.tree, "trigger", lambda caller, path, text: "never", raising=False)
    monkeypatch.setattr(peer.tree, "arm", lambda trigger, owner: None, raising=False)
    written = struct.pack("=QQIIQII", 7, 4096, 5, 0, 0, os.O_RDWR | os.O_APPEND, 0) + b"some\0"
    assert peer.ask(protocol.WRITE, node("/proc/meminfo"), written)[0] == 0
    assert peer.ask(protocol.READ, node("/proc/meminfo"), reading(4101, 4)) == (0, b"MemT")
    peer.close()


@pytest.mark.parametrize(("writes", "expected"), [(1, 0), (2, errno.EBUSY)])
def test_the_last_write_before_a_servers_death_is_answered_as_it_would_have_been_by_that(
    monkeypatch: pytest.MonkeyPatch, writes: int, expected: int
) -> None:
    """The first one has set its file's trigger, which is no second one then."""
    monkeypatch.setattr(Tree, "trigger", lambda *_: "never")
    monkeypatch.setattr(Tree, "arm", lambda *_: None)
    written = struct.pack("=QQIIQII", 7, 0, 5, 0, 0, os.O_RDWR, 0) + b"some\0"
    before = Kernel()
    answers = [before.ask(protocol.WRITE, node("/proc/meminfo"), written)[0] for _ in range(writes)]
    left = bytearray(before.session.slots[0])
    left[session.OPCODE] = protocol.WRITE  # as long as it is not answered
    memory = os.dup(before.session.memory)
    before.close()
    after = Kernel(bytes(left), memory=memory)
    messages = [protocol.OUT_HEADER.unpack_from(after.socket.recv(4096)) for _ in range(2)]
    assert (protocol.NOTIFY_POLL, 0) in [each[1:] for each in messages], "who waits is to look again"
    assert (-expected, 2 * writes) in [each[1:] for each in messages]
    assert expected == answers[-1]
    assert after.ask(protocol.WRITE, node("/proc/meminfo"), written)[0] == errno.EBUSY
    after.close()


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A server for whom two requests that wait are many: a socket holds ten."""
    monkeypatch.setattr(kernel, "MANY", 2)
    monkeypatch.setattr(kernel, "LOOK", 1)
    peer = Kernel()
    yield peer
    peer.close()


def test_a_request_that_waited_and_hangs_in_the_next_server_is_seen() -> None:
    """So that this server is replaced in its turn, and the request is refused in the end."""
    peer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with peer, theirs:
        peer.settimeout(5)
        left = session.Session(theirs.fileno(), session.new_memory("/nowhere"))
        for unique in (2, 4):
            slot = left.waiting.get()
            assert slot is not None
            asked = request(protocol.READ, unique, node("/proc/meminfo"), reading(0, 4096))
            slot[: len(asked)] = asked
        tree = Tree()
        tree.gate.clear()
        server = kernel.Server(tree, left, threads=2)
        check = watchdog.of_workers(server.at_hand)
        server.start()
        deadline = time.monotonic() + 10
        while not (said := check(0.1)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert "worker 0" in said
        server.stop(End.STOPPED)
        threading.Timer(0.1, tree.gate.set).start()
        server.wait()
        assert {protocol.OUT_HEADER.unpack_from(peer.recv(4096))[2] for _ in range(2)} == {2, 4}
        assert not check(0)
        os.close(left.memory)


def test_many_requests_that_wait_are_all_answered_and_counted_as_their_containers(crowded: Kernel) -> None:
    crowded.tree.gate.clear()
    sent = {crowded.send(protocol.READ, node("/proc/meminfo"), reading(0, 4096)) for _ in range(10)}
    crowded.tree.gate.set()
    answered = [crowded.reply() for _ in sent]
    assert {unique for _, unique, _ in answered} == sent
    assert {(error, text) for error, _, text in answered} == {(0, b"MemTotal: 1 kB\n")}
    assert crowded.is_served()
    (share,) = crowded.server.crowd().shares.values()
    assert share.requests >= 8
    assert share.waited > 0
    deadline = time.monotonic() + 10  # a slot is cleared after its answer
    while any(slot[session.OPCODE] for slot in crowded.server.at_hand):
        assert time.monotonic() < deadline


def test_a_request_that_is_taken_while_another_worker_gets_the_turn_is_answered() -> None:
    """That one has found nothing in the queue by then, and waits for the next request, which may never come."""
    peer, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with peer, theirs:
        server = kernel.Server(Tree(), session.Session(theirs.fileno(), session.new_memory("/nowhere")), threads=2)
        relay = server._relay
        relay.reader = 0

        class Slow:
            def of(self, pid: int, uid: int) -> str:
                relay.reader = 1
                return "/slow"

        server._owners = Slow()  # type: ignore[assignment]
        peer.send(request(protocol.STATFS, 2, 1, b""))
        server._serve_fairly(0)
        peer.settimeout(5)
        assert protocol.OUT_HEADER.unpack_from(peer.recv(4096))[2] == 2
        assert not relay.shares
        os.close(server._session.memory)


def test_messages_without_a_reply_do_not_wait_for_their_turn(crowded: Kernel) -> None:
    crowded.tree.gate.clear()
    reads = {crowded.send(protocol.READ, node("/proc/meminfo"), reading(0, 4096)) for _ in range(5)}
    for opcode in kernel._SILENT:
        crowded.socket.send(request(opcode, 3, 0, bytes(8)))
    crowded.tree.gate.set()
    assert {crowded.reply()[1] for _ in reads} == reads
    assert crowded.is_served()
    assert sum(share.requests for share in crowded.server.crowd().shares.values()) < len(reads) + len(kernel._SILENT)


@pytest.mark.parametrize("opcode", [protocol.SETATTR, protocol.LOOKUP, protocol.READDIR, 35])  # CREATE
def test_what_holds_the_lock_of_a_directory_is_answered_before_what_its_container_has_waiting(
    crowded: Kernel, opcode: int
) -> None:
    crowded.tree.gate.clear()
    begun = crowded.send(protocol.READ, node("/proc/meminfo"), reading(0, 4096))
    reads = [crowded.send(protocol.READ, node("/proc/meminfo"), reading(0, 4096)) for _ in range(5)]
    holds = crowded.send(opcode, node("/proc"), b"new\0" + bytes(84))
    crowded.tree.gate.set()
    assert [crowded.reply()[1] for _ in range(7)] == [begun, holds, *reads]


def test_requests_of_any_kind_that_wait_are_all_answered(crowded: Kernel) -> None:
    kinds = [(opcode, bytes(200)) for opcode in range(1, 60) if opcode not in kernel._SILENT]
    kinds += [(protocol.LOOKUP, b"n" * 255 + b"\0"), (6, b"n" * 4000)]  # SYMLINK
    for start in range(0, len(kinds), 9):
        crowded.tree.gate.clear()
        sent = {crowded.send(protocol.READ, node("/proc/meminfo"), reading(0, 4096))}
        sent |= {crowded.send(opcode, 1, body) for opcode, body in kinds[start : start + 9]}
        crowded.tree.gate.set()
        assert {crowded.reply()[1] for _ in sent} == sent
    assert crowded.is_served()


def test_a_server_leaves_no_descriptor_and_no_thread() -> None:
    gc.collect()
    before = sorted(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    for _ in range(3):
        peer = Kernel()
        peer.socket.send(b"noise")
        peer.ask(99)
        assert peer.is_served()
        peer.close()
        for worker in peer.server._workers:
            worker.join(5)
        del peer, worker
    gc.collect()
    assert (sorted(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))) == before


def test_node_ids_follow_from_the_path_and_a_collision_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = kernel.Nodes(Tree())
    assert nodes.number("/") == protocol.ROOT_ID
    assert nodes.number("/proc/meminfo") == 4253543928446956143
    assert nodes.path(nodes.number("/proc/meminfo")) == "/proc/meminfo"


def test_nodes_that_nobody_knows_cost_one_walk_of_the_tree_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "WALK_AGAIN", 1000)
    tree, walks = Tree(), []
    monkeypatch.setattr(tree, "paths", lambda: walks.append(1) or iter(PATHS))
    nodes = kernel.Nodes(tree)
    assert nodes.path(node(PATHS[1])) == PATHS[1]
    for unknown in (12345, 12345, 54321):
        with pytest.raises(OSError, match="no file has the node id") as error:
            nodes.path(unknown)
        assert error.value.errno == errno.ESTALE
    assert len(walks) == 2
    assert nodes.path(node(PATHS[-1])) == PATHS[-1]
    monkeypatch.setattr(nodes, "_walk_again", time.monotonic())
    monkeypatch.setattr(tree, "paths", lambda: iter([*PATHS, "/proc/new"]))
    assert nodes.path(node("/proc/new")) == "/proc/new"


def test_an_open_waits_for_nobody_who_reads_by_way_of_the_page_cache_and_a_close_for_no_lock(peer: Kernel) -> None:
    """The kernel would throw the cached pages away at each open, and wait for those that somebody is reading.

    At each close it would take the lock of the inode, which it holds for whoever changes attributes, and at each write.
    """
    error, body = peer.ask(protocol.OPEN, node("/proc/meminfo"), struct.pack("=II", os.O_RDONLY, 0))
    _, flags, _ = protocol.OPEN_OUT.unpack(body)
    cached = protocol.FOPEN_DIRECT_IO | protocol.FOPEN_KEEP_CACHE
    locked = protocol.FOPEN_NOFLUSH | protocol.FOPEN_PARALLEL_DIRECT_WRITES
    assert (error, flags) == (0, cached | locked)
