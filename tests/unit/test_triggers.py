"""Triggers of pressure stall information: their texts, whose they are, and what a successor finds of them."""

from __future__ import annotations

import errno
import json
import mmap
import os
import select
import threading
import time
import weakref
from queue import SimpleQueue

import pytest

from lxcfs_py.container.owners import Owners
from lxcfs_py.engine import open_texts, protocol
from lxcfs_py.engine import triggers as module
from lxcfs_py.engine.triggers import MOST, Triggers
from lxcfs_py.linux import psi, threads
from tests.kept import wait_for

READER = (os.getpid(), 0)


@pytest.mark.parametrize(
    ("text", "privileged", "expected"),
    [
        (b"some 150000 2000000\n", False, "some 150000 2000000"),
        (b"full 1 10000000\0", False, "full 1 10000000"),
        (b"some 150000 1000000\0", True, "some 150000 1000000"),
        (b"some\t150000\t2000000\0", False, "some 150000 2000000"),
        (b"some150000 \xa0\n2000000\0", False, "some 150000 2000000"),
        (b"some 00000150000 2000000\0", False, "some 150000 2000000"),
        (b"some 4295117296 2000000\0", False, "some 150000 2000000"),  # 2**32 more
        (b"full 150000 2000000, and the kernel reads no further", False, "full 150000 2000000"),
        (b"some             150000  2000000\0", True, None),  # whose last digit it does not see
        (b"some 150000 20000000", False, "some 150000 2000000"),  # it puts a NUL over the last byte
        (b"some 150000 2000000", True, None),
        (b" some 150000 2000000\0", True, None),
        (b"some 150000,2000000\0", True, None),
        (b"some +150000 2000000\0", True, None),
        (b"some 150000 1000000\0", False, None),
        (b"some 150000 499999\0", True, None),
        (b"some 150000 10000001\0", True, None),
        (b"some 2000001 2000000\0", True, None),
        (b"some 0 2000000\0", True, None),
        (b"some -1 2000000\0", True, None),
        (b"some 1 20000000000\0", True, None),
        (b"cpu 150000 2000000\0", True, None),
        (b"some 150000\0", True, None),
        (b"\0", True, None),
        (b"", True, None),
    ],
)
def test_a_trigger_is_what_the_kernel_takes(text: bytes, privileged: bool, expected: str) -> None:
    if expected:
        assert psi.check(text, privileged) == expected
        return
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        psi.check(text, privileged)


class Armed:
    """A trigger that fires when it is said."""

    def __init__(self):
        self.is_due = False

    def fires(self):
        is_due, self.is_due = self.is_due, False
        return is_due


class Tree:
    def __init__(self):
        self.armed = weakref.WeakValueDictionary()
        self.moved = {}

    def arm(self, what, owner):
        if what == "never":
            return None
        if what == "gone":
            raise OSError(errno.ENODEV, what)
        self.armed[what] = armed = Armed()
        return armed

    def renewed(self, what):
        if what == "odd":
            raise KeyError(what)
        return self.moved.get(what, what)

    def fire(self, what):
        self.armed[what].is_due = True


@pytest.fixture
def tree(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.02)
    return Tree()


@pytest.fixture
def server(tree):
    """A function that starts a server on one memory: its triggers, and whom it woke."""
    memory = mmap.mmap(-1, open_texts.size())

    def start():
        texts = open_texts.Texts(memory, 0)
        texts.load()
        woken = SimpleQueue()
        triggers = Triggers(tree, texts, woken.put)
        triggers.take_up()
        return triggers, woken

    return start


READY = protocol.POLL_ALWAYS
ERROR = READY | select.POLLERR | select.POLLPRI


def test_one_that_fires_wakes_who_waits_and_is_told_once(tree, server) -> None:
    triggers, woken = server()
    triggers.set(1, "a", READER, 0, 20)
    triggers.set(2, "never", READER, 0, 20)
    assert [triggers.poll(handle, 70 + handle, READER) for handle in (1, 2, 3)] == [READY, READY, ERROR]
    tree.fire("a")
    assert woken.get(timeout=10) == 71
    assert [triggers.poll(1, 0, READER) for _ in range(2)] == [READY | select.POLLPRI, READY]
    triggers.drop(1)
    assert 1 not in triggers
    assert triggers.poll(1, 71, READER) == ERROR


def test_one_whose_container_has_moved_is_armed_where_that_is_now_also_by_a_successor(tree, server) -> None:
    triggers, woken = server()
    for handle, what in enumerate(("old", "stays", "cannot be armed elsewhere", "odd")):
        triggers.set(handle, what, READER, 0, 20)
        triggers.poll(handle, 70 + handle, READER)
    tree.moved = {"old": "new", "cannot be armed elsewhere": "gone"}
    wait_for(lambda: "new" in tree.armed and "old" not in tree.armed)
    for what, expected in (("new", 70), ("stays", 71), ("cannot be armed elsewhere", 72), ("odd", 73)):
        tree.fire(what)
        assert woken.get(timeout=10) == expected
    tree.moved = {}
    kept = [json.loads(triggers._texts.get(key))[0] for key in triggers._texts.handles_from(module._KEPT)]
    assert sorted(kept) == ["cannot be armed elsewhere", "new", "odd", "stays"]


