"""Files of the kernel that stay open."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from lxcfs_py.linux import aside
from lxcfs_py.linux.kernel_files import Group, HeldDirectory, KernelDirectory


def open_descriptors() -> set[int]:
    listed = [int(name) for name in os.listdir("/proc/self/fd")]
    return {fd for fd in listed if os.path.exists(f"/proc/self/fd/{fd}")}  # all but the one of the listing itself


def open_files() -> int:
    return len(open_descriptors())


def test_a_file_is_read_anew_each_time(tmp_path):
    file = tmp_path / "memory.max"
    directory = KernelDirectory(str(tmp_path))
    for content in (b"max\n", b"4096\n", b""):
        file.write_bytes(content)
        assert directory.read("memory.max") == content


def test_files_stay_open_as_long_as_their_directory_is_known(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    before = open_files()
    directory = KernelDirectory(str(tmp_path))
    assert open_files() == before
    for _ in range(3):
        assert [directory.read(name) for name in "abc"] == [b"a", b"b", b"c"]
        assert open_files() == before + 3
    del directory
    assert open_files() == before


@pytest.mark.parametrize("size", [0, 16383, 16384, 16385, 100_000])
def test_a_long_file_is_read_whole(tmp_path, size):
    text = os.urandom(size)
    (tmp_path / "long").write_bytes(text)
    directory = KernelDirectory(str(tmp_path))
    assert directory.read("long") == text
    assert directory.read_records("long") == text
    assert directory.read_records("long", 1000) == text[:1000]


def test_a_file_in_records_is_read_whole():
    directory = KernelDirectory("/proc")
    assert directory.read_records("cpuinfo") == Path("/proc/cpuinfo").read_bytes() != b""

    def devices(text: bytes) -> list[bytes]:
        return [line.split()[2] for line in text.splitlines()]

    before = Path("/proc/diskstats").read_bytes()
    read = directory.read_records("diskstats")
    after = Path("/proc/diskstats").read_bytes()
    assert devices(read) in (devices(before), devices(after)), "loop devices come and go"


def test_records_that_come_page_by_page_are_read_to_the_end(monkeypatch):
    """As the kernel gives them: as many as fit into a page, or one that does not, as a disk with many partitions."""
    records = [b"%04d".ljust(size, b".") % number for number, size in enumerate([900, 3000, 68, 5596, 200])]
    pages = [b"".join(records[:2]), records[2], records[3], records[4], b""]
    text = b"".join(records)
    starts = {sum(map(len, pages[:n])): page for n, page in enumerate(pages)}
    monkeypatch.setattr("lxcfs_py.linux.kernel_files.os.pread", lambda _fd, _size, offset: starts[offset])
    assert KernelDirectory("/proc").read_records("diskstats") == text


@pytest.mark.parametrize("size", [0, 5, 4095, 4096, 4097, 20_000])
def test_a_list_of_sysfs_that_comes_page_by_page_is_read_to_the_end(tmp_path, monkeypatch, size):
    text = os.urandom(size)
    (tmp_path / "cpulist").write_bytes(text)
    read = os.read
    monkeypatch.setattr("lxcfs_py.linux.kernel_files._PAGE", 4096)
    monkeypatch.setattr("lxcfs_py.linux.kernel_files.os.read", lambda fd, most: read(fd, min(most, 4096)))
    assert HeldDirectory(str(tmp_path)).text("cpulist") == text


def test_a_process_that_may_open_no_more_still_reads_a_held_directory(tmp_path, monkeypatch):
    spare = []
    monkeypatch.setattr("lxcfs_py.linux.kernel_files._spare", spare)  # those of before may be above the limit
    (tmp_path / "online").write_text("0-3\n")
    directory = HeldDirectory(str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_free = os.dup(0)
    os.close(first_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        for _ in range(3):
            assert directory.text("online") == b"0-3\n"
            assert directory.names("") == ["online"]
        with pytest.raises(FileNotFoundError):
            directory.text("offline")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    for fd in spare:
        os.close(fd)


def test_a_missing_file_is_looked_for_again_after_a_second(tmp_path, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr("lxcfs_py.linux.kernel_files.time.monotonic", lambda: now)
    directory = KernelDirectory(str(tmp_path))
    assert directory.get("memory.max") is None
    (tmp_path / "memory.max").write_text("4096\n")
    now += 0.9
    assert directory.get("memory.max") is None
    now += 0.2
    assert directory.get("memory.max") == b"4096\n"


def test_a_missing_file_that_must_be_there_is_an_error(tmp_path):
    directory = KernelDirectory(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        directory.read("memory.max")
    with pytest.raises(FileNotFoundError):
        directory.read_records("memory.max")
    (tmp_path / "memory.max").write_text("4096\n")
    assert directory.read("memory.max") == b"4096\n"


def test_descriptors_are_not_inherited_by_children(tmp_path):
    (tmp_path / "a").write_text("a")
    before = open_descriptors()
    directory = KernelDirectory(str(tmp_path))
    directory.read("a")
    directory.fd()
    opened = open_descriptors() - before
    assert len(opened) == 2
    assert not any(map(os.get_inheritable, opened))


def test_who_waits_for_one_file_to_be_opened_keeps_nobody_from_others(tmp_path):
    """As where somebody holds the kernel's lock of a directory; here a pipe that nobody writes into."""
    os.mkfifo(tmp_path / "waits")
    (tmp_path / "other").write_text("text")
    directory = KernelDirectory(str(tmp_path))
    before = open_files()
    waiting = [threading.Thread(target=lambda: read.append(directory._open("waits")), daemon=True) for _ in range(2)]
    read: list[int] = []
    for thread in waiting:
        thread.start()
    time.sleep(0.05)
    assert directory.read("other") == b"text"
    assert KernelDirectory(str(tmp_path)).read("other") == b"text"
    assert read == []
    with (tmp_path / "waits").open("wb"):
        for thread in waiting:
            thread.join(10)
    assert len(read) == 2
    assert read[0] == read[1], "who came second has the first one's"
    assert open_files() == before + 2


