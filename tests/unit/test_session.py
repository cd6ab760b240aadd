"""What the kernel engine's session keeps in its memory file for a successor."""

from __future__ import annotations

import errno
import mmap
import os
import resource
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from lxcfs_py.container.owners import Owners
from lxcfs_py.engine import open_texts, session, store
from lxcfs_py.engine.open_texts import _SHELVES, VERSION, Texts
from lxcfs_py.linux import runtime_directory, syscalls


@pytest.fixture
def memory() -> Iterator[int]:
    memory = session.new_memory("/var/lib/lxcfs")
    yield memory
    os.close(memory)


def texts(memory: int) -> Texts:
    kept = session.Session(-1, memory).texts
    kept.load()
    return kept


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 400_000, 2 << 20])
def test_a_text_is_found_by_a_successor_until_it_is_dropped(memory: int, size: int) -> None:
    text = os.urandom(size)
    texts(memory).put(2**63, b"an older one")
    texts(memory).put(2**63, text)
    texts(memory).put(5, b"another")
    assert texts(memory).get(2**63) == text
    texts(memory).drop(2**63)
    assert texts(memory).get(2**63) is None
    assert texts(memory).get(5) == b"another"


def test_a_text_that_is_too_big_is_not_kept_nor_is_its_older_one(memory: int) -> None:
    texts(memory).put(1, b"older")
    texts(memory).put(1, bytes((2 << 20) + 1))
    assert texts(memory).get(1) is None


def test_the_oldest_text_goes_when_all_cells_are_taken(memory: int) -> None:
    kept = texts(memory)
    count = _SHELVES[0][1]
    for handle in range(count):
        kept.put(handle, b"%d" % handle)
    kept.put(0, b"rewound")
    kept.put(count, b"one more")
    assert kept.get(1) is None
    assert [kept.get(handle) for handle in (0, 2, count)] == [b"rewound", b"2", b"one more"]


def test_the_container_with_the_most_texts_loses_its_own_first(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Owners, "of", lambda _, pid, uid: "noisy" if pid > 10 else "neighbour")
    kept = texts(memory)
    count = _SHELVES[0][1]
    for handle in range(10):
        kept.put(handle, b"mine", (handle, 0))
    for handle in range(10, 3 * count):
        kept.put(handle, b"its", (11, 0))
    assert [kept.get(handle) for handle in range(11)] == [b"mine"] * 10 + [None]
    for handle in range(10, 3 * count):
        kept.drop(handle)
    assert len(kept._held) == sum(map(len, kept._readers)) + len(kept._owner_of) == 10


