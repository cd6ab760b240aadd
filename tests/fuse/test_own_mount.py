"""Whatever is done to the mountpoint: it shows the mount again, and who has files bound never notices."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest

from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ENGINES, ROOT, Daemon, mountpoints, unmount_below
from tests.kept import reading, wait_for

MIB = 1 << 20
AGAIN = "mounted it there again"

StartDaemon = Callable[..., Daemon]


def lxcfs_py(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lxcfs_py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def status(daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    return lxcfs_py("status", *options, "--mountpoint", daemon.mountpoint, "--config", "/dev/null")


def take_away(path: Path) -> None:
    subprocess.run(["umount", path], check=True)


def detach(path: Path) -> None:
    syscalls.umount(str(path), syscalls.MNT_DETACH)


def cover(path: Path) -> None:
    syscalls.mount("none", str(path), "tmpfs")


def cover_its_directory(path: Path) -> None:
    syscalls.mount("none", str(path.parent), "tmpfs")


def shows(daemon: Daemon) -> bool:
    return (daemon.mountpoint / "proc/uptime").exists()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Iterator[Daemon]:
    daemon = start_daemon("kernel", keep=True)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    yield daemon
    while str(daemon.mountpoint.parent) in mountpoints():
        detach(daemon.mountpoint.parent)
    if daemon.process.poll() is None:
        daemon.stop()


@pytest.mark.parametrize("disturb", [take_away, detach, cover, cover_its_directory])
def test_the_mount_comes_back_to_its_mountpoint(
    daemon: Daemon, sandbox: Callable[..., Sandbox], disturb: Callable[[Path], None]
) -> None:
    log = daemon.log.open()  # its path may be covered
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        disturb(daemon.mountpoint)
        wait_for(lambda: shows(daemon))
    assert log.read().count(AGAIN) == 1
    done = status(daemon)
    assert (done.returncode, "mounted there again: 1 time" in done.stdout) == (0, True), done.stdout
    assert daemon.process.poll() is None
    (server,) = psutil.Process(daemon.process.pid).children()
    server.kill()  # the next one finds the same
    wait_for(lambda: log.read().count("INFO: serving") == 1)
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(20) == 0
    assert str(daemon.mountpoint) not in mountpoints()


def test_a_mount_that_is_taken_away_again_and_again_stays_away_for_a_while_and_status_says_so(daemon: Daemon) -> None:
    detach(daemon.mountpoint)
    wait_for(lambda: shows(daemon))
    detach(daemon.mountpoint)
    wait_for(lambda: "mounted again in a while" in daemon.log.read_text())
    done = status(daemon, "--probe")
    if not shows(daemon):
        assert (done.returncode, done.stdout) == (1, f"nothing is mounted at {daemon.mountpoint} any more\n")
    wait_for(lambda: shows(daemon))
    wait_for(lambda: "no longer degraded: mountpoint" in daemon.log.read_text())
    assert daemon.log.read_text().count(AGAIN) == 2
    assert status(daemon, "--probe").returncode == 0


def test_the_next_server_mounts_again_what_was_taken_away_while_none_served(daemon: Daemon) -> None:
    (server,) = psutil.Process(daemon.process.pid).children()
    server.suspend()
    detach(daemon.mountpoint)
    server.kill()
    wait_for(lambda: AGAIN in daemon.log.read_text())
    assert shows(daemon)


def test_where_a_link_takes_the_mountpoints_place_it_is_mounted_where_that_leads(daemon: Daemon) -> None:
    (server,) = psutil.Process(daemon.process.pid).children()
    elsewhere = daemon.mountpoint.with_name("elsewhere")
    elsewhere.mkdir()
    server.suspend()
    detach(daemon.mountpoint)
    daemon.mountpoint.rmdir()
    daemon.mountpoint.symlink_to(elsewhere)
    server.resume()
    wait_for(lambda: shows(daemon))
    assert status(daemon, "--probe").returncode == 0
    daemon.process.send_signal(signal.SIGTERM)
    assert daemon.process.wait(20) == 0
    assert str(elsewhere) not in mountpoints()
    daemon.mountpoint.unlink()
    daemon.mountpoint.mkdir()


def test_a_mount_whose_connection_was_aborted_ends_its_server(daemon: Daemon) -> None:
    syscalls.umount(str(daemon.mountpoint), syscalls.MNT_FORCE | syscalls.MNT_DETACH)
    assert daemon.process.wait(20) == 0
    assert str(daemon.mountpoint) not in mountpoints()
    assert AGAIN not in daemon.log.read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_unmount_beside_a_daemon_names_its_process_and_does_nothing(start_daemon: StartDaemon, engine: str) -> None:
    daemon = start_daemon(engine)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    file = daemon.config.with_name("unmount.toml")
    file.write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    done = lxcfs_py("unmount", "--config", file)
    pid = daemon.process.pid
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"lxcfs-py: {daemon.mountpoint} is served by process {pid}: stop that, which unmounts\n  kill {pid}\n"
    )
    assert shows(daemon)
    daemon.process.kill()
    daemon.process.wait(10)
    assert lxcfs_py("unmount", "--config", file).returncode == 0
    assert str(daemon.mountpoint) not in mountpoints()
    unmount_below(daemon.mountpoint)
