"""All the ways to ask agree: one container under one load, and the questions of `lxcfs-py selftest`."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any, Callable

import psutil
import pytest

from lxcfs_py.cgroup.tree import Room
from lxcfs_py.commands import selftest as command
from lxcfs_py.commands.selftest import _configured, _short
from lxcfs_py.config import Config, Memory
from lxcfs_py.files import NAMES
from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes import selftest
from tests.conftest import Daemon


def test_a_container_gets_the_same_answer_by_every_way(daemon: Any) -> None:
    questions = selftest.ask(daemon.mountpoint)
    assert len(questions) >= 20
    wrong = {
        question.text: (_short(question.right), {way: question.answers[way] for way in question.wrong()})
        for question in questions
        if question.wrong()
    }
    assert wrong == {}


def test_the_command_prints_a_table_and_says_how_many_agree(daemon: Any) -> None:
    words = [sys.executable, "-m", "lxcfs_py", "selftest", "--mountpoint", str(daemon.mountpoint)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, last = (row for row in done.stdout.splitlines() if not row.startswith("unknown  What did its disk do?"))
    assert all(row.startswith("agrees ") for row in rows)
    assert last == f"{len(rows)} of {len(rows)} agree"


def test_a_ctrl_c_ends_it_without_a_word_of_the_containers_processes(daemon: Any) -> None:
    words = [sys.executable, "-m", "lxcfs_py", "selftest", "--mountpoint", str(daemon.mountpoint)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    busy: list[psutil.Process] = []
    deadline = time.monotonic() + 30
    while not busy:
        assert time.monotonic() < deadline
        children = psutil.Process(process.pid).children(recursive=True)
        with contextlib.suppress(psutil.Error):  # some come and go
            busy = [each for each in children if selftest._BUSY in each.cmdline()]
    time.sleep(1)  # it asks, or waits to ask once more
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 130
    psutil.wait_procs(busy, 10)
    assert not any(each.is_running() for each in busy)


def test_the_disk_that_was_used_is_asked_of_and_held_against_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    links = {"/sys/dev/block/8:0": "/sys/devices/pci/block/cciss!c0d0"}
    monkeypatch.setattr(os.path, "realpath", links.__getitem__)
    counted = {b"7:0": {b"rios": 0}, b"8:0": {b"rbytes": 65536, b"rios": 2, b"wbytes": 512, b"wios": 1}}
    zeros = " 0" * 13
    texts = {
        "/proc/diskstats": f"7 0 loop0 0 0 0 0{zeros}\n8 0 cciss/c0d0 2 0 128 0 1 0 1{zeros}\n",
        "/sys/block/loop0/stat": f"0 0 0 0{zeros}\n",
        "/sys/block/cciss!c0d0/stat": f"0 0 0 0 0 0 0{zeros}\n",
    }
    (question,) = selftest._disk(texts, counted, counted)
    assert (question.right, question.wrong()) == ([2, 128, 1, 1], ["sys/block/cciss!c0d0/stat"])
    del texts["/proc/diskstats"]
    (question,) = selftest._disk(texts, counted, counted)
    assert question.answers["diskstats"] is None
    assert not list(selftest._disk({}, counted, counted))


@pytest.mark.parametrize(("sectors", "wrong"), [(120, True), (128, False), (136, False), (144, False), (152, True)])
def test_what_a_disk_does_while_the_container_is_asked_may_be_in_the_answer_or_not(sectors: int, wrong: bool) -> None:
    least, most = ({b"8:0": {b"rbytes": sectors * 512, b"rios": 2}} for sectors in (128, 144))
    (question,) = selftest._disk({"/proc/diskstats": f"8 0 8:0 2 0 {sectors} 0 0 0 0{' 0' * 7}\n"}, least, most)
    assert bool(question.wrong()) == wrong


@pytest.mark.parametrize("counted", [{}, {b"8:0": {b"rios": 0, b"rbytes": 0}}])
def test_where_the_kernel_counts_no_io_nothing_agrees(
    counted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = list(selftest._disk({"/sys/block/sda/stat": "0 0 0 0 0 0 0 0 0 0 0"}, counted, counted))
    monkeypatch.setattr(command, "require_root", lambda: None)
    monkeypatch.setattr(command, "served_mountpoint", lambda options: "/")
    monkeypatch.setattr(selftest, "ask", lambda place, configured: [*questions, selftest.Question("?", 1, {"a": 1})])
    assert command._selftest(argparse.Namespace()) == 0
    unknown, _, last = capsys.readouterr().out.splitlines()
    assert unknown == "unknown  What did its disk do? The kernel has counted no I/O of its cgroup"
    assert last == "1 of 1 agree"


@pytest.mark.parametrize(
    ("limit", "used", "of_others", "shown", "right"),
    [
        (1 << 62, 0, 0, (4096, 0), (4096, 0)),
        (1 << 20, 4096, 0, (1024, 4), (1024, 4)),
        (1 << 62, 0, 3 << 20, (4096, 3072), (4096, 3072)),
    ],
)
def test_swap_is_held_against_the_cgroup(
    limit: int, used: int, of_others: int, shown: Any, right: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = syscalls.Sysinfo(1 << 30, 0, 4 << 20, (4 << 20) - of_others)
    monkeypatch.setattr(selftest, "Host", lambda: SimpleNamespace(memory=lambda: host))
    memory: Any = SimpleNamespace(swap=lambda: (Room(limit, limit - used, limit - used), used))
    meminfo = {"SwapTotal": shown[0], "SwapFree": shown[0] - shown[1]}
    texts = {"/proc/swaps": "Filename\nnone virtual 9999 9999 0\n"}
    size, use = selftest._swap(texts, meminfo, memory, Config())
    assert (size.right, use.right) == right
    assert (size.wrong(), use.wrong()) == (["swaps"], ["swaps"])
    nothing, _ = selftest._swap({}, meminfo, memory, Config(memory=Memory(swap=False)))
    assert nothing.wrong() == ["meminfo"]


OTHERWISE = 'cpu.mode = "cpuset"\nuptime.source = "host"\nloadavg.enabled = false\n'


@pytest.mark.parametrize(
    ("config", "least"),
    [
        pytest.param(OTHERWISE, 18, id="settings"),
        pytest.param(f'[[policy]]\ncgroup = "/*"\n{OTHERWISE}', 18, id="policy"),
        *(
            pytest.param(f"files.enabled = {list(names)}", least, id=" ".join(names))
            for names, least in ((NAMES[::2], 6), (NAMES[1::2], 12), (["proc/uptime"], 1), (["proc/stat"], 7))
        ),
    ],
)
def test_what_the_configuration_makes_otherwise_is_right_and_what_is_not_enabled_is_not_asked(
    config: str, least: int, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon("kernel", config)
    while (configured := _configured(str(daemon.mountpoint))) is None:  # it can be asked soon after it is mounted
        time.sleep(0.1)
    questions = selftest.ask(daemon.mountpoint, configured)
    daemon.stop()
    assert {question.text: question.wrong() for question in questions if question.wrong()} == {}
    assert len(questions) >= least


@pytest.mark.parametrize(
    ("right", "answers", "wrong"),
    [
        (100, {"a": 100, "b": 104, "c": None, "d": 106}, ["d"]),
        ([1, 3], {"a": [1, 3], "b": [0, 1]}, ["b"]),
    ],
)
def test_an_answer_is_wrong_where_it_differs_by_more_than_it_may(right: Any, answers: Any, wrong: list[str]) -> None:
    assert selftest.Question("?", right, answers, tolerance=5).wrong() == wrong
