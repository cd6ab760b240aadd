"""The server that serves the machine's text when no other one starts."""

from __future__ import annotations

import errno
import os
import stat
from types import SimpleNamespace

import pytest

from lxcfs_py.daemon import last_resort
from lxcfs_py.engine import session, store
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


@pytest.fixture
def kept(monkeypatch):
    """A session that is kept, and that another process serves as long as `is_served`."""
    session_ = SimpleNamespace(starts=0, memory=7, is_served=False)
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(session=lambda _: session_))
    monkeypatch.setattr(session, "is_served", lambda memory: memory == 7 and session_.is_served)
    return session_


def test_a_session_that_another_server_has_is_left_to_that_one_however_many_cannot_take_it_over(kept):
    kept.is_served = True
    assert not any(last_resort.is_due() for _ in range(30))
    assert kept.starts == 0


def test_its_turn_comes_after_ten_starts_and_then_every_other_time(kept):
    assert [last_resort.is_due() for _ in range(14)] == [False] * 10 + [True, False, True, False]
    kept.starts = 255
    assert last_resort.is_due()
    assert kept.starts < 255


def test_without_a_session_its_turn_never_comes(monkeypatch):
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(session=lambda _: None))
    assert not last_resort.is_due()


def test_it_serves_what_is_kept_for_a_while_and_then_makes_way(monkeypatch, caplog):
    kept, done = SimpleNamespace(), []
    inherited = SimpleNamespace(session=lambda _: kept, put=lambda session: done.append(("kept", session)))
    monkeypatch.setattr(store, "inherited", lambda: inherited)
    serving = SimpleNamespace(start=lambda: done.append("started"))
    monkeypatch.setattr(last_resort.kernel, "Server", lambda tree, session, threads: serving)
    monkeypatch.setattr(last_resort, "notify", done.append)
    for what in (last_resort.roots, "take"), (last_resort.signals, "ignore_all_but"), (last_resort, "to_stderr"):
        monkeypatch.setattr(*what, lambda *_: None)
    monkeypatch.setattr(last_resort, "_SECONDS", 0.05)
    monkeypatch.setattr(last_resort, "_SIGN_OF_LIFE", 0.01)
    assert last_resort.serve() == 1
    assert done[:2] == [("kept", kept), "started"]
    assert done[2].startswith("READY=1\nSTATUS=Degraded: no server starts")
    assert set(done[3:]) == {"WATCHDOG=1"}
    assert "10 starts in a row have failed" in caplog.text
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(session=lambda _: None))
    assert last_resort.serve() == 1
    assert len(done) == done.index("WATCHDOG=1") + done.count("WATCHDOG=1")


def test_nothing_is_written_and_no_trigger_taken():
    machine = last_resort.Machine()
    machine.access(CALLER, "/proc/stat", os.R_OK)
    machine.open(CALLER, "/proc/stat", os.O_RDONLY)
    for number, refused in (
        (errno.EACCES, lambda: machine.access(CALLER, "/proc/stat", os.W_OK)),
        (errno.EACCES, lambda: machine.open(CALLER, "/proc/stat", os.O_WRONLY)),
        (errno.EAGAIN, lambda: machine.trigger(CALLER, "/proc/pressure/cpu", b"some 150000 1000000\0")),
    ):
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            refused()
        assert error.value.errno == number


def test_links_lead_where_the_machines_do_and_have_nothing_below_them():
    machine = last_resort.Machine()
    assert machine.attributes("/sys/devices/system/cpu")
    link = next(path for path in machine.paths() if os.path.islink(path))
    assert machine.readlink(CALLER, link) == os.readlink(link)
    with pytest.raises(NotADirectoryError):
        machine.readdir(CALLER, link)
