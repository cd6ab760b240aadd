"""Triggers as they are given to the kernel: here to a file, or to a kernel that refuses."""

from __future__ import annotations

import errno
import os

import pytest

from lxcfs_py.linux import psi


@pytest.fixture
def refusing(monkeypatch):
    """refusing(number): a kernel that refuses the first trigger with that error; the list of what it was given."""

    def refuse(number):
        given = []

        def write(fd, text):
            given.append(text)
            if len(given) == 1:
                raise OSError(number, os.strerror(number))

        monkeypatch.setattr(psi.os, "write", write)
        return given

    return refuse


def test_a_trigger_is_one_string_of_c(tmp_path):
    (tmp_path / "cpu").touch()
    fd = psi.arm(str(tmp_path / "cpu"), "some 150000 1000000")
    assert not os.get_inheritable(fd)
    os.close(fd)
    assert (tmp_path / "cpu").read_bytes() == b"some 150000 1000000\0"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EPERM])
def test_a_window_that_is_not_allowed_becomes_the_next_one_that_is(refusing, number):
    given = refusing(number)
    os.close(psi.arm("/dev/null", "full 150000 3000000"))
    assert given == [b"full 150000 3000000\0", b"full 150000 4000000\0"]


@pytest.mark.parametrize(("number", "trigger"), [(errno.EBUSY, "some 1 1000000"), (errno.EINVAL, "some 1 2000000")])
def test_what_else_is_refused_is_told_and_nothing_stays_open(refusing, number, trigger):
    refusing(number)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=os.strerror(number)):
        psi.arm("/dev/null", trigger)
    assert os.listdir("/proc/self/fd") == before
