"""What is fed: each takes bytes from outside, and raises what it says that it raises, or nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, NamedTuple
from unittest import mock

from lxcfs_py import config
from lxcfs_py.attach import auto_attach, hook
from lxcfs_py.cgroup.layout import parse_paths
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.container import processes
from lxcfs_py.daemon import control
from lxcfs_py.engine import kernel, protocol, session
from lxcfs_py.linux import cpu_list, mount_table, psi, seccomp
from lxcfs_py.runtimes.bind_snippets import binds_of, kubernetes_volumes
from lxcfs_py.runtimes.names import Names
from lxcfs_py.runtimes.nri import wire
from lxcfs_py.runtimes.nri.connection import Connection, ConnectionLostError
from lxcfs_py.runtimes.nri.plugin import Plugin
from lxcfs_py.runtimes.nri.policy import Policy
from lxcfs_py.syscalls import agent, callers
from lxcfs_py.syscalls.answers import ANSWERS, Sysinfo
from lxcfs_py.views import VIEWS
from lxcfs_py.webhook import review
from tests.unit.conftest import TREES, Machine
from tests.unit.test_nri import container, pod
from tests.unit.test_protocol import Tree, request

REFUSALS = (OSError, ValueError, ArithmeticError)
"""What a view may raise of a kernel's file: the daemon shows the machine's text then (daemon/filesystem.py)."""

REVIEWS = Path(__file__).parent.parent / "kubernetes/reviews"


class Target(NamedTuple):
    """Who is fed, and what to begin with."""

    feed: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


# Requests of the kernel, through a socket pair


class _Session:
    def __init__(self) -> None:
        self.kernel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.session = session.Session(theirs.detach(), session.new_memory("/nowhere"))
        self.session.claim()
        self.server = kernel.Server(Tree(), self.session, threads=1)

    def replies(self) -> Iterator[bytes]:
        with contextlib.suppress(BlockingIOError):
            while True:
                yield self.kernel.recv(1 << 21)


@cache
def _served() -> _Session:
    return _Session()


def feed_requests(text: bytes) -> None:
    """Each is 2 bytes of length, and so many of a request, whose own length is right."""
    made = _served()
    slot = made.session.slots[0]
    while len(text) > 2:
        length = min(int.from_bytes(text[:2], "little"), len(slot), len(text) - 2)
        whole, text = text[2 : 2 + length], text[2 + length :]
        slot[: len(whole)] = whole
        if length >= 4:
            struct.pack_into("=I", slot, 0, length)
        made.server._answer(slot, length)
        for reply in made.replies():
            size, error, _ = protocol.OUT_HEADER.unpack_from(reply)
            assert size == len(reply)
            assert -512 < error <= 0 or error == protocol.NOTIFY_INVAL_INODE or error == protocol.NOTIFY_POLL


def seeds_of_requests() -> list[bytes]:
    bodies = {
        protocol.INIT: struct.pack("=4I", 7, 41, 131072, 0xFFFFFFFF),
        protocol.LOOKUP: b"proc\0",
        protocol.OPEN: struct.pack("=II", 0, 0),
        protocol.READ: struct.pack("=QQIIQII", 1, 0, 4096, 2, 0, 0, 0),
        protocol.WRITE: struct.pack("=QQIIQII", 1, 0, 20, 0, 0, 0, 0) + b"some 150000 1000000\0",
        protocol.POLL: struct.pack("=QQII", 1, 2, 1, 1),
        protocol.SETATTR: struct.pack("=II", 8, 0) + bytes(80),
        protocol.READDIRPLUS: struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0),
        protocol.ACCESS: struct.pack("=II", 4, 0),
    }
    opcodes = [*bodies, protocol.GETATTR, protocol.RELEASE, protocol.STATFS, protocol.READDIR, protocol.GETLK, 22, 45]
    made = [request(opcode, 2, 1, bodies.get(opcode, bytes(64))) for opcode in opcodes]
    made.append(request(protocol.GETATTR, 4, kernel_node("/proc/meminfo"), bytes(16)))
    return [len(each).to_bytes(2, "little") + each for each in made]


def kernel_node(path: str) -> int:
    return kernel.Nodes(Tree()).number(path)


# What a server before left in the memory of a session


def feed_memory(text: bytes) -> None:
    """Each is where to write, in 4 bytes, and how much."""
    fuse, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = session.new_memory("/nowhere", (31, 0))
    with fuse, contextlib.ExitStack() as stack:
        stack.callback(os.close, memory)
        stack.callback(theirs.close)
        fuse.setblocking(False)
        size = os.fstat(memory).st_size
        while len(text) > 5:
            offset, length = struct.unpack_from("=IB", text)
            os.pwrite(memory, text[5 : 5 + length], offset % size)
            text = text[5 + length :]
        try:
            made = session.Session(theirs.fileno(), memory)
        except session.SessionError:
            return
        made.claim()
        server = kernel.Server(Tree(), made, threads=1)
        server._triggers.take_up()
        for slot in [*made.slots, *made.left_waiting]:
            if slot[session.OPCODE]:
                server._take_up(slot)
        for handle in made.texts.handles_from(0)[:100]:
            made.texts.get(handle)
        made.texts.put(7, b"text")
        assert made.texts.get(7) == b"text"


def seeds_of_memory() -> list[bytes]:
    asked = request(protocol.READ, 2, kernel_node("/proc/meminfo"), struct.pack("=QQIIQII", 1, 0, 4096, 2, 0, 0, 0))

    def at(offset: int, text: bytes) -> bytes:
        return struct.pack("=IB", offset, len(text)) + text

    kept = struct.pack("=QI", 7, 10) + b"\1"
    return [
        at(0, b"lxcfs-py"),
        at(session._PAGE, asked),
        at(session._WAITING, asked) + at(session._WAITING + 511, b"\1"),
        at(session._TEXTS, kept),
        at(session._TEXTS, struct.pack("=QI", 1 << 63 | 7, 30) + b"\1"),
        at(session._NEGOTIATED, bytes(8)),
    ]


# The kernel's files, of a machine and of a container's cgroup


@cache
def _room() -> Path:
    return Path(tempfile.mkdtemp(prefix="lxcfs-py-fuzz-"))


@cache
def _machine() -> tuple[Path, list[Path]]:
    root = _room() / "v2-2cpu"
    shutil.copytree(TREES / "v2-2cpu-noswap-nopsi", root, symlinks=True)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return root, [path for path in files if "sys/fs/cgroup" in str(path) or "/proc/" in str(path)]


def feed_kernel_files(text: bytes) -> None:
    """Feed the text, behind the number of the file, in 2 bytes, that says so."""
    root, files = _machine()
    file = files[int.from_bytes(text[:2], "little") % len(files)]
    before = file.read_bytes()
    try:
        file.write_bytes(text[2:])
        try:
            machine = Machine(root)
        except (*REFUSALS, IndexError):  # the recorded machine itself is looked at by the tests' own means
            return
        for name in VIEWS:
            with contextlib.suppress(*REFUSALS, AssertionError):  # the last one is the recorded container's own
                machine.render(name)
    finally:
        file.write_bytes(before)


def seeds_of_kernel_files() -> list[bytes]:
    _, files = _machine()
    return [number.to_bytes(2, "little") + file.read_bytes()[:4000] for number, file in enumerate(files)]


def clean_up() -> None:
    """Leave nothing of the recorded machine, nor of an engine's files."""
    if _room.cache_info().currsize:
        shutil.rmtree(_room())
    for made in (_room, _machine, _engines):
        made.cache_clear()


