"""All the ways to ask agree: one container under one load, and the questions of `lxcfs-py selftest`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lxcfs_py.commands.selftest import _short
from lxcfs_py.runtimes import selftest


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


@pytest.mark.parametrize(
    ("right", "answers", "wrong"),
    [
        (100, {"a": 100, "b": 104, "c": None, "d": 106}, ["d"]),
        ([1, 3], {"a": [1, 3], "b": [0, 1]}, ["b"]),
    ],
)
def test_an_answer_is_wrong_where_it_differs_by_more_than_it_may(right: Any, answers: Any, wrong: list[str]) -> None:
    assert selftest.Question("?", right, answers, tolerance=5).wrong() == wrong
