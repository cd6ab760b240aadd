"""The engine fusepy, without any mount: what libfuse's calls ask of a tree, and the texts of open files."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

fusepy: Any = None
with contextlib.suppress(ImportError, OSError):
    fusepy = importlib.import_module("lxcfs_py.engine.fusepy")

READER = 4711
LINE = b"%08d\n"


@pytest.fixture(scope="module", autouse=True)
def _library(require: Callable[[object, str], None]) -> None:
    require(fusepy, "libfuse, and fusepy or mfusepy")


class Tree:
    """A tree whose every file says how often any was rendered, and for whom."""

    def __init__(self) -> None:
        self.rendered = 0
        self.callers: set[int] = set()

    def lengths(self) -> dict[str, int]:
        return {}

    def render(self, caller: int, path: str) -> bytes:
        self.callers.add(caller)
        self.rendered += 1
        return LINE % self.rendered * 100

    def getattr(self, caller: int, path: str) -> dict[str, int]:
        return {"st_mode": stat.S_IFREG | 0o444}

    def open(self, caller: int, path: str, flags: int) -> None:
        self.callers.add(caller)
        if flags & os.O_ACCMODE:
            raise OSError(errno.EACCES, path)


@pytest.fixture
def tree() -> Tree:
    return Tree()


@pytest.fixture
def operations(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(fusepy._fuse, "fuse_get_context", lambda: (0, 0, READER))
    return fusepy.Operations(tree)


def opened(operations: Any, flags: int = os.O_RDONLY) -> SimpleNamespace:
    """A struct fuse_file_info of an open file."""
    file = SimpleNamespace(flags=flags, lock_owner=1)
    assert operations("open", "/proc/stat", file) == 0
    return file


def test_each_request_is_its_callers(operations: Any, tree: Tree) -> None:
    operations("read", "/proc/stat", 10, 0, opened(operations))
    assert tree.callers == {READER}


def test_small_reads_at_any_offsets_get_parts_of_one_text(operations: Any, tree: Tree) -> None:
    file = opened(operations)
    text = operations.read("/proc/stat", 1, 0, file)
    operations.read("/proc/stat", 1, 0, opened(operations))
    while part := operations.read("/proc/stat", 7, len(text), file):
        text += part
    assert text == LINE % 1 * 100
    assert operations.read("/proc/stat", 50, len(text) + 1000, file) == b""
    assert operations.read("/proc/stat", 1 << 20, 0, file) == LINE % 3 * 100, "a rewind renders afresh"


def test_two_open_files_do_not_mix_up_their_texts(operations: Any) -> None:
    files = [opened(operations) for _ in range(4)]
    parts = [operations.read("/proc/stat", 100, 0, file) for file in files]
    for n, file in enumerate(files):
        assert parts[n] + operations.read("/proc/stat", 1 << 20, 100, file) == LINE % (n + 1) * 100


def test_a_text_is_dropped_when_its_file_is_closed(operations: Any) -> None:
    file = opened(operations)
    operations.read("/proc/stat", 5, 0, file)
    operations.release("/proc/stat", file)
    assert operations._texts.get(file.fh) is None


def test_a_read_for_the_page_cache_gets_nothing(operations: Any, tree: Tree) -> None:
    file = opened(operations)
    file.lock_owner = 0
    for offset in (0, 10):
        with pytest.raises(OSError, match="Invalid argument"):
            operations.read("/proc/stat", 10, offset, file)
    assert not tree.rendered


def test_what_may_not_be_opened_gets_no_handle(operations: Any) -> None:
    with pytest.raises(PermissionError):
        opened(operations, os.O_WRONLY)


@pytest.mark.parametrize("change", ["chmod", "chown", "utimens"])
def test_what_would_change_something_is_refused_as_the_other_engine_does(operations: Any, change: str) -> None:
    with pytest.raises(OSError, match="Read-only") as refused:
        operations(change, "/proc/stat", 0, 0)
    assert refused.value.errno == errno.EROFS


def test_a_file_is_not_cut_short(operations: Any) -> None:
    with pytest.raises(PermissionError):
        operations("truncate", "/proc/stat", 0)


def test_a_file_takes_as_many_blocks_as_its_size(operations: Any, tree: Tree) -> None:
    assert operations("getattr", "/proc/stat")["st_blocks"] == 8
    operations._sizes.note("/proc/stat", 5000)
    assert operations("getattr", "/proc/stat")["st_blocks"] == 16


def test_a_container_that_opens_many_files_takes_bounded_room_and_still_reads(
    operations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusepy, "_MAX_TEXT_BYTES", 20_000)
    first = opened(operations)
    operations.read("/proc/stat", 100, 0, first)
    for _ in range(50):
        operations.read("/proc/stat", 100, 0, opened(operations))
    assert len(operations.read("/proc/stat", 1 << 20, 100, first)) == 800


def test_texts_are_kept_till_their_file_is_closed() -> None:
    texts = fusepy.Texts()
    texts.put(1, b"one", "a")
    texts.put(2, b"two", "b")
    texts.put(1, b"three", "b")
    assert (texts.get(1), texts.get(2), texts.get(3)) == (b"three", b"two", None)
    texts.drop(1)
    texts.drop(1)
    assert texts.get(1) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 130) | st.none()), max_size=60))
def test_texts_take_no_more_room_than_they_may(steps: list[tuple[int, Any]]) -> None:
    texts, room = fusepy.Texts(), 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusepy, "_MAX_TEXT_BYTES", room)
        for handle, size in steps:
            if size is None:
                texts.drop(handle)
            else:
                texts.put(handle, bytes(size), "abc"[handle % 3])
            kept = [text for text in map(texts.get, range(10)) if text is not None]
            assert sum(map(len, kept)) <= room
            assert sum(texts._sizes.values()) == sum(map(len, kept))


def test_who_has_the_most_texts_loses_its_own_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusepy, "_MAX_TEXT_BYTES", 1000)
    texts = fusepy.Texts()
    texts.put(0, bytes(100), "neighbour")
    for handle in range(1, 30):
        texts.put(handle, bytes(100), "noisy")
    assert texts.get(0) == bytes(100)
    assert [handle for handle in range(1, 30) if texts.get(handle) is not None] == list(range(21, 30))


def test_it_is_where_it_was_though_libfuse_goes_elsewhere_as_it_begins(
    operations: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    operations.directory = os.open(".", os.O_PATH)
    try:
        os.chdir("/")
        operations("init", "/")
        assert Path.cwd() == tmp_path
    finally:
        os.close(operations.directory)