@pytest.fixture
def grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[KernelDirectory, list[int]]:
    """A directory of a container's in a group, and for each time that its files were looked for, of how many places."""
    asked: list[int] = []

    def look(whose: str, function: Callable[..., Any], *arguments: Any) -> Any:
        assert whose == "/box"
        asked.append(len(arguments[0]))
        return function(*arguments)

    monkeypatch.setattr(aside, "is_used", lambda: True)
    monkeypatch.setattr(aside, "look", look)
    (tmp_path / "box").mkdir()
    (tmp_path / "box/there").write_text("text")
    (tmp_path / "box/other").write_text("another")
    group = Group("/box", (".", "there", "missing"))
    directory = KernelDirectory(f"{tmp_path}/box", whose="/box")
    for path in (directory.path, f"{tmp_path}/gone"):
        group.add(path)
    directory.group = group
    return directory, asked


def test_files_of_a_group_are_looked_for_together_and_once(
    grouped: tuple[KernelDirectory, list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, asked = grouped
    assert directory.read("there") == b"text"
    assert directory.get("missing") is None
    gone = KernelDirectory(f"{tmp_path}/gone", whose="/box")
    gone.group = directory.group
    with pytest.raises(aside.GoneError):
        gone.read("there")
    assert asked == [2]
    assert directory.group is not None
    assert not directory.group.has(directory.path, "other"), "for which nobody looked"
    assert directory.read("other") == b"another"


def test_what_was_found_of_a_group_holds_for_a_second_and_is_not_kept(
    grouped: tuple[KernelDirectory, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, asked = grouped
    group = directory.group
    assert group is not None
    assert group.has(directory.path, "there")
    later = time.monotonic() + 1.1
    monkeypatch.setattr("lxcfs_py.linux.kernel_files.time", SimpleNamespace(monotonic=lambda: later))
    assert not group.has(directory.path, "there"), "another process opens it"
    assert not group._found
    assert not group._paths
    assert not group.has(directory.path, "there")
    assert asked == [2]
