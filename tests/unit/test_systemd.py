"""What systemd is told and asked, and what of it needs no systemd to be tried."""

from __future__ import annotations

import logging
import os
import socket
import stat
import threading
from types import SimpleNamespace

import pytest

from lxcfs_py.config import Config, Cpu
from lxcfs_py.daemon import last_config, reload_socket, systemd
from lxcfs_py.engine import fusepy, protocol, watchdog
from lxcfs_py.linux import mount_table, mountpoint


@pytest.fixture
def notified(tmp_path, monkeypatch):
    """What the process tells its NOTIFY_SOCKET, message by message."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        def messages():
            while True:
                try:
                    yield listener.recv(4096).decode()
                except BlockingIOError:
                    return

        yield messages


@pytest.fixture
def unit(notified):
    unit = systemd.Unit()
    yield unit
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, systemd.LastProblem):
            root.removeHandler(handler)


@pytest.fixture
def list_jobs(tmp_path, monkeypatch):
    """list_jobs(text, code=0): what systemctl prints from now on, whatever it is asked."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def prints(text, code=0):
        script = tmp_path / "systemctl"
        script.write_text(f"#!/bin/sh\necho '{text}'\nexit {code}\n")
        script.chmod(0o755)

    return prints


def test_the_status_has_the_last_problem_on_one_line(unit, notified):
    unit.ready("Serving 12 files")
    logging.getLogger("lxcfs_py").info("nothing of interest")
    logging.getLogger("lxcfs_py").warning("two\nlines")
    unit.status("Serving 12 files")
    unit.status("Serving 12 files")
    ready, status, with_problem = notified()
    assert (ready, status) == ("READY=1", "STATUS=Serving 12 files")
    assert with_problem.startswith("STATUS=Serving 12 files. Last problem, ")
    assert with_problem.endswith(": two lines")


def test_a_reload_is_told_with_its_time(unit, notified):
    unit.reloading()
    (message,) = notified()
    reloading, microseconds = message.split("\n")
    assert reloading == "RELOADING=1"
    assert int(microseconds.partition("MONOTONIC_USEC=")[2]) > 0


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "20000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert systemd.watchdog_seconds() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_seconds() == 20


@pytest.mark.parametrize(
    ("jobs", "result", "follows"),
    [
        ("71 lxcfs-py.service stop running", "success", False),
        ("71 lxcfs-py.service restart running", "success", True),
        ("71 lxcfs-py.service start running", "exit-code", True),
        ("71 docker.service stop running", "success", False),
        ("72 docker.service stop waiting\n71 lxcfs-py.service restart running", "success", True),
        ("", "signal", True),
        ("", "success", False),
    ],
)
def test_another_process_follows_unless_it_was_stopped_or_went_by_itself(list_jobs, monkeypatch, jobs, result, follows):
    list_jobs(jobs)
    monkeypatch.setenv("SERVICE_RESULT", result)
    assert systemd.will_be_started_again("lxcfs-py.service") is follows


def test_the_mount_is_left_where_systemd_does_not_answer(list_jobs, monkeypatch):
    list_jobs("Failed to list jobs", code=1)
    monkeypatch.setenv("SERVICE_RESULT", "success")
    assert systemd.will_be_started_again("lxcfs-py.service") is True


def slot(opcode, unique=0):
    return memoryview(bytearray(protocol.IN_HEADER.pack(40, opcode, unique, 1, 4711)))


def test_a_worker_that_is_at_one_request_too_long_is_found(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    slots = [slot(0), slot(protocol.READ, 7)]
    check = watchdog.of_workers(slots)
    assert check(5) is None
    now[0] += 4
    assert check(5) is None
    now[0] += 2
    assert "worker 1" in check(5)
    assert "process 4711" in check(5)


def test_a_worker_that_is_always_at_another_request_is_not_stuck(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: now[0])
    slots = [slot(protocol.READ, 7)]
    check = watchdog.of_workers(slots)
    for unique in range(8, 20):
        assert check(5) is None
        now[0] += 4
        slots[0][:] = slot(protocol.READ, unique)


def test_an_operation_of_fusepys_that_takes_too_long_is_found(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(fusepy.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(fusepy, "_fuse", SimpleNamespace(fuse_get_context=lambda: (0, 0, 4711)))
    found = []

    class Tree:
        def readlink(self, caller, path):
            now[0] += int(path)
            found.append(operations.stuck(5))

    operations = fusepy.Operations(Tree())
    for path in ("4", "6"):
        operations("readlink", path)
    assert found[0] is None
    assert "over 5 s" in found[1]
    assert operations.stuck(5) is None


def test_who_asks_for_a_reload_gets_its_errors_and_remarks(tmp_path):
    path = str(tmp_path / "control")
    with reload_socket.listen(path) as listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        answering = threading.Thread(target=reload_socket.answer, args=(listener, lambda: (["wrong"], ["by the way"])))
        answering.start()
        assert reload_socket.ask(path) == (["wrong"], ["by the way"])
        answering.join()


def test_a_reload_without_a_daemon_or_with_one_that_dies_is_an_error(tmp_path):
    path = str(tmp_path / "control")
    with pytest.raises(reload_socket.ControlError, match="no daemon can be asked"):
        reload_socket.ask(path)
    with reload_socket.listen(path) as listener:
        dying = threading.Thread(target=lambda: listener.accept()[0].close())
        dying.start()
        with pytest.raises(reload_socket.ControlError, match=r"did not say|ended before"):
            reload_socket.ask(path)
        dying.join()


def test_the_configuration_that_served_last_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(mountpoint, "RUNTIME_DIRECTORY", str(tmp_path))
    assert last_config.recall("/etc/lxcfs.toml") is None
    config = Config(cpu=Cpu(mode="cpuset"))
    last_config.remember("/etc/lxcfs.toml", config)
    assert last_config.recall("/etc/lxcfs.toml") == config
    assert last_config.recall("/etc/other.toml") is None
    for kept in tmp_path.iterdir():
        kept.write_text("from = another version")
    assert last_config.recall("/etc/lxcfs.toml") is None


def test_a_mountinfo_file_is_parsed_whatever_its_names_hold():
    line = r"36 35 0:42 /proc/meminfo /srv/a\040b rw,nosuid shared:7 - fuse.lxcfs lxcfs rw,user_id=0"
    (mount,) = mount_table.parse(line)
    assert (mount.device, mount.root, mount.mountpoint, mount.fstype) == (
        "0:42",
        "/proc/meminfo",
        "/srv/a b",
        "fuse.lxcfs",
    )
