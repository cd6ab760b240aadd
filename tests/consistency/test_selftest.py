"""All the ways to ask agree: one container under one load, and the questions of `lxcfs-py selftest`."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any, Callable

import pytest

from lxcfs_py.commands.selftest import _configured, _short
from lxcfs_py.files import NAMES
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
    command = [sys.executable, "-m", "lxcfs_py", "selftest", "--mountpoint", str(daemon.mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, last = done.stdout.splitlines()
    assert all(row.startswith("agrees ") for row in rows)
    assert last == f"{len(rows)} of {len(rows)} agree"


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
