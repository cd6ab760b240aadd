"""What may have to wait for a container is done by other processes."""

from __future__ import annotations

import errno
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from lxcfs_py.linux import aside, seccomp
from lxcfs_py.linux.kernel_files import KernelDirectory
from tests.kept import wait_for


def stand_still(path: str) -> int:
    """Wait until somebody writes into a FIFO; return the process that waited."""
    with open(path, "rb") as fifo:
        fifo.read()
    return os.getpid()


def fail(kind: str, text: str) -> None:
    raise {"value": ValueError(text), "system": OSError(errno.EACCES, "no", text)}[kind]


def names(number: int) -> list[str]:
    return [f"{each:0255}" for each in range(number)]


def count(given: list[str]) -> list[int]:
    return [len(given), os.getpid()]


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def process() -> int:
    return os.getpid()


@pytest.fixture
def helpers(monkeypatch: pytest.MonkeyPatch) -> aside._Helpers:
    monkeypatch.setattr(seccomp, "try_to_forbid", lambda: None)  # else they could not write what of them ran
    monkeypatch.setattr(aside, "_MOST_IDLE", 1)
    aside.start((stand_still, fail, names, count, compute, time_passes, process))
    made = aside._helpers
    assert made is not None
    monkeypatch.setattr(aside, "_LOOK_SECONDS", 0.3)
    return made


@pytest.fixture
def silent(tmp_path: Path, helpers: aside._Helpers) -> Iterator[str]:
    """A FIFO; who waits for it goes on when the test ends."""
    path = str(tmp_path / "silent")
    os.mkfifo(path)
    yield path
    let_go(path)


