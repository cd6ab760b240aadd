"""The kernel engine on real mounts: what it serves, and that nobody who reads notices a server's death or change.

The files are those of a small tree whose texts can be told apart: each rendering has its own serial number in every
line, and its length in the first, so that a text that is short or mixed from two shows.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import multiprocessing
import os
import random
import select
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from lxcfs_py.engine import End, keeper, kernel, open_texts, protocol, session, store
from lxcfs_py.linux import runtime_directory, syscalls

pytestmark = pytest.mark.timeout(60)

FORK = multiprocessing.get_context("fork")
FILES = {"/proc/short": 3, "/proc/long": 60, "/proc/huge": 6000}  # lines
SLOW = 0.6  # seconds that a read of /proc/slow takes


def render(serial: int, lines: int) -> bytes:
    return b"".join(b"%016x line %d of %d\n" % (serial, line, lines) for line in range(1, lines + 1))


def is_whole(text: bytes) -> bool:
    first = text.partition(b"\n")[0].split()
    return len(first) == 5 and text == render(int(first[0], 16), int(first[4]))


def fault(text: bytes) -> str:
    """What is wrong with a text: which renderings its lines are of."""
    lines = [line.split() for line in text.splitlines()]
    parts = [(serial, len(list(part))) for serial, part in itertools.groupby(lines, lambda line: line[:1])]
    return f"{len(text)} bytes, {lines[0][-1:]} lines announced, there are {parts[:5]}, the last is {text[-50:]!r}"


class Tree:
    """/proc with FILES and slow, /sys/devices/system/cpu with directories and a link."""

    def __init__(self) -> None:
        self.hidden: set[str] = set()
        self.callers: list[int] = []
        self.directories = {
            "/": ["proc", "sys"],
            "/proc": ["short", "long", "huge", "slow", "broken", "denied"],
            "/sys": ["devices"],
            "/sys/devices": ["system"],
            "/sys/devices/system": ["cpu"],
            "/sys/devices/system/cpu": ["cpu0", "cpu1", "online"],
            "/sys/devices/system/cpu/cpu0": ["self"],
            "/sys/devices/system/cpu/cpu1": [],
        }

    def getattr(self, caller: int, path: str) -> dict[str, Any]:
        if path in self.hidden:
            raise OSError(errno.ENOENT, path)
        return self.attributes(path)

    def attributes(self, path: str) -> dict[str, Any]:
        directory, _, name = path.rpartition("/")
        if path in self.directories:
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2, "st_mtime": 1.5}
        if name not in self.directories.get(directory or "/", ()):
            raise OSError(errno.ENOENT, path)
        kind = stat.S_IFLNK if name == "self" else stat.S_IFREG
        return {"st_mode": kind | 0o444, "st_nlink": 1, "st_mtime": 1.5}

    def readdir(self, caller: int, path: str) -> list[str]:
        return [".", "..", *(name for name in self.directories[path] if f"{path}/{name}" not in self.hidden)]

    def readlink(self, caller: int, path: str) -> str:
        return "../cpu0"

    def access(self, caller: int, path: str, mode: int) -> None:
        if mode & os.W_OK:
            raise OSError(errno.EACCES, path)

    def open(self, caller: int, path: str, flags: int) -> None:
        if flags & os.O_ACCMODE:
            raise OSError(errno.EACCES, path)
        if path == "/proc/denied":
            raise OSError(errno.EPERM, path)

    def render(self, caller: int, path: str) -> bytes:
        self.callers.append(caller)
        if path == "/proc/slow":
            time.sleep(SLOW)
        if path == "/proc/broken":
            raise ValueError("this view is broken")
        return render(random.getrandbits(64), random.randint(1, FILES.get(path, 2)))

    def trigger(self, caller: int, path: str, text: bytes) -> str:
        raise OSError(errno.EINVAL, path)

    def arm(self, trigger: str, owner: str) -> None:
        raise OSError(errno.EINVAL, trigger)

    def renewed(self, trigger: str) -> str:
        return trigger

    def lengths(self) -> dict[str, int]:
        return {}

    def statfs(self) -> dict[str, int]:
        return {"f_bsize": 4096, "f_namemax": 255}

    def paths(self) -> Iterator[str]:
        for directory, names in self.directories.items():
            yield from (f"{directory.rstrip('/')}/{name}" for name in names)


def serve(kept: session.Session, threads: int = 2, offered: bool = False) -> None:
    """A server's life, in a process of its own that a test has forked."""
    own = session.Session(kept.fuse, kept.memory)
    own.predecessor = kept.predecessor
    server = kernel.Server(Tree(), own, threads)
    server.start()
    if offered:
        session.offer(own, lambda: server.stop(End.TAKEN_OVER))
    server.wait()