def test_a_successor_has_them_too_but_those_that_are_over(tree, server) -> None:
    triggers, _ = server()
    for handle, what in enumerate(("a", "b", "never")):
        triggers.set(handle, what, READER, 0, 20)
        triggers.poll(handle, 70 + handle, READER)
    triggers.drop(1)
    successor, woken = server()
    assert [handle for handle in range(3) if handle in successor] == [0, 2]
    assert {woken.get(timeout=10), woken.get(timeout=10)} == {70, 72}, "they look again"
    tree.fire("a")
    assert woken.get(timeout=10) == 70
    tree.arm = lambda what, owner: os.close(-1)
    last, woken = server()
    assert {woken.get(timeout=10), woken.get(timeout=10)} == {70, 72}, "they are told"
    assert last.poll(0, 70, READER) == ERROR, "as the kernel says of a cgroup that is gone"
    assert server()[1].empty(), "nothing is kept of what is gone"


def test_a_successor_has_those_of_a_server_that_kept_no_positions(tree, server) -> None:
    triggers, _ = server()
    triggers._texts.put(module._KEPT + 1, b'["a", "/containers/a", 71]')
    successor, woken = server()
    assert woken.get(timeout=10) == 71
    assert successor.poll(1, 71, READER) == READY
    assert successor.offset(1, 20, READER) == 20
    tree.fire("a")
    assert woken.get(timeout=10) == 71


def test_what_cannot_be_read_of_a_predecessor_is_not_kept(server) -> None:
    triggers, _ = server()
    for number, text in enumerate((b"", b'["never", "/", 71, 1, 2, 3]')):
        triggers._texts.put(module._KEPT + number, text)
    successor, _ = server()
    assert not successor._texts.handles_from(module._KEPT)


def test_where_nobody_can_watch_a_trigger_it_is_refused_and_takes_no_room(tree, server, monkeypatch) -> None:
    def none_left(*_arguments, **_options):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    triggers, woken = server()
    with monkeypatch.context() as patch:
        patch.setattr(threads, "start", none_left)
        with pytest.raises(OSError, match=os.strerror(errno.EAGAIN)):
            triggers.set(1, "a", READER, 0, 20)
    assert 1 not in triggers
    assert not triggers._texts.handles_from(module._KEPT)
    triggers.set(1, "b", READER, 0, 20)
    triggers.poll(1, 71, READER)
    tree.fire("b")
    assert woken.get(timeout=10) == 71


def test_where_none_can_be_watched_in_the_background_a_predecessors_are_armed_at_once(
    tree, server, monkeypatch
) -> None:
    triggers, _ = server()
    for handle, what in enumerate(("never", "a")):
        triggers.set(handle, what, READER, 0, 20)
    monkeypatch.setattr(threads, "start", lambda *_arguments, **_options: os.close(-1))
    successor, woken = server()
    assert {woken.get(timeout=1), woken.get(timeout=1)} == {0}, "the kernel knows none by this name"
    assert [successor.holds(handle) for handle in (0, 1)] == [True, False], "one cannot be watched"


def test_nobody_watches_when_there_are_none_and_one_that_fails_is_nothing_to_others(tree, server) -> None:
    triggers, woken = server()
    for handle, what in enumerate(("fails", "a")):
        triggers.set(handle, what, READER, 0, 20)
        triggers.poll(handle, 70 + handle, READER)
    tree.armed["fails"].fires = lambda: os.close(-1)
    assert woken.get(timeout=10) == 70
    assert triggers.poll(0, 70, READER) == ERROR, "it is taken away, as what it is for is gone"
    tree.fire("a")
    assert woken.get(timeout=10) == 71
    triggers.drop(0)
    triggers.drop(1)
    wait_for(lambda: not triggers._watching)
    triggers.set(2, "b", READER, 0, 20)
    triggers.poll(2, 72, READER)
    tree.fire("b")
    assert woken.get(timeout=10) == 72
    triggers.drop(2)


def test_one_whose_waiter_cannot_be_told_is_kept(tree, server) -> None:
    triggers, _ = server()
    triggers.set(1, "a", READER, 0, 20)
    triggers.poll(1, 71, READER)
    triggers._wake = lambda waits: os.close(-1)
    tree.fire("a")
    wait_for(lambda: triggers.poll(1, 71, READER) == READY | select.POLLPRI)
    assert triggers.holds(1)
    triggers.drop(1)