def test_many_cgroups_of_one_user_lose_their_texts_first_though_each_has_few(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Owners, "of", lambda _, pid, uid: f"/user/{pid}" if pid else "/containers/victim")
    kept = texts(memory)
    for handle in range(60):
        kept.put(handle, b"mine", (0, 0))
    for handle in range(60, 2 * _SHELVES[0][1]):
        kept.put(handle, b"its", (handle // 2, 0))
    assert [kept.get(handle) for handle in range(60)] == [b"mine"] * 60


def test_a_successor_too_knows_which_texts_are_the_oldest(memory: int) -> None:
    count = _SHELVES[0][1]
    before = texts(memory)
    for handle in range(count):
        before.put(handle, b"%d" % handle)
    kept = texts(memory)
    kept.put(count, b"one more")
    assert kept.get(0) is None
    assert kept.get(1) == b"1"
    assert kept.get(count - 1) == b"%d" % (count - 1)


def test_a_text_that_was_being_written_is_not_taken_for_a_whole_one(memory: int) -> None:
    class Killed(BaseException):
        pass

    class Text(bytes):
        def __len__(self) -> int:
            raise Killed

    kept = texts(memory)
    kept.put(1, b"whole")
    with pytest.raises(Killed):
        kept.put(1, Text(b"half"))
    assert texts(memory).get(1) is None


def test_a_memory_file_of_something_else_is_refused_in_a_sentence(memory: int) -> None:
    os.pwrite(memory, b"LXCFS-PY", 0)
    with pytest.raises(session.SessionError, match="no session's"):
        session.Session(-1, memory)


def test_a_memory_file_whose_mountpoint_can_be_none_is_refused_too(memory: int) -> None:
    os.pwrite(memory, struct.pack("=I", 2000), session._HEADER.size - 4)
    with pytest.raises(session.SessionError, match="no session's"):
        session.Session(-1, memory)


@pytest.mark.parametrize("size", [1 << 20, 1 << 30])
def test_a_session_of_another_version_goes_on_without_its_texts(memory: int, size: int) -> None:
    """Above the texts, all versions agree. What another version kept of these may be less or more, or look like any."""
    before = session.Session(-1, memory)
    before.claim()
    before.texts.put(1, b"of another version")
    before.slots[3][:8] = b"request."
    before.negotiated(31, 7)
    os.ftruncate(memory, session._TEXTS + size)
    os.pwrite(memory, struct.pack("=I", VERSION + 1), 8)
    after = session.Session(-1, memory)
    after.claim()
    assert (after.mountpoint, after.agreed, after.slots[3][:8]) == ("/var/lib/lxcfs", (31, 7), b"request.")
    assert after.texts.get(1) is None
    after.texts.put(1, b"of this one")
    again = session.Session(-1, memory)
    again.claim()
    assert again.texts.get(1) == b"of this one"


@pytest.fixture
def fuse() -> Iterator[int]:
    """A descriptor of a character device whose other end is there, as that of a mounted /dev/fuse."""
    other, fuse = os.openpty()
    yield fuse
    os.close(fuse)
    os.close(other)


@pytest.mark.parametrize("damage", ["truncated", "begins otherwise", "wrong length", "gone"])
def test_a_session_goes_on_whatever_happened_to_its_memory_file(memory: int, fuse: int, damage: str) -> None:
    before = session.Session(fuse, memory)
    before.slots[3][:8] = b"request."
    waits = before.waiting.get()
    assert waits is not None
    waits[:8] = b"waiting."
    before.device, before.shows_machine = "0:45", True
    if damage == "truncated":
        os.ftruncate(memory, 0)
    elif damage == "wrong length":
        os.pwrite(memory, struct.pack("=I", 2000), session._HEADER.size - 4)
    elif damage == "begins otherwise":
        os.pwrite(memory, b"LXCFS-PY", 0)
    kept = session.session_of([fuse] if damage == "gone" else [fuse, memory], "/srv/views")
    assert kept is not None
    assert kept.agreed != (0, 0), "the kernel does not say it again"
    assert kept.mountpoint == "/srv/views"
    if damage in ("begins otherwise", "wrong length"):
        assert kept.slots[3][:8] == b"request.", "somebody may wait for that"
        kept.claim()
        assert [bytes(slot[:8]) for slot in kept.left_waiting] == [b"waiting."], "and for that"
        assert (kept.device, kept.shows_machine) == (("0:45", True) if damage == "wrong length" else ("", False))


def test_a_session_knows_its_mountpoint(memory: int) -> None:
    assert session.Session(-1, memory).mountpoint == "/var/lib/lxcfs"


def test_a_session_that_has_lost_its_memory_file_is_where_the_last_says_who_asks_for_it(memory: int, fuse: int) -> None:
    for descriptors, place in (([fuse], "/srv/views"), ([fuse, memory], "/var/lib/lxcfs")):
        kept = store.Store()
        kept._kept = {"lxcfs": descriptors}
        kept.session("/somewhere/that/is/longer")
        found = kept.session("/srv/views")
        assert found is not None
        assert found.mountpoint == place
        assert session.Session(fuse, found.memory).mountpoint == place


def test_mount_options_reach_the_kernel_behind_the_servers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[str] = []
    monkeypatch.setattr(syscalls, "mount", lambda *arguments: reached.append(arguments[-1]))
    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    for options in ("", 'context="a:b:c:s0:c1,c2"'):
        made = session.create("/nowhere", options)
        os.close(made.fuse)
        os.close(made.memory)
    plain, labelled = (text.partition(",")[2] for text in reached)
    assert plain.startswith("rootmode=")
    assert labelled == f'{plain},context="a:b:c:s0:c1,c2"'


@pytest.mark.parametrize("fails", ["memfd_create", "ftruncate", "mmap"])
def test_nothing_is_mounted_where_there_can_be_no_memory_file(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    refused = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    monkeypatch.setattr(mmap if fails == "mmap" else os, fails, Mock(side_effect=refused))
    monkeypatch.setattr(syscalls, "mount", lambda *_: pytest.fail("mounted"))
    monkeypatch.setattr(os, "open", lambda *_: os.dup(0))
    with pytest.raises(session.SessionError, match="Cannot allocate memory"):
        session.create("/nowhere")


def test_whose_texts_are_is_looked_up_a_few_at_a_time_before_there_is_no_more_room(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes some 20 us, and all others wait for it."""
    kept = texts(memory)
    asked: list[int] = []
    monkeypatch.setattr(kept._owners, "of", lambda pid, uid: asked.append(pid) or ("victim" if pid < 3 else "flood"))
    most = 0
    for handle in range(2 * _SHELVES[0][1]):
        before = len(asked)
        kept.put(handle, b"text", (handle, 0))
        most = max(most, len(asked) - before)
    assert most <= 2 * open_texts._AT_ONCE
    assert [kept.get(handle) for handle in range(3)] == [b"text"] * 3, "the oldest of all, and of another container"


def test_a_successor_gets_all_listeners_though_it_reads_them_only_when_the_server_has_left(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(8192, hard)), hard))
    names = {f"listener-{number}": 0 for number in range(4096)}
    has_left = threading.Event()
    with open("/dev/null", "rb+", buffering=0) as fuse:
        served = session.Session(fuse.fileno(), memory)
        session.offer(served, has_left.set, lambda: names)
        taken = session.take_over(served.mountpoint)
        assert taken
        monkeypatch.setattr(taken, "_lock_within", lambda _: has_left.wait(20))
        taken.claim()
        received = dict(taken.others)
        for descriptor in received.values():
            os.close(descriptor)
        taken.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received.keys() == names.keys()


def test_an_owner_in_another_pid_namespace_is_not_killed_and_named_as_such(
    memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = session.Session(-1, memory)
    monkeypatch.setattr(session.Session, "_lock_within", lambda *_: False)
    monkeypatch.setattr(session, "_claimed_by", lambda _: 0)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("0 is this process's own group"))
    with pytest.raises(session.SessionError, match="a process of another pid namespace holds the session"):
        kept.claim()


def test_one_that_may_not_be_killed_is_to_be_stopped(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = session.Session(-1, memory)
    monkeypatch.setattr(session.Session, "_lock_within", lambda *_: False)
    monkeypatch.setattr(session, "_claimed_by", lambda _: 1)
    monkeypatch.setattr(os, "kill", Mock(side_effect=PermissionError))
    with pytest.raises(session.SessionError, match="ended: stop it"):
        kept.claim()


@pytest.mark.parametrize("word", [b"mine", b""], ids=["takes it", "ends"])
def test_an_offer_ends_when_whoever_has_been_sent_the_session_has_said_whether_it_takes_it(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: bytes
) -> None:
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path))
    left: list[bool] = []
    with open("/dev/null", "rb+", buffering=0) as fuse:
        end = session.offer(session.Session(fuse.fileno(), memory), lambda: left.append(True))
        taken = session.take_over("/var/lib/lxcfs")
        assert taken
        assert taken.predecessor
        ends = threading.Thread(target=end, daemon=True)
        ends.start()
        ends.join(0.2)
        assert ends.is_alive()
        taken.predecessor.send(word) if word else taken.predecessor.close()
        ends.join(20)
        assert not ends.is_alive()
        taken.close()
    assert left == [True] * bool(word)