class Readers:
    """Processes that open, read and rewind all files in their various ways, and check what they get."""

    def __init__(self, count: int, mount: Mount) -> None:
        self.stop = FORK.Event()
        self.results = FORK.SimpleQueue()
        self.processes = [FORK.Process(target=self._run, args=(mount, number)) for number in range(count)]
        for process in self.processes:
            process.start()

    def _run(self, mount: Mount, number: int) -> None:
        mount.forget()
        reads, longest, wrong = 0, 0.0, ""
        rng = random.Random(number)
        while not self.stop.is_set() and not wrong:
            path = rng.choice(list(FILES))
            started = time.monotonic()
            try:
                fd = os.open(mount.path + path, os.O_RDONLY)
                for _ in range(rng.choice((1, 1, 3))):
                    size = rng.choice((1 << 17, 4096, 1000)) if path != "/proc/huge" else 50_000
                    text = b"".join(iter(lambda fd=fd, size=size: os.read(fd, size), b""))
                    if not is_whole(text):
                        wrong = f"{path}: {fault(text)}"
                    os.lseek(fd, 0, os.SEEK_SET)
                    reads += 1
                os.close(fd)
            except OSError as error:
                wrong = f"{path}: {error}"
            longest = max(longest, time.monotonic() - started)
        self.results.put((reads, longest, wrong))

    def finish(self) -> int:
        """Have them stop; the number of texts read, which must all have been whole."""
        self.stop.set()
        reads, longest, wrong = zip(*[self.results.get() for _ in self.processes])
        for process in self.processes:
            process.join(10)
        print(f"{sum(reads)} reads, longest stall {max(longest) * 1000:.0f} ms")
        assert not any(wrong), wrong
        assert min(reads) > 10, reads
        return sum(reads)


def abort(mountpoint: str) -> None:
    """Have the kernel fail all requests that wait at a mountpoint, and all that come."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == mountpoint:
            with tempfile.TemporaryDirectory() as control:
                syscalls.mount("fusectl", control, "fusectl")
                Path(control, line.split()[2].partition(":")[2], "abort").write_text("1")
                syscalls.umount(control)


@pytest.fixture
def mountpoint(tmp_path: Path, require: Callable[[object, str], None], monkeypatch: Any) -> Iterator[str]:
    """A directory to mount on. Who waits there in vain, and can't even be killed, is set free."""
    require(os.geteuid() == 0, "root")
    require(os.path.exists("/dev/fuse"), "/dev/fuse")
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path / "run"))
    directory = tmp_path / "mount"
    directory.mkdir()
    watchdog = threading.Timer(45, abort, (str(directory),))
    watchdog.start()
    try:
        yield str(directory)
    finally:
        watchdog.cancel()


