"""Every command where something is missing, dead or full: a user gets sentences, and never a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from lxcfs_py import cli
from lxcfs_py.engine import session
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon, unmount_below

ARGUMENTS = {
    "run": [],
    "reload": [],
    "check": None,
    "status": [],
    "show": ["meminfo"],
    "explain": ["meminfo", "--pid", "1"],
    "try": ["--", "true"],
    "mounts": ["docker"],
    "attach": ["--all"],
    "detach": ["--pid", "1"],
    "users": [],
    "unmount": [],
    "hook": [],
    "cdi": ["--output", "/proc/nowhere/cdi.json"],
    "webhook": ["--certificate", "/nowhere.crt", "/nowhere.key"],
}
"""What each command is given besides --config; a command that is not here is given nothing."""

SITUATIONS = {
    "an ordinary user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    "root without capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
    "root without CAP_SYS_ADMIN": ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
    "no /dev/fuse": [
        *("unshare", "--mount", "--propagation=private", "sh", "-c"),
        'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/zero c 1 5 && exec "$@"',
        "sh",
    ],
    "few descriptors": ["prlimit", "--nofile=24"],
}


def arguments(command: str, config: Path) -> list[str]:
    if command == "check":
        return [command, str(config)]
    given = ARGUMENTS.get(command) or []
    return [command, "--config", str(config), *given]


@pytest.fixture
def place(tmp_path: Path, require: Callable[[object, str], None]) -> Path:
    """A configuration for a place where nothing is mounted."""
    require(os.geteuid() == 0, "root")
    require(shutil.which("setpriv") and shutil.which("unshare"), "util-linux")
    tmp_path.chmod(0o755)
    config = tmp_path / "lxcfs.toml"
    config.write_text(f'mountpoint = "{tmp_path}/views"\n')
    return config


def told(*command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    said = done.stdout + done.stderr
    for word in ("Traceback", "this is a bug", "Exception ignored"):
        assert word not in said, said
    if done.returncode:
        assert said.strip(), "it fails without a word"
    return done


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.replace(" ", "-"))
def test_no_command_shows_a_traceback(situation: str, place: Path) -> None:
    for command in cli.COMMANDS:
        told(*SITUATIONS[situation], sys.executable, "-m", "lxcfs_py", *arguments(command, place))


def test_who_cannot_mount_is_told_what_is_lacking(place: Path) -> None:
    run = (sys.executable, "-m", "lxcfs_py", *arguments("run", place))
    assert "CAP_SYS_ADMIN" in told(*SITUATIONS["root without capabilities"], *run).stderr
    assert "has not got /dev/fuse, which" in told(*SITUATIONS["no /dev/fuse"], *run).stderr


def test_with_a_mount_that_is_dead_no_command_shows_a_traceback_or_waits(place: Path) -> None:
    views = place.parent / "views"
    views.mkdir()
    kept = session.create(str(views))
    os.close(kept.fuse)
    try:
        for command in cli.COMMANDS:
            if command not in ("run", "unmount"):  # these clear it away
                told(sys.executable, "-m", "lxcfs_py", *arguments(command, place))
    finally:
        unmount_below(views)


def test_what_cannot_be_tried_is_told_in_one_sentence(
    start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    views = str(start_daemon("kernel").mountpoint)
    for options, said in (
        (["--memory", "1", "--", "true"], "a memory limit below a few MiB is too low"),
        (["--cpuset", "9999", "--", "true"], "cpuset.cpus to 9999"),
        (["--", "/nowhere"], "cannot run /nowhere: No such file or directory"),
    ):
        done = told(sys.executable, "-m", "lxcfs_py", "try", "--mountpoint", views, *options)
        assert done.returncode == 1
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_without_a_mount_those_who_would_look_at_it_say_so_and_fail(place: Path) -> None:
    for command, code in (("status", 3), ("unmount", 1), ("attach", 1), ("try", 1)):
        done = told(sys.executable, "-m", "lxcfs_py", *arguments(command, place))
        assert done.returncode == code
        assert f"{place.parent}/views" in done.stdout + done.stderr