# Texts


def feed_mountinfo(text: bytes) -> None:
    for mount in mount_table.parse(os.fsdecode(text)):
        os.fsencode(mount.mountpoint)
    auto_attach._roots(text)


def feed_processes(text: bytes) -> None:
    parse_paths(text)
    with contextlib.suppress(*REFUSALS):
        psi.check(text, privileged=True)
    for parse in (cpu_list.parse, lambda text: cpu_list.masked(text, {0}), lambda text: cpu_list.only(text, {0, 3})):
        with contextlib.suppress(*REFUSALS):
            parse(text)


def feed_configuration(text: bytes) -> None:
    try:
        taken = config.parse(text, "lxcfs.toml")
    except ConfigError:
        return
    assert config.parse(config.dump(taken).encode(), "again") == taken


def feed_oci_state(text: bytes) -> None:
    with mock.patch.object(hook, "bind", lambda root, _: [root]), contextlib.suppress(hook.HookError):
        hook.run(io.BytesIO(text), Config())
    agent._owner_in(text, 7)


VOLUMES = kubernetes_volumes(binds_of(Config()))


def feed_review(text: bytes) -> None:
    with contextlib.suppress(review.ReviewError), mock.patch.object(review.log, "exception", _unexpected):
        answer = review.answer(text, VOLUMES, opt_in=False, is_forbidden=False, dry_run=False)
        json.dumps(answer.review)