class Mount:
    """A mounted session that this process keeps, and the servers that tests start on it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.session = session.create(path)
        self.servers: list[Any] = []
        self.tree: Tree
        self.server: kernel.Server

    def start(self, **arguments: Any) -> Any:
        server = FORK.Process(target=serve, args=(self.session,), kwargs=arguments)
        server.start()
        self.servers.append(server)
        return server

    def forget(self) -> None:
        """Close, in a reader, what only servers and their keeper may have: else the mount would live on with it."""
        if self.session.fuse >= 0:
            os.close(self.session.fuse)
            os.close(self.session.memory)
        self.session.fuse = self.session.memory = -1

    def end(self) -> None:
        for server in self.servers:
            server.kill()
            server.join(5)
        abort(self.path)
        with contextlib.suppress(OSError):
            syscalls.umount(self.path, syscalls.MNT_DETACH)
        self.forget()


@pytest.fixture
def mount(mountpoint: str) -> Iterator[Mount]:
    mounted = Mount(mountpoint)
    try:
        yield mounted
    finally:
        mounted.end()


@pytest.fixture
def served(mount: Mount) -> Iterator[Mount]:
    """A mount with a server in this process, whose operations are `tree`."""
    mount.tree = Tree()
    mount.server = kernel.Server(mount.tree, mount.session, threads=2)
    mount.server.start()
    yield mount
    mount.server.stop(End.STOPPED)


def read(path: str, size: int = 1 << 17) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: os.read(fd, size), b""))
    finally:
        os.close(fd)


def test_files_are_read_whole_and_rendered_anew_at_each_open_and_rewind(served: Mount) -> None:
    texts = {read(f"{served.path}/proc/long", 700) for _ in range(10)}
    assert len(texts) == 10
    assert all(map(is_whole, texts))
    with open(f"{served.path}/proc/long", "rb", buffering=0) as file:
        first = file.readall()
        file.seek(0)
        assert is_whole(file.readall())
        file.seek(5)
        assert first[5:] != file.readall()


def test_the_caller_is_the_reading_process(served: Mount) -> None:
    reader = FORK.Process(target=lambda: (served.forget(), read(f"{served.path}/proc/short")))
    reader.start()
    reader.join(5)
    assert served.tree.callers == [reader.pid]


def test_directories_list_their_entries_with_types(served: Mount) -> None:
    entries = {entry.name: entry for entry in os.scandir(f"{served.path}/sys/devices/system/cpu")}
    assert sorted(entries) == ["cpu0", "cpu1", "online"]
    assert entries["cpu0"].is_dir()
    assert entries["online"].is_file()
    assert os.readlink(f"{served.path}/sys/devices/system/cpu/cpu0/self") == "../cpu0"
    assert entries["cpu0"].inode() == os.stat(f"{served.path}/sys/devices/system/cpu/cpu0").st_ino


def test_a_directory_of_many_entries_is_listed_whole(served: Mount) -> None:
    served.tree.directories["/sys/devices/system/cpu/cpu1"] = names = [
        f"a_rather_long_name_{n:05}" for n in range(2000)
    ]
    assert sorted(os.listdir(f"{served.path}/sys/devices/system/cpu/cpu1")) == names


def test_attributes_are_those_of_the_filesystem(served: Mount) -> None:
    st = os.stat(f"{served.path}/proc/short")
    assert (st.st_mode, st.st_nlink, st.st_size, st.st_mtime) == (stat.S_IFREG | 0o444, 1, 4096, 1.5)
    assert os.statvfs(served.path).f_namemax == 255
    assert os.access(f"{served.path}/proc/short", os.R_OK)
    assert not os.access(f"{served.path}/proc/short", os.W_OK)
    assert "fuse.lxcfs rw,nosuid,nodev" in Path("/proc/mounts").read_text().partition(served.path)[2].splitlines()[0]


@pytest.mark.parametrize(
    ("attempt", "number"),
    [
        (lambda path: os.open(f"{path}/proc/short", os.O_WRONLY), errno.EACCES),
        (lambda path: os.open(f"{path}/proc/new", os.O_WRONLY | os.O_CREAT), errno.EROFS),
        (lambda path: os.mkdir(f"{path}/proc/new"), errno.EROFS),
        (lambda path: os.unlink(f"{path}/proc/short"), errno.EROFS),
        (lambda path: os.rename(f"{path}/proc/short", f"{path}/proc/long"), errno.EROFS),
        (lambda path: os.chmod(f"{path}/proc/short", 0o600), errno.EROFS),
        (lambda path: os.getxattr(f"{path}/proc/short", "user.name"), errno.EOPNOTSUPP),
        (lambda path: os.stat(f"{path}/proc/none"), errno.ENOENT),
        (lambda path: os.open(f"{path}/proc/denied", os.O_RDONLY), errno.EPERM),
        (lambda path: read(f"{path}/proc/broken"), errno.EIO),
    ],
)
def test_what_cannot_be_done_fails_with_the_right_errno(
    served: Mount, attempt: Callable[[str], object], number: int
) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match=r"\[Errno") as failure:
            attempt(served.path)
        assert failure.value.errno == number
    assert is_whole(read(f"{served.path}/proc/short"))


def test_a_broken_view_is_one_line_in_the_log(served: Mount, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        read(f"{served.path}/proc/broken")
    (record,) = caplog.records
    assert "/proc/broken" in record.getMessage()
    assert "this view is broken" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert not record.exc_info


def test_a_slow_read_does_not_hold_up_the_others(served: Mount) -> None:
    slow = threading.Thread(target=read, args=(f"{served.path}/proc/slow",))
    slow.start()
    time.sleep(SLOW / 4)
    started = time.monotonic()
    for _ in range(20):
        read(f"{served.path}/proc/short")
    assert time.monotonic() - started < SLOW / 2
    slow.join(5)


def test_a_signal_to_one_reader_leaves_others_in_interruptible_sleep(mount: Mount) -> None:
    """A kernel that was told that nobody can be interrupted has everybody wait in state D, which counts as blocked."""
    mount.start()
    slow = f"{mount.path}/proc/slow"

    def read_in_spite_of_a_signal() -> None:
        mount.forget()
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, SLOW / 3)
        assert is_whole(read(slow))

    interrupted = FORK.Process(target=read_in_spite_of_a_signal)
    interrupted.start()
    interrupted.join(10)
    assert interrupted.exitcode == 0
    reader = FORK.Process(target=lambda: (mount.forget(), read(slow)))
    reader.start()
    time.sleep(SLOW / 2)
    assert Path(f"/proc/{reader.pid}/stat").read_text().rpartition(") ")[2][0] == "S"
    reader.join(10)


def test_a_close_waits_for_nobody_who_changes_the_same_files_attributes(served: Mount) -> None:
    """Until chmod(2) is answered, the kernel holds the inode's lock, which that of Debian 13 takes at a close too."""
    asked, answer = threading.Event(), threading.Event()

    def refuse_late(*_: object) -> bytes:
        asked.set()
        answer.wait(20)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def change() -> None:
        with pytest.raises(OSError, match="Read-only"):
            os.chmod(f"{served.path}/proc/short", 0o600)

    served.server._handlers[protocol.SETATTR] = refuse_late, 0
    changer = threading.Thread(target=change)
    reader = threading.Thread(target=read, args=(f"{served.path}/proc/short",))
    read(f"{served.path}/proc/short")
    try:
        changer.start()
        assert asked.wait(10)
        reader.start()
        reader.join(10)
        assert not reader.is_alive()
        assert changer.is_alive()
    finally:
        answer.set()
    for thread in (changer, reader):
        thread.join(10)


