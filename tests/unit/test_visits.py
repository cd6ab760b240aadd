"""Processes that do work which may be kept waiting."""

from __future__ import annotations

import gc
import os
import signal
import time
from typing import Callable

import psutil
import pytest

from lxcfs_py.attach import places, visits
from lxcfs_py.attach.errors import AttachError, LeftAloneError, SilentError
from lxcfs_py.attach.places import Tree
from lxcfs_py.attach.visits import Ask, Visits, Work


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "SECONDS", 0.5)


def test_results_come_in_the_order_of_the_works() -> None:
    def work(number: int) -> Work:
        def wait(ask: Ask) -> object:
            time.sleep(0.1 / (number + 1))
            return {"number": number, "text": "\udcff\n"}

        return wait

    assert Visits().each(work(number) for number in range(40)) == [
        {"number": number, "text": "\udcff\n"} for number in range(40)
    ]


@pytest.mark.parametrize("error", [AttachError("no"), LeftAloneError("no")])
def test_an_error_for_the_operator_is_passed_on(error: AttachError) -> None:
    def work(ask: Ask) -> None:
        raise error

    with pytest.raises(type(error), match=r"^no$") as raised:
        Visits().one(work)
    assert type(raised.value) is type(error)


def test_an_error_of_the_kernel_is_passed_on() -> None:
    with pytest.raises(FileNotFoundError, match="/none/such"):
        Visits().one(lambda ask: os.stat("/none/such"))


def test_any_other_exception_is_told_by_its_type_its_text_and_its_lines() -> None:
    with pytest.raises(AttachError, match=r"bug.*: ZeroDivisionError: .*\(.*_result:\d+, <lambda>:\d+\)$"):
        Visits().one(lambda ask: 1 // 0)


def test_a_process_that_is_killed_is_an_error() -> None:
    for ask_first in (False, True):
        with pytest.raises(SilentError, match="was killed"):
            Visits().one(
                lambda ask, first=ask_first: (first and ask("0:1", "it"), os.kill(os.getpid(), signal.SIGKILL))
            )


def test_what_does_not_answer_is_named_and_asked_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "AT_ONCE", 1)
    reader, writer = os.pipe()

    def hang(ask: Ask) -> None:
        ask("0:99", "the server of /proc/meminfo")
        os.write(writer, b".")
        time.sleep(60)

    def fine(ask: Ask) -> str:
        ask("0:98", "another")
        return "fine"

    visited = Visits()
    answers = visited.each([fine, hang, fine, hang, hang])
    assert [answer for answer in answers if isinstance(answer, str)] == ["fine", "fine"]
    texts = {str(answer) for answer in answers if isinstance(answer, SilentError)}
    assert texts == {"the server of /proc/meminfo did not answer within 0.5 s (filesystem 0:99)"}
    with pytest.raises(SilentError):
        visited.one(hang)
    assert os.read(reader, 10) == b"."
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("look", [Tree.find, Tree.open])
def test_a_container_whose_root_does_not_answer_is_not_taken_for_the_daemon(
    monkeypatch: pytest.MonkeyPatch, look: Callable[[Tree, str], object]
) -> None:
    process = os.open("/proc/self", os.O_PATH)

    def attach(ask: Ask) -> None:
        tree = places.tree_of(process, ask)
        ask("0:99", "the daemon's mount")
        look(tree, "proc/meminfo")

    monkeypatch.setattr(places, "_open", lambda *_: time.sleep(60))
    with pytest.raises(SilentError, match=r"^the container's root filesystem did not answer") as raised:
        Visits().one(attach)
    assert raised.value.device != "0:99"
    os.close(process)


def test_several_that_wait_do_so_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    readers = [os.pipe() for _ in range(3)]

    def work(number: int) -> Work:
        def meet(ask: Ask) -> None:  # it ends only if the others run meanwhile
            for _, writer in readers:
                os.write(writer, b".")
            for _ in readers:
                os.read(readers[number][0], 1)

        return meet

    assert Visits().each(work(number) for number in range(3)) == [None] * 3
    for pair in readers:
        for descriptor in pair:
            os.close(descriptor)


def test_no_process_and_no_descriptor_is_left() -> None:
    gc.collect()
    descriptors, children = len(os.listdir("/proc/self/fd")), psutil.Process().children()
    Visits().each([lambda ask: None] * 5 + [lambda ask: time.sleep(60)])
    # What other tests have left may end meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert set(psutil.Process().children()) <= set(children)
