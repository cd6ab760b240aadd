"""Every command where something is missing, dead or full: a user gets sentences, and never a traceback."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import pytest

from lxcfs_py import cli
from lxcfs_py.commands import remove
from lxcfs_py.engine import node_keeper, session
from lxcfs_py.linux import runtime_directory
from lxcfs_py.runtimes import selftest
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon, unmount_below

ARGUMENTS = {
    "run": [],
    "reload": [],
    "check": None,
    "status": [],
    "show": ["meminfo"],
    "explain": ["meminfo", "--pid", str(os.getpid())],
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

TAKE_A_MOUNTPOINT = {"run": [], "status": ["--mountpoint"], "try": ["--mountpoint"], "selftest": ["--mountpoint"]}
"""Which commands can be given another mountpoint than the configured one, and the option that it follows."""

SITUATIONS = {
    "an ordinary user": ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
    "root without capabilities": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
    "root without CAP_SYS_PTRACE": ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"],
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


@pytest.mark.slow
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.replace(" ", "-"))
def test_no_command_shows_a_traceback(situation: str, place: Path) -> None:
    serves = situation == "root without CAP_SYS_PTRACE"
    for command in cli.COMMANDS:
        if command == "run" and serves:  # without end
            continue
        told(*SITUATIONS[situation], sys.executable, "-m", "lxcfs_py", *arguments(command, place))


def test_who_cannot_mount_is_told_what_is_lacking(place: Path) -> None:
    run = (sys.executable, "-m", "lxcfs_py", *arguments("run", place))
    assert "CAP_SYS_ADMIN" in told(*SITUATIONS["root without capabilities"], *run).stderr
    assert "has not got /dev/fuse, which" in told(*SITUATIONS["no /dev/fuse"], *run).stderr


def test_who_may_not_look_at_a_process_is_not_told_that_it_sees_the_host(
    place: Path, sandbox: Callable[..., Sandbox]
) -> None:
    pid = sandbox(memory=64 << 20).init
    sentence = (
        f"lxcfs-py: the namespaces of process {pid} cannot be read (Permission denied): run this as root, with "
        "CAP_SYS_PTRACE\n"
    )
    for command, situation, config in (
        ("show", "an ordinary user", "/dev/null"),  # who can read no other here
        ("show", "root without CAP_SYS_PTRACE", str(place)),
        ("explain", "root without CAP_SYS_PTRACE", str(place)),
    ):
        asked = [command, "meminfo", "--config", config, "--pid", str(pid)]
        done = told(*SITUATIONS[situation], sys.executable, "-m", "lxcfs_py", *asked)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


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


@pytest.mark.parametrize("engine", ["kernel", pytest.param("fusepy", marks=pytest.mark.slow)])
def test_a_server_does_not_wait_for_one_that_stands_still_and_cannot_be_taken_over(
    engine: str, place: Path, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon("fusepy")
    place.write_text(f'mountpoint = "{daemon.mountpoint}"\nfuse.engine = "{engine}"\n')
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        done = told(sys.executable, "-m", "lxcfs_py", *arguments("run", place))
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert done.returncode == 1
    named = f"{daemon.mountpoint} is served by process {daemon.process.pid}, which does not answer: stop that first"
    assert named in done.stderr


def test_a_mount_that_somebody_holds_and_nobody_serves_is_not_waited_for(place: Path) -> None:
    views = place.parent / "views"
    views.mkdir()
    held = session.create(str(views))
    Path(runtime_directory.path_of(str(views))).touch()  # as a server leaves it that was killed
    try:
        done = told(sys.executable, "-m", "lxcfs_py", *arguments("run", place))
        assert done.returncode == 1
        assert f"process {os.getpid()}" in done.stderr
        assert "which does not answer: stop that first" in done.stderr
    finally:
        session.withdraw(str(views))
        held.close()
        unmount_below(views)


@pytest.mark.slow
def test_while_the_daemon_stands_still_no_command_waits_for_it(
    place: Path, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    daemon = start_daemon("kernel")
    sandbox(views=daemon.mountpoint)
    place.write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    deadline = time.monotonic() + 10
    while told(sys.executable, "-m", "lxcfs_py", "status", "--config", str(place), "--probe").returncode:
        assert time.monotonic() < deadline, "its mount answers, but no command can ask it"
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        for command in cli.COMMANDS:
            if command not in ("run", "remove"):  # one takes over, and waits for that; the other ends it
                done = told(sys.executable, "-m", "lxcfs_py", *arguments(command, place))
                if command in ("status", "doctor", "selftest", "unmount", "attach", "try"):
                    assert done.returncode == 1, command
                    assert "not answer" in done.stdout + done.stderr, command
    finally:
        daemon.process.send_signal(signal.SIGCONT)


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


def ways_to_write(views: Path) -> dict[str, str]:
    """A mountpoint in a configuration, in other ways than the kernel lists it."""
    link = views.parent / "link"
    link.symlink_to(views.name)
    return {
        "a slash at the end": f"{views}/",
        "slashes": f"//{str(views).replace('/', '//')}",
        "dots": f"{views.parent}/./nowhere/../{views.name}",
        "a link": str(link),
        "a link with a slash": f"{link}/",
    }


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mounts that `selftest` would have looked at."""
    places: list[str] = []
    monkeypatch.setattr(selftest, "ask", lambda place, configured: places.append(str(place)) or [])
    return places


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The mounts that `remove` would have ended, and freed all containers of."""
    places: list[str] = []
    monkeypatch.setattr(remove, "_free_containers", lambda place: {})
    monkeypatch.setattr(remove, "_delete", places.append)
    monkeypatch.setattr(node_keeper, "release", lambda: None)
    monkeypatch.setattr(remove, "mountpoint", SimpleNamespace(is_mounted=lambda place: False))
    return places


def test_however_a_mountpoint_is_written_each_command_takes_it_for_the_same(
    start_daemon: Callable[..., Daemon],
    sandbox: Callable[..., Sandbox],
    asked: list[str],
    removed: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views, box, config = start_daemon("fusepy").mountpoint, sandbox(), tmp_path / "lxcfs.toml"
    (tmp_path / "link").symlink_to(views)
    (tmp_path / "seccomp.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}')
    monkeypatch.chdir(tmp_path)
    to_this = {"attach": ["--pid", str(box.init)], "cdi": [], "seccomp": ["--base", "seccomp.json"]}
    options = {**ARGUMENTS, **to_this, "detach": to_this["attach"]}

    def said(command: str, mountpoint: str, *given: str) -> tuple[int, str]:
        """The code and what is said, without numbers, where that mountpoint is configured, or given as well."""
        config.write_text(f'mountpoint = "{mountpoint}"\nfuse.engine = "fusepy"\n')
        line = [*arguments(command, config)[:3], *given, *(options.get(command) or [])]
        if command == "run":  # here, it would go to another directory
            done = subprocess.run([sys.executable, "-m", "lxcfs_py", *line], capture_output=True, text=True, timeout=60)
            return done.returncode, done.stderr
        code = cli.main(line)
        return code, re.sub(r" *\d+", " 0", "".join(capfd.readouterr()))

    usual = {command: said(command, str(views)) for command in cli.COMMANDS}
    assert {command for command, (code, _) in usual.items() if code} == {"run", "reload", "unmount", "webhook"}
    assert "is served already, by process" in usual["run"][1]
    written = f"/{tmp_path}/.//nowhere/../link//"
    assert {command: said(command, written) for command in cli.COMMANDS} == usual
    for command, given in TAKE_A_MOUNTPOINT.items():
        assert said(command, "/nowhere", *given, ".//link/") == usual[command]
    assert removed == [str(views)] * 2
    assert asked == [str(views)] * 3


def test_these_commands_and_no_others_can_be_given_a_mountpoint() -> None:
    subparsers = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    takes = {
        name for name, parser in subparsers.choices.items() if any(a.dest == "mountpoint" for a in parser._actions)
    }
    assert takes == set(TAKE_A_MOUNTPOINT)