def test_one_thread_watches_also_where_two_are_armed_at_a_time(tree, server, monkeypatch) -> None:
    started = []

    def start(*_arguments, **options):
        started.append(options["name"])
        time.sleep(0.2)

    triggers, _ = server()
    monkeypatch.setattr(threads, "start", start)
    writers = [
        threading.Thread(target=triggers.set, args=(handle, what, READER, 0, 20)) for handle, what in enumerate("ab")
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert started == ["triggers"]


def test_to_write_one_moves_the_position_of_its_file_by_nothing(server) -> None:
    """The kernel's FUSE adds what was written: 20 bytes here, by who had read 12 before. A successor knows it too."""
    triggers, _ = server()
    triggers.set(1, "never", READER, 12, 20)
    for now in (triggers, server()[0]):
        assert [now.offset(1, offset, READER) for offset in (32, 36, 132)] == [12, 16, 112]
        assert now.offset(2, 32, READER) == 32
    assert [triggers.offset(1, offset, READER) for offset in (0, 32, 132)] == [0, 32, 132], "after it went back"
    assert not triggers.moved
    assert server()[0].offset(1, 32, READER) == 32
    triggers.set(3, "never", READER, 0, 20)
    triggers.drop(3)
    assert triggers.offset(3, 20, READER) == 20


def test_who_appends_one_is_at_the_beginning(server) -> None:
    """The kernel's FUSE says that it was written at the end of a file of 4096 bytes, and adds that too."""
    triggers, _ = server()
    triggers.set(1, "never", READER, 4096, 20, appends=True)
    assert [triggers.offset(1, offset, READER) for offset in (4116, 4120)] == [0, 4]


def test_no_thread_is_sent_before_the_beginning_while_another_goes_back(server, monkeypatch) -> None:
    positions = []

    class Watched(module._Trigger):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            positions.append(self.start - self.ahead)

    monkeypatch.setattr(module, "_Trigger", Watched)
    triggers, _ = server()
    triggers.set(1, "never", READER, 0, 20)
    assert triggers.offset(1, 0, READER) == 0
    assert min(positions) == 0


def test_an_owner_has_sixteen_and_a_file_one(server) -> None:
    triggers, _ = server()
    for handle in range(MOST):
        triggers.set(handle, "never", READER, 0, 20)
    for handle, expected in ((0, errno.EBUSY), (MOST, errno.ENOSPC)):
        with pytest.raises(OSError, match=os.strerror(expected)):
            triggers.set(handle, "never", READER, 0, 20)
    triggers.set(MOST, "never", (0, 4711), 0, 20)
    triggers.drop(0)
    triggers.set(0, "never", READER, 0, 20)


@pytest.fixture
def crowded(server, monkeypatch):
    """Triggers of whom there is room for eight: a pid stands for a cgroup. All are taken by cgroups of one user."""
    cgroups = {1: "/containers/a", 2: "/containers/b", **{9 + number: f"/user/{number}" for number in range(8)}}
    monkeypatch.setattr(module, "_MOST_OF_ALL", 8)
    monkeypatch.setattr(Owners, "_look_up", lambda self, pid: cgroups[pid])
    made, woken = server()
    for handle in range(8):
        made.set(handle, "never", (9 + handle, 0), 0, 20)
        made.poll(handle, 70 + handle, (9 + handle, 0))
    return made, woken


def test_one_users_cgroups_take_no_room_from_a_container(crowded) -> None:
    triggers, woken = crowded
    triggers.set(10, "never", (1, 0), 0, 20)
    triggers.set(11, "never", (2, 0), 0, 20)
    lost = [handle for handle in range(8) if triggers.poll(handle, 0, READER) == ERROR]
    assert len(lost) == 2
    assert [woken.get(timeout=10) for _ in lost] == [70 + handle for handle in lost], "they are told"
    assert [triggers.offset(lost[0], offset, READER) for offset in (20, 24)] == [0, 4], "they read on where they were"
    triggers.drop(lost[0])
    assert lost[0] not in triggers
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        triggers.set(12, "never", (9 + lost[0], 0), 0, 20)
    assert 10 in triggers
    assert 11 in triggers


def test_of_files_that_lost_their_triggers_and_stay_open_so_many_are_known(server, monkeypatch) -> None:
    monkeypatch.setattr(module, "_MOST_MOVED", 4)
    triggers, _ = server()
    triggers.set(0, "never", READER, 0, 20)
    for handle in range(1, 7):
        triggers.set(handle, "never", READER, 0, 20)
        triggers._take_away(handle)
    assert sorted(triggers.moved) == [0, 4, 5, 6], "the one that has its trigger still, and the latest"


def test_where_a_trigger_cannot_be_armed_it_takes_no_room(server) -> None:
    triggers, _ = server()
    for handle in range(MOST + 1):
        with pytest.raises(OSError, match="gone"):
            triggers.set(handle, "gone", READER, 0, 20)
    assert 0 not in triggers


def test_one_written_after_another_was_taken_away_moves_the_position_by_nothing_either(crowded) -> None:
    triggers, _ = crowded
    triggers.set(10, "never", (1, 0), 0, 20)
    (lost,) = [handle for handle in range(8) if triggers.poll(handle, 0, READER) == ERROR]
    for handle in range(8):
        if handle != lost:
            triggers.drop(handle)
    triggers.set(lost, "never", (1, 0), 24, 20)  # after it has read 4 bytes
    assert triggers.offset(lost, 44, (1, 0)) == 4
