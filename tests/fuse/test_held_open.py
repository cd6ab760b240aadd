"""All files are held open: no lease of one can be had, by whoever."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable
from unittest.mock import Mock

import psutil
import pytest

from lxcfs_py.daemon import held_open
from lxcfs_py.linux import syscalls
from tests.conftest import Daemon
from tests.kept import Kept, wait_for

FILES = ("proc/meminfo", "proc/pressure/cpu", "sys/devices/system/cpu/online")


def lease(path: Path, kind: int) -> str:
    """What comes of taking one, as root with all capabilities. It is given back."""
    with path.open() as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, kind)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return "done"


def is_held(mountpoint: Path) -> bool:
    return all(lease(mountpoint / name, fcntl.F_WRLCK) == "EAGAIN" for name in FILES)


def test_no_lease_can_be_had_for_whose_end_others_would_wait(start_daemon: Callable[..., Daemon]) -> None:
    mountpoint = start_daemon("kernel").mountpoint
    wait_for(lambda: is_held(mountpoint))
    assert lease(mountpoint / "proc/pressure/cpu", fcntl.F_RDLCK) == "EAGAIN", "it may be opened for writing"
    assert lease(mountpoint / "proc/meminfo", fcntl.F_RDLCK) == "done", "which keeps nobody from reading"


def test_what_is_held_counts_for_nobody_so_that_root_in_containers_can_send_descriptors(
    start_daemon: Callable[..., Daemon],
) -> None:
    mountpoint = start_daemon("kernel").mountpoint
    wait_for(lambda: is_held(mountpoint))
    program = "import socket; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0])"
    user = ["setpriv", f"--reuid={held_open._NOBODY}", "--clear-groups", "--inh-caps=-all"]
    command = [*user, "prlimit", "--nofile=64", "/usr/bin/python3", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Too many references" in done.stderr, "it is that user who is charged"


def test_files_are_held_while_no_server_runs_and_not_opened_again(start_daemon: Callable[..., Daemon]) -> None:
    """A keeper has the socket in which they are, as systemd has."""
    daemon = start_daemon("kernel", keep=True)
    keeper = Path(f"/proc/{daemon.process.pid}/fdinfo")
    # More than ten in one socket, which lies in the keeper's hands.
    wait_for(lambda: any(re.search(r"^scm_fds:\s+[1-9][0-9]", fd.read_text(), re.MULTILINE) for fd in keeper.iterdir()))
    assert is_held(daemon.mountpoint)
    with (daemon.mountpoint / "proc/meminfo").open() as file:
        (server,) = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        os.kill(int(server), 9)
        with pytest.raises(BlockingIOError):
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    wait_for(lambda: daemon.log.read_text().count("INFO: serving") == 2)
    assert is_held(daemon.mountpoint)


def test_a_lease_that_somebody_has_already_is_waited_for(start_daemon: Callable[..., Daemon]) -> None:
    """As after an upgrade from a version that held nothing."""
    kept = Kept(start_daemon("kernel"))
    try:
        path = kept.daemon.mountpoint / "proc/meminfo"
        wait_for(lambda: is_held(kept.daemon.mountpoint))
        kept.kill()  # what it held goes with it, since only the session is kept here
        take = (
            "import errno, fcntl, signal, sys\n"
            "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
            "file = open(sys.argv[1])\n"
            "try:\n"
            "    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
            "    print('taken', flush=True)\n"
            "except OSError as error:\n"
            "    print(errno.errorcode[error.errno], flush=True)\n"
            "sys.stdin.readline()\n"
        )
        kept.start()
        holder = subprocess.Popen(
            [sys.executable, "-c", take, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        taken = holder.stdout.readline()
        kept.wait_until_it_serves()
        holder.communicate("\n")
        assert taken in ("taken\n", "EAGAIN\n"), "who was first"
        assert holder.wait() == 0
        wait_for(lambda: is_held(kept.daemon.mountpoint))
    finally:
        kept.close()


def test_who_opens_them_ends_with_its_server(start_daemon: Callable[..., Daemon]) -> None:
    """Else servers that are killed in a row leave as many that go through all directories, while readers wait."""
    kept = Kept(start_daemon("kernel"))
    try:
        kept.kill()  # what it held goes with it, since only the session is kept here
        kept.start()
        opening: list[psutil.Process] = []

        def is_found() -> bool:
            for child in psutil.Process(kept.server.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.uids().real == held_open._NOBODY:  # it begins to open them
                        child.suspend()  # so that it does not end by itself
                        opening.append(child)
            return bool(opening)

        wait_for(is_found)
        kept.kill()
        kept.start()  # which answers what it has asked
        wait_for(lambda: not opening[0].is_running() or opening[0].status() == psutil.STATUS_ZOMBIE)
    finally:
        kept.close()


def test_who_is_to_open_them_and_finds_its_server_ended_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "prctl", Mock())
    queue, end = socket.socketpair()
    with end:
        held_open._end_with_the_server(end)
        queue.close()
        with pytest.raises(BrokenPipeError):
            held_open._end_with_the_server(end)


def test_without_a_descriptor_to_be_had_it_is_said_that_nothing_is_held(caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(socket, "socketpair", Mock(side_effect=OSError(errno.EMFILE, "too many")))
    mount = os.open("/", os.O_PATH)
    held_open._hold(mount)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(mount)
    assert "may take leases of files, and hold up others by them: [Errno 24] too many" in caplog.text


def test_who_may_not_send_as_another_user_says_what_is_not_held(caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "setresuid", Mock(side_effect=PermissionError(errno.EPERM, "refused")))
    assert not held_open._is_sent_by_nobody()
    (message,) = caplog.messages
    assert message.endswith(": those in directories are not held open, as they would count for root (refused)")


def test_a_file_that_cannot_be_opened_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("")
    (tmp_path / "sys/devices/system/cpu/cpu0").mkdir(parents=True)
    (tmp_path / "sys/devices/system/cpu/cpu0/online").write_text("")
    (tmp_path / "sys/devices/system/cpu/link").symlink_to("cpu0")
    directory = os.open(tmp_path, os.O_PATH)
    opened = list(held_open._open_all(directory, 9))
    names = sorted(os.readlink(f"/proc/self/fd/{fd}")[len(str(tmp_path)) + 1 :] for fd in opened)
    for fd in (directory, *opened):
        os.close(fd)
    assert names == ["proc/meminfo", "sys/devices/system/cpu/cpu0/online"]