def _unexpected(*_: object) -> None:
    raise AssertionError("a fault in this program") from None


def feed_nri(text: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(1)
        ours.settimeout(1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        plugin = Plugin(Connection(theirs), Policy("/var/lib/lxcfs", ("proc/meminfo",), "all"), lambda: True)
        ours.sendall(text)
        ours.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionLostError):
            while True:
                plugin.attend()
                ours.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    ours.recv(1 << 20)


def seeds_of_nri() -> list[bytes]:
    made = []
    for method, message in (
        ("Configure", wire.field(2, "containerd") + wire.field(3, "2.1.9")),
        ("Synchronize", wire.item(1, pod()) + wire.item(2, container(pid=7, state=3))),
        ("CreateContainer", wire.field(1, pod()) + wire.field(2, container())),
        ("StartContainer", wire.field(1, pod()) + wire.field(2, container(pid=7))),
        ("StateChange", wire.field(1, 6) + wire.field(2, pod()) + wire.field(3, container(pid=7))),
        ("Shutdown", b""),
    ):
        call = wire.field(1, "nri.pkg.api.v1alpha1.Plugin") + wire.field(2, method) + wire.field(3, message)
        content = struct.pack(">IIBB", len(call), 1, 1, 0) + call
        made.append(struct.pack(">II", 1, len(content)) + content)
    return made


class _Figures:
    """What a container sees, made of bytes."""

    def __init__(self, text: bytes) -> None:
        self._numbers = struct.unpack_from("=6Qd3dI", text.ljust(84, b"\0"))
        self._cpus = sorted({*text[84:]})

    def sysinfo(self, pid: int) -> Sysinfo:
        total, free, shared, buffers, swap, swap_free, age, one, five, fifteen, threads = self._numbers
        return Sysinfo(age, (one, five, fifteen), total, free, shared, buffers, swap, swap_free, threads)

    def cpus(self, pid: int) -> list[int]:
        return self._cpus


def feed_calls(text: bytes) -> None:
    """Feed a notification of a call, and behind it what the container sees."""
    call = seccomp.parse(text[:80].ljust(seccomp.SLOT, b"\0"))
    find = ANSWERS.get((call.arch, call.number))
    if find is None:
        return
    with contextlib.suppress(*agent.UNANSWERABLE):
        answer = find(call, _Figures(text[80:]))
        assert answer is None or len(answer.memory) <= 1 << 16


def _call(arch: int, number: int, *arguments: int) -> bytes:
    head = struct.pack("=QIIiIQ", 1, os.getpid(), 0, number, arch, 0)
    return head + struct.pack("=6Q", *arguments, *[0] * (6 - len(arguments)))


def seeds_of_calls() -> list[bytes]:
    figures = struct.pack("=6Qd3dI", 1 << 40, 1 << 20, 0, 0, 1 << 30, 0, 1.5, 0.1, 0.2, 0.3, 17) + bytes(range(4))
    return [_call(*key, 0, 128, 4096) + figures for key in ANSWERS]


def feed_lxc(text: bytes) -> None:
    """Feed what a monitor of LXC sends: as it comes, and as a server before this one had taken it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        read, write = os.pipe()
        socket.send_fds(ours, [text or b"\0"], [read, write])
        os.close(read)
        os.close(write)
        monitor = callers.Monitor(theirs, 7)
        slot = memoryview(bytearray(seccomp.SLOT))
        with contextlib.suppress(LookupError, EOFError, OSError):
            call = monitor.receive(slot)
            monitor.let_through(call)
        monitor._close_memory()
        with contextlib.suppress(LookupError), mock.patch.object(callers, "_SETTLED", 0):
            monitor.taken_up(slot)


def seeds_of_lxc() -> list[bytes]:
    head = struct.pack("=Q2i3H2xQ", 0, 7, 8, 80, 24, 64, 3)
    return [head + _call(*key, 0, 128, 4096) + bytes(24) + b"web" for key in ANSWERS][:2]


def feed_control(text: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(1)
        ours.sendall(text)
        ours.shutdown(socket.SHUT_WR)
        control._answer(theirs, lambda request: json.dumps(list(request)).encode())


@cache
def _engines() -> Path:
    root = _room() / "engines"
    root.mkdir()
    return root


ID = "ab" * 32


def feed_names(text: bytes) -> None:
    root = _engines()
    for place in (f"var/lib/docker/containers/{ID}/config.v2.json", "var/lib/containers/storage/overlay-containers/x"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(text)
    with mock.patch("lxcfs_py.runtimes.names.log", SimpleNamespace(), create=True):
        for path in (f"/docker/{ID}", f"/system.slice/docker-{ID}.scope", os.fsdecode(text)[:200]):
            found = Names(str(root)).of(path)
            if found:
                found.answers_to("web")
    shutil.rmtree(root / "var")


def feed_stat(text: bytes) -> None:
    with contextlib.suppress(*REFUSALS, IndexError):
        processes.start_time(text)


def of(*texts: bytes) -> Callable[[], list[bytes]]:
    return lambda: list(texts)


STATE = {"ociVersion": "1.0.2", "id": "web", "pid": 7, "bundle": "/run/containerd/web", "state": {"id": "web"}}

TARGETS: dict[str, Target] = {
    "requests": Target(feed_requests, seeds_of_requests),
    "memory": Target(feed_memory, seeds_of_memory),
    "kernel-files": Target(feed_kernel_files, seeds_of_kernel_files),
    "mountinfo": Target(
        feed_mountinfo,
        of(
            b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n",
            b"1 2 0:45 / /a\\040b\\012c\\134 rw - fuse.lxcfs lxcfs rw,user_id=0\n",
        ),
    ),
    "processes": Target(
        feed_processes,
        of(b"0::/docker/1\n", b"9:cpu,cpuacct:/a\n0::/\n", b"some 150000 1000000\0", b"0-3,8\n", b"ff,0f\n"),
    ),
    "configuration": Target(
        feed_configuration,
        lambda: [(Path(__file__).parent.parent.parent / "etc/lxcfs.toml").read_bytes(), config.dump(Config()).encode()],
    ),
    "oci-state": Target(feed_oci_state, of(json.dumps(STATE).encode())),
    "review": Target(feed_review, lambda: [path.read_bytes() for path in sorted(REVIEWS.glob("*.json"))]),
    "nri": Target(feed_nri, seeds_of_nri),
    "calls": Target(feed_calls, seeds_of_calls),
    "lxc": Target(feed_lxc, seeds_of_lxc),
    "control": Target(feed_control, of(b'{"reload": true}', b'{"read": [7, "/proc/meminfo"]}', b"{}")),
    "names": Target(
        feed_names,
        of(json.dumps({"Name": "/web", "Config": {"Labels": {"lxcfs.py/files": "none"}, "Image": "x"}}).encode()),
    ),
    "stat": Target(feed_stat, of(b"7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 1 2\n")),
}
