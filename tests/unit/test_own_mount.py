"""For how long a mount stays away that is taken away again and again; and who holds what it is mounted from."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from lxcfs_py.daemon import own_mount
from lxcfs_py.engine import parcel, store


def test_the_pauses_get_longer_and_start_anew_when_the_mount_has_stayed():
    pauses = itertools.accumulate(range(9), lambda pause, _: own_mount.next_pause(pause, pause + 0.1), initial=0.0)
    assert list(pauses) == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert own_mount.next_pause(60.0, 601.0) == 1


def test_a_parcel_holds_what_was_packed_for_everybody_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    packed = parcel.pack(file)
    os.close(file)
    copies = [parcel.unpack(packed), parcel.unpack(os.dup(packed))]
    assert [os.readlink(f"/proc/self/fd/{copy}") for copy in copies] == [str(path)] * 2
    for fd in (*copies, packed):
        os.close(fd)


def test_what_is_no_parcel_has_nothing_in_it() -> None:
    with pytest.raises(OSError):  # noqa: PT011 - whichever
        parcel.unpack(os.open("/", os.O_RDONLY))


def test_a_mount_is_stored_before_the_one_before_it_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(store, "notify", lambda text, fds=(), _seconds=0: messages.append(text.replace("\n", " ")))
    kept = store.Store()
    assert kept.mount() is None
    for number in range(3):
        kept.keep_mount(os.open(f"/proc/self/fdinfo/{number}", os.O_RDONLY))
        mount = kept.mount()
        assert mount is not None
        assert os.readlink(f"/proc/self/fd/{mount}").endswith(f"/fdinfo/{number}")
    assert messages == [
        "FDSTORE=1 FDNAME=mount FDPOLL=0",
        "FDSTORE=1 FDNAME=mount-2 FDPOLL=0",
        "FDSTOREREMOVE=1 FDNAME=mount",
        "FDSTORE=1 FDNAME=mount FDPOLL=0",
        "FDSTOREREMOVE=1 FDNAME=mount-2",
    ]


def test_while_nobody_listens_who_would_keep_mounts_no_more_and_more_of_them_are_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_not_heard(*_arguments: object) -> bool:
        raise BlockingIOError

    kept = store.Store()
    file = os.open("/", os.O_RDONLY)
    monkeypatch.setattr(store, "notify", is_not_heard)
    held = []
    for _ in range(4):
        with pytest.raises(BlockingIOError):
            kept.keep_mount(file)
        held.append(len(os.listdir("/proc/self/fd")))
    assert held[1:] == [held[1]] * 3
    monkeypatch.setattr(store, "notify", lambda *_: True)
    kept.keep_mount(file)
    assert list(kept.others) == ["mount-2"], "the first one may have been heard of: it goes when another one is"
    assert len(os.listdir("/proc/self/fd")) == held[0]
    os.close(file)
    os.close(kept.others["mount-2"])
