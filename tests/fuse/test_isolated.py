"""What runs as root imports nothing that lies in a working directory, a home or where a variable points."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py import isolated
from lxcfs_py.attach.visits import Visits
from tests.fuse.test_autoattach import arguments, children

MODULES = ("json", "logging", "sitecustomize", "usercustomize", "lxcfs_py", "psutil", "sdnotify", "fuse", "tomli")
PATIENCE = 20.0


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory with modules that leave a trace when they are imported."""
    directory = tmp_path / "hostile"
    site = directory / f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    for name in MODULES:
        for place in (directory, site):
            (place / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r} + ' ')\n")
    return directory


@pytest.fixture
def environment(hostile: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(hostile), "PYTHONPATH": str(hostile), "PYTHONSTARTUP": f"{hostile}/json.py"}


def descendants(pid: int) -> Iterator[int]:
    for child in children(pid):
        yield child
        yield from descendants(child)


def test_a_server_under_its_keeper_and_the_process_that_attaches(
    hostile: Path, environment: dict[str, str], tmp_path: Path, start_daemon: object
) -> None:
    (hostile / "lxcfs.toml").write_text('[attach]\nauto = true\ncgroups = ["/none-such/*"]\n')
    (hostile / "mount").mkdir()
    command = isolated.command("lxcfs_py", "run", "--keep")
    # Start in the hostile directory: isolated.py has gone to / by the time that it reads these.
    places = ["--config", str(hostile / "lxcfs.toml"), str(hostile / "mount")]
    keeper = subprocess.Popen([*command, *places], cwd=hostile, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while not any(b"lxcfs_py.attach.auto_attach" in arguments(pid) for pid in descendants(keeper.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.5)  # it has read its settings
        assert os.readlink(f"/proc/{keeper.pid}/cwd") == "/"
        looked_at = 0
        for pid in descendants(keeper.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # some of them end soon
                assert os.readlink(f"/proc/{pid}/cwd") == "/"
                passed_on = Path(f"/proc/{pid}/environ").read_bytes()
                assert str(hostile).encode() not in passed_on
                looked_at += 1
        assert looked_at >= 2
    finally:
        keeper.send_signal(signal.SIGTERM)
        keeper.wait(PATIENCE)
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()


@pytest.mark.parametrize("command", [["hook"], ["cdi", "--output", "/dev/stdout"], ["mounts", "docker"], ["--help"]])
def test_a_command_that_a_package_installs(
    hostile: Path, environment: dict[str, str], tmp_path: Path, command: list[str]
) -> None:
    done = subprocess.run(
        isolated.command("lxcfs_py", *command), cwd=hostile, env=environment, input="{}", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "imported").exists()


def test_the_packages_start_their_commands_isolated() -> None:
    root = Path(isolated.__file__).parent.parent
    assert (root / "packaging/rpm/launcher.in").read_text().startswith("#!/usr/bin/python3 -I\n")
    assert "dh_python3 --shebang='/usr/bin/python3 -I'" in (root / "packaging/deb/rules").read_text()


def refused(call: Callable[..., Any], *arguments: Any) -> str:
    try:
        return str(call(*arguments))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def test_a_process_that_enters_containers_can_run_nothing_and_change_nothing(tmp_path: Path) -> None:
    """Whatever it is told by a container: a filter for system calls holds it."""
    file = tmp_path / "file"
    file.touch()

    def work(_: object) -> list[str]:
        return [
            refused(os.execv, "/bin/true", ["true"]),
            refused(socket.socket, socket.AF_UNIX),
            refused(os.chmod, file, 0o600),
            refused(os.unlink, file),
            refused(os.rename, file, f"{file}.new"),
            refused(os.mkdir, tmp_path / "directory"),
            refused(os.mknod, tmp_path / "node"),
            refused(os.chroot, tmp_path),
            refused(os.setuid, 1),
            "done" if os.open(file, os.O_RDONLY) else "",
        ]

    assert Visits().one(work) == ["EPERM"] * 9 + ["done"]
    assert file.exists()