def let_go(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def goes_on(helpers: aside._Helpers, path: str) -> bool:
    """Let those that wait go on, which may be about to; tell whether they do."""
    let_go(path)
    helpers._part("", time.monotonic())
    return not any(each.helpers for each in helpers._silent.values())


def test_files_are_opened_by_another_process_and_are_the_same_files(helpers: aside._Helpers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    descriptor = aside.open_file("/box", str(tmp_path), "file")
    try:
        assert os.read(descriptor, 9) == b"text"
        assert os.stat(descriptor).st_ino == (tmp_path / "file").stat().st_ino
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)
    assert aside.look("/box", process) != os.getpid()
    assert aside.look("", process) == os.getpid()


@pytest.mark.parametrize("starts", [False, True])
def test_errors_are_those_that_the_caller_would_have_had(starts: bool, tmp_path: Path, request) -> None:
    if starts:
        request.getfixturevalue("helpers")
    with pytest.raises(ValueError, match="odd"):
        aside.look("/box", fail, "value", "odd")
    with pytest.raises(PermissionError) as refused:
        aside.look("/box", fail, "system", "/some/path")
    assert (refused.value.errno, refused.value.filename) == (errno.EACCES, "/some/path")
    with pytest.raises(FileNotFoundError) as missing:
        aside.open_file("/box", str(tmp_path), "file")
    assert not isinstance(missing.value, aside.GoneError)
    with pytest.raises(aside.GoneError):
        aside.open_file("/box", f"{tmp_path}/gone", "file")
    directory = KernelDirectory(str(tmp_path), whose="/box")
    assert directory.get("file") is None
    gone = KernelDirectory(f"{tmp_path}/gone", whose="/box")
    with pytest.raises(FileNotFoundError):
        gone.get("file")


def test_who_does_not_answer_is_left_alone_and_nobody_else(
    helpers: aside._Helpers, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(aside.SilentError):
        aside.look("/hostile", stand_still, silent)
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(aside.SilentError):
            aside.look("/hostile", process)
    assert aside.look("/box", process)
    assert time.monotonic() - began < 0.3, "he was waited for again"
    wait_for(lambda: goes_on(helpers, silent))
    assert aside.look("/hostile", process), "he answers again"
    assert helpers._silent["/hostile"].last > began, "from when on it is remembered"
    for _ in range(2):  # is waited for less and less
        with pytest.raises(aside.SilentError):
            aside.look("/hostile", stand_still, silent)
        wait_for(lambda: goes_on(helpers, silent))
    with pytest.raises(aside.SilentError):
        aside.look("/hostile", process)
    later = time.monotonic() + aside._GRUDGE_SECONDS
    monkeypatch.setattr(aside, "time", SimpleNamespace(monotonic=lambda: later))
    assert aside.look("/hostile", process), "in the end it is forgotten"


def test_who_is_not_run_by_a_busy_machine_is_waited_for(helpers: aside._Helpers) -> None:
    pid = aside.look("/box", process)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1, os.kill, (pid, signal.SIGCONT)).start()
    assert aside.look("/box", process) == pid
    assert not helpers._silent


def test_nobody_is_waited_for_until_the_watchdog_ends_the_server(
    helpers: aside._Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "_MOST_SECONDS", 0.5)
    pid = aside.look("/box", process)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(aside.SilentError):
            aside.look("/box", process)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_several_that_wait_for_one_at_a_time_are_silent_once(helpers: aside._Helpers, silent: str) -> None:
    def wait() -> None:
        with pytest.raises(aside.SilentError):
            aside.look("/hostile", stand_still, silent)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert helpers._silent["/hostile"].times == 1
    assert len(helpers._silent["/hostile"].helpers) == 4


def test_very_many_in_one_cgroup_who_do_not_answer_cost_its_others_and_nobody_else(
    helpers: aside._Helpers, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "_MANY_SILENT", 2)
    monkeypatch.setattr(aside, "_LOOK_SECONDS", 0.05)
    for number in range(6):
        assert helpers._part("/user/1000/neighbour", time.monotonic()) == aside._PART[number // 2]
        with pytest.raises(aside.SilentError):
            aside.look(f"/user/1000/{number}", stand_still, silent)
    with pytest.raises(aside.SilentError):
        aside.look("/user/1000/6", process)
    assert "/user/1000/6" not in helpers._silent
    assert aside.look("/user/1001/box", process)
    monkeypatch.setattr(aside, "_MOST_SILENT", 6)
    with pytest.raises(aside.SilentError):
        aside.look("/user/1001/box", process)


def test_what_is_asked_and_answered_may_be_of_any_length(helpers: aside._Helpers) -> None:
    """A cgroup can be a thousand levels deep, and have very many below it."""
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    for number in (1, 250, 260, 5000):
        assert aside.look("/box", names, number) == names(number)
        counted, pid = aside.look("/box", count, names(number))
        assert counted == number
        assert pid != os.getpid()
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_was_not_even_asked_is_not_blamed(helpers: aside._Helpers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that forks is stopped, as where a machine does not run it."""
    monkeypatch.setattr(aside, "_MOST_SECONDS", 0.3)
    pid = aside.look("/box", process)
    parent = psutil.Process(pid).parent()
    assert parent is not None
    psutil.Process(pid).kill()
    parent.suspend()
    try:
        assert aside.look("/box", process) == os.getpid()
        assert not helpers._silent
    finally:
        parent.resume()


def test_who_is_about_to_ask_may_wait_until_one_can_be_asked(helpers: aside._Helpers) -> None:
    aside.wait_until_begun()
    assert [bool(helper._pid) for helper in helpers._idle] == [True] * aside._MOST_IDLE


def test_where_who_forks_has_ended_the_server_looks_itself(
    helpers: aside._Helpers, silent: str, caplog: pytest.LogCaptureFixture
) -> None:
    pid = aside.look("/box", process)
    parent = psutil.Process(pid).parent()
    assert parent is not None
    with pytest.raises(aside.SilentError):
        aside.look("/hostile", stand_still, silent)  # whose process lives on
    parent.kill()
    began = time.monotonic()
    for _ in range(20):
        assert aside.look("/box", process) == os.getpid()
    assert time.monotonic() - began < 1, "each does not try for as long"
    assert caplog.text.count("no process that looks at cgroups can be had") == 1


def test_what_is_done_aside_counts_for_who_wanted_it(helpers: aside._Helpers) -> None:
    before = aside.thread_time()
    aside.look("/box", compute, 0.2)
    assert aside.thread_time() - before >= 0.2


def test_whatever_fails_ends_no_process(helpers: aside._Helpers) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        aside.look("/box", fail, "none", "of these")
    assert aside.look("/box", process)


def test_a_descriptor_that_comes_too_late_is_closed(
    helpers: aside._Helpers, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "_OPEN_SECONDS", 0.1)
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(aside.SilentError):
        aside.open_file("/hostile", os.path.dirname(silent), "silent")  # whose writer is to come
    wait_for(lambda: goes_on(helpers, silent))
    assert len(os.listdir("/proc/self/fd")) == before - 1, "it and the process's connection"


def test_where_no_process_can_be_had_all_is_done_here(helpers: aside._Helpers) -> None:
    helpers._parent.close()
    pid = aside.look("/box", process)
    assert pid != os.getpid(), "one that waits for work is there still"
    psutil.Process(pid).kill()
    assert aside.look("/box", process) == os.getpid()


def test_where_no_descriptor_can_be_had_who_asks_is_told(
    helpers: aside._Helpers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    helpers._idle.clear()
    monkeypatch.setattr("lxcfs_py.linux.aside.socket.socketpair", refuse)
    with pytest.raises(OSError, match="too many open files"):
        aside.look("/box", process)


def test_a_process_that_has_ended_is_replaced(helpers: aside._Helpers) -> None:
    first = aside.look("/box", process)
    psutil.Process(first).kill()
    wait_for(lambda: not psutil.pid_exists(first))
    assert aside.look("/box", process) not in (first, os.getpid())
    assert aside.look("/box", process) not in (first, os.getpid())


def test_as_many_processes_wait_for_work_as_are_often_needed(helpers: aside._Helpers) -> None:
    threads = [threading.Thread(target=lambda: aside.look("/box", time_passes)) for _ in range(6)]
    parent = psutil.Process(aside.look("/box", process)).parent()
    assert parent is not None
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: len(parent.children()) <= aside._MOST_IDLE)


def time_passes() -> None:
    time.sleep(0.01)
