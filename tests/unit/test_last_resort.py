"""The server that serves the machine's text when no other one starts."""

from __future__ import annotations

import errno
import stat
from types import SimpleNamespace

import pytest

from lxcfs_py.daemon import last_resort
from lxcfs_py.engine import store
from lxcfs_py.files import FILES

CALLER = 4711


def test_every_known_file_that_the_machine_has_is_there_and_says_what_the_machine_says():
    machine = last_resort.Machine()
    assert machine.readdir(CALLER, "/") == [".", "..", "proc", "sys"]
    assert stat.S_ISDIR(machine.getattr(CALLER, "/sys/devices")["st_mode"])
    with open("/proc/swaps", "rb") as file:
        assert machine.render(CALLER, "/proc/swaps") == file.read()
    with open("/sys/devices/system/cpu/possible", "rb") as file:
        assert machine.render(CALLER, "/sys/devices/system/cpu/possible") == file.read()
    assert {f"/{name}" for name in FILES} <= set(machine.paths())


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/1", "/sys/kernel", "/proc/kcore"])
def test_nothing_else_is_there(path):
    with pytest.raises(OSError, match="No such file") as error:
        last_resort.Machine().getattr(CALLER, path)
    assert error.value.errno == errno.ENOENT


def test_its_turn_comes_after_ten_starts_and_then_every_other_time(monkeypatch):
    kept = SimpleNamespace(starts=0)
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(session=lambda _: kept))
    assert [last_resort.is_due() for _ in range(14)] == [False] * 10 + [True, False, True, False]
    kept.starts = 255
    assert last_resort.is_due()
    assert kept.starts < 255


def test_without_a_session_its_turn_never_comes(monkeypatch):
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(session=lambda _: None))
    assert not last_resort.is_due()
