"""The filter of processes that enter containers, run as the kernel would."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from types import SimpleNamespace
from typing import Callable

import pytest

from lxcfs_py.linux import seccomp, syscalls

ALLOWED, REFUSED = 0x7FFF0000, 0x00050000 | errno.EPERM
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], int]:
    """judged(machine, arch, number) is what the filter of a machine returns for a call of an architecture."""
    made: list[bytes] = []
    monkeypatch.setattr(syscalls, "seccomp_filter", made.append)

    def judge(machine: str, arch: int, number: int) -> int:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
        seccomp.forbid()
        program = list(struct.iter_unpack("=HBBI", made.pop()))
        data, accumulator, place = {0: number, 4: arch}, 0, 0
        while True:
            code, yes, no, value = program[place]
            place += 1
            if code == LOAD:
                accumulator = data[value]
            elif code == RETURN:
                return int(value)
            else:
                place += yes if (accumulator == value if code == EQUAL else accumulator >= value) else no

    return judge


@pytest.mark.parametrize(
    ("machine", "arch", "forbidden", "needed"),
    [  # socket, execve, ptrace, mkdirat, chroot; read, openat, mount, setns
        ("x86_64", seccomp.X86_64, (41, 59, 101, 258, 161), (0, 257, 165, 308)),
        ("aarch64", seccomp.AARCH64, (198, 221, 117, 34, 51), (63, 56, 40, 268)),
    ],
)
def test_what_nobody_does_who_enters_a_container_is_refused_and_no_more(
    judged: Callable[[str, int, int], int],
    machine: str,
    arch: int,
    forbidden: tuple[int, ...],
    needed: tuple[int, ...],
) -> None:
    assert {judged(machine, arch, number) for number in forbidden} == {REFUSED}
    assert {judged(machine, arch, number) for number in needed} == {ALLOWED}
    assert judged(machine, seccomp.I386, needed[0]) == REFUSED  # another table of numbers
    assert judged(machine, arch, 0x40000000) == REFUSED  # x32's


def test_on_a_machine_that_is_not_known_nothing_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine="riscv64"))
    monkeypatch.setattr(syscalls, "seccomp_filter", pytest.fail)
    seccomp.forbid()


def test_a_kernel_that_does_not_know_the_flag_against_signals_makes_a_listener_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def before_5_19(flags: int, _: bytes) -> int:
        asked.append(flags)
        if flags & ~8:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return 7

    monkeypatch.setattr(syscalls, "_seccomp", before_5_19)
    assert syscalls.seccomp_listener(b"") == 7
    assert asked == [8 | 32, 8]


@pytest.mark.parametrize(("error", "can"), [(errno.EINVAL, False), (errno.ENOENT, True)])  # before Linux 5.5, and since
def test_whether_calls_can_be_let_through_is_asked_of_a_listener(
    monkeypatch: pytest.MonkeyPatch, error: int, can: bool
) -> None:
    def refused(listener: int, notification: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(syscalls, "seccomp_listener", lambda _: os.open(os.devnull, os.O_RDONLY))
    monkeypatch.setattr(seccomp, "let_through", refused)
    assert seccomp.can_let_through() == can


def test_where_no_thread_can_ask_calls_are_taken_to_be_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert seccomp.can_let_through()


def test_a_kernel_since_6_6_takes_the_flag_that_keeps_a_call_on_its_core(
    require: Callable[[object, str], None],
) -> None:
    """An older one refuses it, which changes nothing."""
    require(os.geteuid() == 0, "root")
    refused: list[int] = []

    def ask() -> None:
        listener = syscalls.seccomp_listener(seccomp.program(seccomp.ALLOW))
        for request in (seccomp._SET_FLAGS, 0):
            try:
                fcntl.ioctl(listener, request, seccomp._SYNC_WAKE_UP)
            except OSError:
                refused.append(request)
        seccomp.wake_in_turn(listener)
        os.close(listener)
        seccomp.wake_in_turn(listener)

    thread = threading.Thread(target=ask)  # a filter stays until its thread ends
    thread.start()
    thread.join(20)
    major, minor = map(int, os.uname().release.split(".")[:2])
    assert refused == ([0] if (major, minor) >= (6, 6) else [seccomp._SET_FLAGS, 0])