def test_a_write_waits_for_nobody_who_writes_to_the_same_file(
    served: Mount, require: Callable[[object, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a write that has not been answered, the kernel keeps the inode's lock."""
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    require(release >= (6, 2), "Linux 6.2, which lets files be written side by side")
    asked, answer = threading.Event(), threading.Event()

    def trigger(_caller: int, path: str, text: bytes) -> str:
        if text == b"slow":
            asked.set()
            answer.wait(20)
        raise OSError(errno.EINVAL, path)

    def write(text: bytes) -> None:
        fd = os.open(f"{served.path}/proc/short", os.O_WRONLY)
        with pytest.raises(OSError, match="Invalid argument"):
            os.write(fd, text)
        os.close(fd)

    monkeypatch.setattr(served.tree, "open", lambda *_: None)
    monkeypatch.setattr(served.tree, "trigger", trigger)
    slow, other = (threading.Thread(target=write, args=(text,)) for text in (b"slow", b"other"))
    try:
        slow.start()
        assert asked.wait(10)
        other.start()
        other.join(10)
        assert not other.is_alive()
        assert slow.is_alive()
    finally:
        answer.set()
    for thread in (slow, other):
        thread.join(10)


def test_what_a_caller_must_not_see_has_no_attributes_and_the_kernel_keeps_none_of_it(served: Mount) -> None:
    cpu1 = f"{served.path}/sys/devices/system/cpu/cpu1"
    os.stat(cpu1)
    served.tree.hidden.add("/sys/devices/system/cpu/cpu1")
    assert not os.path.exists(cpu1)
    with pytest.raises(FileNotFoundError):
        os.listdir(cpu1)
    served.tree.hidden.clear()
    os.stat(cpu1)


def test_it_ends_when_it_is_unmounted(mount: Mount) -> None:
    server = mount.start()
    assert is_whole(read(f"{mount.path}/proc/short"))
    syscalls.umount(mount.path, syscalls.MNT_DETACH)
    server.join(5)
    assert server.exitcode == 0


def test_an_unknown_node_of_a_predecessor_is_found_again_and_a_wrong_one_is_stale(mount: Mount) -> None:
    mount.start()
    deep = os.open(f"{mount.path}/sys/devices/system/cpu/cpu0", os.O_PATH)
    mount.servers[0].kill()
    mount.servers[0].join(5)
    mount.start()
    assert os.listdir(f"/proc/self/fd/{deep}") == ["self"]
    os.close(deep)
    nodes = kernel.Nodes(Tree())
    with pytest.raises(OSError, match="no file has the node id") as failure:
        nodes.path(12345)
    assert failure.value.errno == errno.ESTALE


def test_a_disabled_file_that_is_still_held_is_known_to_a_successor() -> None:
    tree = Tree()
    tree.hidden.add("/proc/short")
    number = kernel.Nodes(tree).number("/proc/short")
    assert kernel.Nodes(tree).path(number) == "/proc/short"


# A server dies


@pytest.mark.slow
def test_no_reader_notices_two_hundred_kills(mount: Mount) -> None:
    server = mount.start()
    readers = Readers(8, mount)
    for _ in range(200):
        time.sleep(random.uniform(0, 0.06))
        server.kill()
        server.join(5)
        server = mount.start()
    readers.finish()


@pytest.fixture
def fair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests that wait are many, so that servers serve them fairly all the time."""
    monkeypatch.setattr(kernel, "MANY", 2)
    monkeypatch.setattr(kernel, "LOOK", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("fair")
def test_no_reader_notices_the_death_of_a_server_with_whom_many_requests_wait(mount: Mount) -> None:
    server = mount.start()
    readers = Readers(8, mount)
    for _ in range(100):
        time.sleep(random.uniform(0, 0.06))
        server.kill()
        server.join(5)
        server = mount.start()
    readers.finish()


@pytest.mark.usefixtures("fair")
def test_a_slow_file_does_not_hold_up_requests_that_wait(served: Mount) -> None:
    readers = Readers(4, served)
    slow = threading.Thread(target=read, args=(f"{served.path}/proc/slow",))
    slow.start()
    time.sleep(SLOW / 4)
    read(f"{served.path}/proc/short")
    assert slow.is_alive()
    slow.join(5)
    readers.finish()


@pytest.mark.usefixtures("fair")
def test_readers_that_are_killed_while_they_wait_hold_up_nobody(mount: Mount) -> None:
    mount.start()
    readers = Readers(4, mount)
    for _ in range(20):
        killed = Readers(4, mount)
        time.sleep(random.uniform(0, 0.05))
        for process in killed.processes:
            process.kill()
    readers.finish()


def test_a_server_of_an_earlier_version_goes_on_in_a_session_of_this_one(mount: Mount) -> None:
    """It knows of slots and texts only, and finds them where it has always had them."""
    assert (session._PAGE, session._SLOT, session.SLOTS) == (4096, 8192, 32)
    assert session._TEXTS + open_texts.size() <= session._WAITING == 192 << 20


def test_no_reader_notices_a_server_that_is_stopped_for_a_while(mount: Mount) -> None:
    server = mount.start()
    readers = Readers(4, mount)
    for _ in range(10):
        time.sleep(random.uniform(0, 0.1))
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(0.05)
        os.kill(server.pid, signal.SIGCONT)
    readers.finish()


class ByHand:
    """A server that dies with each request it takes: only its successors answer, and they take none themselves."""

    def __init__(self, mount: Mount) -> None:
        self.session = mount.session
        self.opcodes: list[int] = []
        self.callers: list[int] = []  # for whom texts were rendered

    def run(self, action: Callable[[], Any], take: Optional[Callable[[], None]] = None) -> Any:
        """What `action` returns or raises, while each request that it makes is taken in hand by `take`."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(action)
            while not future.done() or self.is_asked(0):
                if self.is_asked(0.01):
                    (take or self.die)()
        return future.result()

    def is_asked(self, timeout: float) -> bool:
        return bool(select.select([self.session.fuse], [], [], timeout)[0])

    def take(self) -> memoryview:
        slot = self.session.slots[7]
        os.readv(self.session.fuse, [slot])
        self.opcodes.append(slot[session.OPCODE])
        return slot

    def die(self) -> None:
        """Die before the answer, and the successor right after it, before it could note that."""
        slot = self.take()
        taken = bytes(slot)
        self.succeed()
        slot[:] = taken
        slot[session.SETTLED] = self.opcodes[-1] == protocol.READ and not any(taken[48:56])  # at offset 0
        self.succeed()

    def succeed(self) -> None:
        tree = Tree()
        tree.callers = self.callers
        server = kernel.Server(tree, self.session, threads=1)
        server.stop(End.STOPPED)
        server.start()
        server.wait()
        assert not any(slot[session.OPCODE] for slot in self.session.slots)


@pytest.fixture
def by_hand(mount: Mount) -> ByHand:
    return ByHand(mount)


def test_every_kind_of_request_is_answered_by_a_successor(mount: Mount, by_hand: ByHand) -> None:
    def use_everything() -> None:
        cpu = f"{mount.path}/sys/devices/system/cpu"
        assert is_whole(read(f"{mount.path}/proc/long"))
        assert sorted(os.listdir(cpu)) == ["cpu0", "cpu1", "online"]
        assert sorted(os.listdir(mount.path)) == ["proc", "sys"]
        assert os.readlink(f"{cpu}/cpu0/self") == "../cpu0"
        assert not os.access(f"{mount.path}/proc/short", os.W_OK)
        assert os.statvfs(mount.path).f_namemax == 255
        fd = os.open(f"{mount.path}/proc/short", os.O_RDONLY)
        os.read(fd, 10)
        assert os.fstat(fd).st_mode == stat.S_IFREG | 0o444
        os.close(fd)
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(f"{mount.path}/new")
        Path("/proc/sys/vm/drop_caches").write_text("2")

    by_hand.run(use_everything)
    seen = set(by_hand.opcodes)
    assert {
        protocol.INIT,
        protocol.LOOKUP,
        protocol.GETATTR,
        protocol.ACCESS,
        protocol.STATFS,
        protocol.READLINK,
    } <= seen
    assert {protocol.OPEN, protocol.READ, protocol.RELEASE, protocol.OPENDIR, protocol.RELEASEDIR} <= seen
    assert seen & {protocol.READDIR, protocol.READDIRPLUS}
    assert seen & {protocol.FORGET, protocol.BATCH_FORGET}
    assert seen & set(protocol.WRITING)


def test_a_text_whose_first_part_was_sent_before_the_death_is_continued(mount: Mount, by_hand: ByHand) -> None:
    for _ in range(30):
        assert is_whole(by_hand.run(lambda: read(f"{mount.path}/proc/long", 300)))


def test_a_read_taken_up_after_its_file_was_closed_leaves_no_text(mount: Mount, by_hand: ByHand) -> None:
    first: list[Any] = []

    def die_and_take_up_the_first_read_at_last() -> None:
        slot = by_hand.take()
        if by_hand.opcodes[-1] == protocol.READ and not first:
            first.append(bytes(slot))
        by_hand.succeed()
        if by_hand.opcodes[-1] == protocol.RELEASE:
            slot[:] = first[0]
            slot[session.SETTLED] = 1
            by_hand.succeed()

    by_hand.run(lambda: read(f"{mount.path}/proc/short"), die_and_take_up_the_first_read_at_last)
    assert by_hand.opcodes[-1] == protocol.RELEASE
    handle = protocol.READ_IN.unpack_from(first[0], protocol.IN_HEADER.size)[0]
    assert mount.session.texts.get(handle) is None


def test_a_request_that_kills_each_server_is_refused_in_the_end(mount: Mount, by_hand: ByHand) -> None:
    def die_of_reads() -> None:
        slot = by_hand.take()
        if by_hand.opcodes[-1] == protocol.READ:
            slot[session.ATTEMPTS] = kernel.MAX_ATTEMPTS
        by_hand.succeed()

    with pytest.raises(OSError, match="Input/output error"):
        by_hand.run(lambda: read(f"{mount.path}/proc/short"), die_of_reads)


def test_a_request_that_ended_some_servers_is_answered_as_if_the_machine_had_asked(
    mount: Mount, by_hand: ByHand
) -> None:
    def take_the_read_after_some_servers() -> None:
        slot = by_hand.take()
        if by_hand.opcodes[-1] == protocol.READ:
            slot[session.ATTEMPTS] = kernel.AS_MACHINE
        by_hand.succeed()

    assert is_whole(by_hand.run(lambda: read(f"{mount.path}/proc/short"), take_the_read_after_some_servers))
    assert set(by_hand.callers) == {0}


def test_a_reader_killed_with_its_request_in_flight_ends_when_a_successor_answers(mount: Mount) -> None:
    server = mount.start()
    reader = FORK.Process(target=lambda: (mount.forget(), read(f"{mount.path}/proc/slow")))
    reader.start()
    time.sleep(SLOW / 2)
    server.kill()
    server.join(5)
    reader.kill()
    reader.join(0.2)
    assert reader.exitcode is None  # the kernel has it wait for the answer
    mount.start()
    reader.join(5)
    assert reader.exitcode == -signal.SIGKILL
    assert is_whole(read(f"{mount.path}/proc/short"))


# A server makes way for another


def succeed(path: str, ready: Any) -> None:
    """A new server's life: it takes over from whatever server is there."""
    taken = session.take_over(path)
    assert taken is not None
    server = kernel.Server(Tree(), taken, 2)
    server.start()
    session.offer(taken, lambda: server.stop(End.TAKEN_OVER))
    ready.set()
    server.wait()


def start_offered(mount: Mount) -> Any:
    server = mount.start(offered=True)
    wait_until(is_offered)
    return server


def is_offered() -> bool:
    return any(not entry.suffix for entry in Path(runtime_directory.PATH).glob("*"))


def wait_until(condition: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_no_reader_notices_fifty_takeovers(mount: Mount) -> None:
    server = start_offered(mount)
    readers = Readers(4, mount)
    mount.forget()  # nobody keeps the session but the servers
    for _ in range(50):
        ready = FORK.Event()
        successor = FORK.Process(target=succeed, args=(mount.path, ready))
        successor.start()
        mount.servers.append(successor)
        assert ready.wait(10)
        server.join(5)
        assert server.exitcode == 0
        server = successor
    readers.finish()


def test_a_server_that_makes_way_but_does_not_leave_is_killed(mount: Mount, monkeypatch: Any) -> None:
    def stay() -> None:
        server = kernel.Server(Tree(), mount.session, 2)
        server.start()
        session.offer(mount.session, lambda: None)
        server.wait()

    stubborn = FORK.Process(target=stay)
    stubborn.start()
    mount.servers.append(stubborn)
    wait_until(is_offered)
    monkeypatch.setattr(session, "PATIENCE", 0.3)
    ready = FORK.Event()
    successor = FORK.Process(target=succeed, args=(mount.path, ready))
    successor.start()
    mount.servers.append(successor)
    assert ready.wait(5)
    stubborn.join(5)
    assert stubborn.exitcode == -signal.SIGKILL
    assert is_whole(read(f"{mount.path}/proc/long"))


def test_a_server_that_does_not_answer_is_named_to_the_operator(mount: Mount, monkeypatch: Any) -> None:
    server = start_offered(mount)
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)
    monkeypatch.setattr(session, "PATIENCE", 0.2)
    with pytest.raises(session.SessionError, match="stop that server") as silent:
        session.take_over(mount.path)
    assert silent.value.hint.startswith(f"kill -CONT {server.pid} ")
    os.kill(server.pid, signal.SIGCONT)
    assert is_whole(read(f"{mount.path}/proc/short"))  # it stays: who asked is gone


def test_where_no_server_runs_there_is_none_to_take_over(mount: Mount) -> None:
    assert session.take_over(mount.path) is None
    start_offered(mount).kill()
    mount.servers[0].join(5)
    assert session.take_over(mount.path) is None


def test_only_root_may_reach_a_server(mount: Mount) -> None:
    start_offered(mount)
    run = Path(runtime_directory.PATH)
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    (path,) = run.iterdir()
    answer = FORK.SimpleQueue()

    def connect() -> None:
        mount.forget()
        directory = os.open(run, os.O_PATH)
        run.chmod(0o755)
        path.chmod(0o777)
        os.setuid(65534)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            answer.put(socket.recv_fds(connection, 100, 2)[:2])

    somebody = FORK.Process(target=connect)
    somebody.start()
    somebody.join(5)
    assert somebody.exitcode == 0
    assert answer.get() == (b"", [])


# Somebody keeps the session


def same(descriptors: list[int], kept: session.Session) -> bool:
    return all(map(os.path.sameopenfile, descriptors, (kept.fuse, kept.memory)))


def test_the_descriptors_go_to_systemd_once_and_without_being_watched_there(mount: Mount, monkeypatch: Any) -> None:
    assert not store.Store().put(mount.session)
    address = f"{mount.path}.notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        kept = store.Store()
        assert kept.put(mount.session)
        message, descriptors, _, _ = socket.recv_fds(systemd, 100, 5)
        assert kept.put(mount.session)
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
    assert message.splitlines() == [b"FDSTORE=1", b"FDNAME=lxcfs", b"FDPOLL=0"]
    assert same(descriptors, mount.session)
    for fd in descriptors:
        os.close(fd)


def inherit(
    descriptors: list[int], put: bool = False, also: Optional[session.Session] = None, **listen: str
) -> tuple[str, list[bytes]]:
    """The mountpoint of the session that a process started with these descriptors finds, "" if it finds none.

    And what it says to who has kept them when it is to have it kept, or another one if that is given.
    """
    result = FORK.SimpleQueue()

    def start() -> None:
        spare = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in descriptors]
        for target, fd in enumerate(spare, 3):
            os.dup2(fd, target)
        names = {"PID": str(os.getpid()), "FDS": str(len(spare)), "FDNAMES": "other:lxcfs:lxcfs", **listen}
        os.environ.update({f"LISTEN_{name}": value for name, value in names.items()})
        kept = store.Store()
        found = kept.session("/srv/views")
        assert not any(name.startswith("LISTEN_") for name in os.environ)
        said: list[bytes] = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            if put:
                address = f"/tmp/{os.getpid()}.notify"
                systemd.bind(address)
                systemd.setblocking(False)
                os.environ["NOTIFY_SOCKET"] = address
                to_keep = also or found
                assert to_keep
                kept.put(to_keep)
                os.unlink(address)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        message, fds, _, _ = socket.recv_fds(systemd, 100, 5)
                        said.append(message + b" %d" % len(fds))
        result.put((found.mountpoint if found else "", said))

    process = FORK.Process(target=start)
    process.start()
    process.join(5)
    return result.get()


def test_a_session_is_inherited_by_the_process_it_is_meant_for(mount: Mount) -> None:
    descriptors = [0, mount.session.memory, mount.session.fuse]
    assert inherit(descriptors)[0] == mount.path
    assert inherit(descriptors, PID="1")[0] == ""
    assert inherit(descriptors, FDNAMES="other:other:other")[0] == ""
    mount.start()
    read(f"{mount.path}/proc/short")
    mount.servers[0].kill()
    mount.servers[0].join(5)
    assert inherit(descriptors)[0] == mount.path
    abort(mount.path)
    assert inherit(descriptors)[0] == ""


def test_what_was_inherited_is_neither_removed_nor_stored_again(mount: Mount) -> None:
    assert inherit([0, mount.session.memory, mount.session.fuse], put=True) == (mount.path, [])


def test_a_new_session_is_stored_before_the_old_one_is_let_go(mount: Mount, tmp_path_factory: Any) -> None:
    old = [0, session.new_memory("/srv/views"), os.open("/dev/fuse", os.O_RDWR)]  # whose mount is gone
    _, said = inherit(old, put=True, also=mount.session)
    assert said == [b"FDSTORE=1\nFDNAME=lxcfs-2\nFDPOLL=0 2", b"FDSTOREREMOVE=1\nFDNAME=lxcfs 0"]
    _, said = inherit(old, put=True, also=mount.session, FDNAMES="other:lxcfs-2:lxcfs-2")
    assert said == [b"FDSTORE=1\nFDNAME=lxcfs\nFDPOLL=0 2", b"FDSTOREREMOVE=1\nFDNAME=lxcfs-2 0"]


def test_a_memory_file_that_takes_the_place_of_a_broken_one_is_stored_beside_it(mount: Mount) -> None:
    os.pwrite(mount.session.memory, b"LXCFS-PY", 0)
    found, said = inherit([0, mount.session.memory, mount.session.fuse], put=True)
    assert (found, said) == ("/srv/views", [b"FDSTORE=1\nFDNAME=lxcfs\nFDPOLL=0 1"])


class Kept:
    """A server below a keeper."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.deaths = Path(f"{path}.deaths")
        self.pid_file = Path(f"{path}.pid")
        command = [sys.executable, __file__, path, runtime_directory.PATH]
        self.keeper = FORK.Process(target=lambda: os._exit(keeper.keep(command)))
        self.keeper.start()

    def server(self) -> int:
        """The pid of the server, once it serves."""
        wait_until(self.pid_file.exists)
        return int(self.pid_file.read_text())

    def kill(self) -> None:
        pid = self.server()
        self.pid_file.unlink()
        os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        self.keeper.kill()
        self.keeper.join(5)
        if self.pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server(), signal.SIGKILL)
        abort(self.path)
        with contextlib.suppress(OSError):
            syscalls.umount(self.path, syscalls.MNT_DETACH)


@pytest.fixture
def kept(mountpoint: str) -> Iterator[Kept]:
    server = Kept(mountpoint)
    try:
        yield server
    finally:
        server.end()


def serve_below_a_keeper(mountpoint: str, run: str) -> None:
    """The program that the keeper starts: it serves, unless it is one of so many that are to die at their start."""
    runtime_directory.PATH = run
    deaths = Path(f"{mountpoint}.deaths")
    if deaths.exists() and int(deaths.read_text()):
        deaths.write_text(str(int(deaths.read_text()) - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    own = store.inherited().session(mountpoint)
    if own is None:
        own = session.create(mountpoint)
        store.inherited().put(own)
    server = kernel.Server(Tree(), own)
    signal.signal(signal.SIGTERM, lambda *_: server.stop(End.STOPPED))
    server.start()
    session.offer(own, lambda: server.stop(End.TAKEN_OVER))
    Path(f"{mountpoint}.new").write_text(str(os.getpid()))
    Path(f"{mountpoint}.new").rename(f"{mountpoint}.pid")
    if server.wait() is End.STOPPED:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH)


def test_a_keeper_starts_a_server_again_that_dies_and_dies_at_its_start(kept: Kept) -> None:
    kept.server()
    with open(f"{kept.path}/proc/long", "rb", buffering=0) as file:
        start = file.read(20)
        kept.kill()
        assert is_whole(start + file.readall())
        kept.deaths.write_text("3")
        kept.server()
        kept.kill()
        file.seek(0)
        assert is_whole(file.readall())
    assert kept.deaths.read_text() == "0"


def test_a_keeper_ends_with_a_server_that_is_told_to_stop(kept: Kept) -> None:
    kept.server()
    kept.keeper.terminate()
    kept.keeper.join(5)
    assert kept.keeper.exitcode == 0
    assert not os.path.ismount(kept.path)


def test_a_keeper_ends_when_its_server_was_taken_over(kept: Kept) -> None:
    kept.server()
    ready = FORK.Event()
    successor = FORK.Process(target=succeed, args=(kept.path, ready))
    successor.start()
    try:
        assert ready.wait(5)
        kept.keeper.join(5)
        assert kept.keeper.exitcode == 0
        assert is_whole(read(f"{kept.path}/proc/long"))
    finally:
        successor.kill()
        successor.join(5)


def test_a_keeper_does_not_start_a_server_again_that_never_had_a_session(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path))
    above = FORK.Process(target=lambda: os._exit(keeper.keep(["sh", "-c", f"echo >> {tmp_path}/starts; exit 3"])))
    above.start()
    above.join(5)
    assert above.exitcode == 3
    assert (tmp_path / "starts").read_text() == "\n"


if __name__ == "__main__":
    serve_below_a_keeper(*sys.argv[1:])
