"""Views put into containers that already run, taken out again and told of; also where the container is hostile."""

from __future__ import annotations

import contextlib
import encodings
import errno
import itertools
import json
import linecache
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import pytest

from lxcfs_py.attach import attach, servers
from lxcfs_py.cli import main as command_line
from lxcfs_py.config import Config
from lxcfs_py.files import FILES
from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes.names import KEY, Identity, Names
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon

MIB = 1 << 20
IN_OPEN = 0x20
MEMINFO = ["proc/meminfo"]
THERE = tuple(name for name in Config().files.enabled if Path("/", name).exists())  # whatever this kernel has
SEEN = "grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo"
LIMITED = f"MemTotal: {64 * 1024:14} kB\n1\n"  # what SEEN prints in a box
HOST = subprocess.run(["sh", "-c", SEEN], capture_output=True, text=True).stdout

NESTED = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]


@pytest.fixture
def box(sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A container of 64 MiB and one CPU that was started without any view."""
    return sandbox(memory=64 * MIB, cpus=1)


@pytest.fixture(scope="session")
def served(start_shared_daemon: Callable[..., Daemon]) -> Daemon:
    """The daemon that these tests attach to."""
    return start_shared_daemon("kernel")


@pytest.fixture
def views(served: Daemon) -> str:
    return str(served.mountpoint)


@pytest.fixture
def nothing_mounted_here() -> Iterator[None]:
    """The test must change no mount of the machine's, where attach has any to change."""
    before = mounts_of_host()
    yield
    assert mounts_of_host() == before


def mounts_of_host() -> list[str]:
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in table if line.split()[4].startswith(("/proc", "/sys", "/etc", "/usr"))]


def cli(*arguments: str, daemon: Daemon) -> subprocess.CompletedProcess[str]:
    """The command line, with the configuration that the daemon's mountpoint stands in."""
    config = daemon.mountpoint.parent / "attach.toml"
    config.write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    command = [sys.executable, "-m", "lxcfs_py", *arguments, "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def seen(box: Sandbox) -> str:
    return str(box.run(["sh", "-c", SEEN]).stdout)


def mounts(pid: int) -> list[str]:
    """What is mounted where in the mount namespace of a process, without what may change between two of the same.

    Nor with what an engine of the machine's own mounts: where it deletes a mountpoint, that goes from all namespaces.
    """
    lines = [line.split(" ") for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return [" ".join(words[2:6]) for words in lines if not words[4].startswith(("/var/lib/", "/run/"))]


def pids_of(box: Sandbox) -> list[int]:
    return [int(pid) for pid in (box.cgroup("memory") / "cgroup.procs").read_text().split()]


def children() -> list[str]:
    """The processes that this one has started and not reaped."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def results(outcomes: list[attach.Outcome]) -> set[str]:
    return {outcome.result for outcome in outcomes}


def states(pid: int, mountpoint: str, names: tuple[str, ...] = THERE) -> dict[str, str]:
    (found,) = [status for status in attach.status(mountpoint, names) if status.pid == pid]
    assert not found.error
    return found.files


def dead_mount(box: Sandbox, start_daemon: Callable[..., Daemon], engine: str, names: tuple[str, ...]) -> None:
    """Leave files of a killed daemon in a box."""
    daemon = start_daemon(engine)
    assert results(attach.attach(box.init, str(daemon.mountpoint), names)) == {"attached"}
    daemon.process.kill()
    daemon.process.wait(10)


# What it is for


def test_a_running_container_sees_its_own_limits_at_once(box: Sandbox, served: Daemon) -> None:
    assert seen(box) == HOST
    done = cli("attach", "--pid", str(box.init), daemon=served)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{box.init}: {len(THERE)} attached\n"
    assert seen(box) == LIMITED


def test_the_host_and_other_containers_see_what_they_saw(
    box: Sandbox, sandbox: Callable[..., Sandbox], views: str, nothing_mounted_here: None
) -> None:
    other = sandbox(memory=128 * MIB)
    attach.attach(box.init, views, THERE)
    assert subprocess.run(["sh", "-c", SEEN], capture_output=True, text=True).stdout == HOST
    assert seen(other) == HOST


def test_a_second_attach_changes_nothing(box: Sandbox, served: Daemon) -> None:
    cli("attach", "--pid", str(box.init), daemon=served)
    before = Path(f"/proc/{box.init}/mountinfo").read_text()
    done = cli("attach", "--pid", str(box.init), daemon=served)
    assert (done.returncode, done.stdout) == (0, f"{box.init}: {len(THERE)} kept\n")
    assert Path(f"/proc/{box.init}/mountinfo").read_text() == before


def test_detach_leaves_the_container_as_it_was(box: Sandbox, served: Daemon) -> None:
    before = Path(f"/proc/{box.init}/mountinfo").read_text()
    cli("attach", "--pid", str(box.init), daemon=served)
    done = cli("detach", "--pid", str(box.init), daemon=served)
    assert (done.returncode, done.stdout) == (0, f"{box.init}: {len(THERE)} detached\n")
    assert Path(f"/proc/{box.init}/mountinfo").read_text() == before
    assert seen(box) == HOST


def test_only_the_files_that_were_asked_for_are_attached(box: Sandbox, served: Daemon) -> None:
    done = cli("attach", "--pid", str(box.init), "--file", "meminfo", "--file", "/proc/uptime", daemon=served)
    assert (done.returncode, done.stdout) == (0, f"{box.init}: 2 attached\n")
    found = states(box.init, str(served.mountpoint))
    assert [name for name, state in found.items() if state == "live"] == ["proc/meminfo", "proc/uptime"]


def test_a_container_that_had_the_files_from_its_start_keeps_them(sandbox: Callable[..., Sandbox], views: str) -> None:
    box = sandbox(views=Path(views))
    assert results(attach.attach(box.init, views, THERE)) == {"kept"}


def test_all_containers_and_nobody_else(views: str, require: Callable[..., None], nothing_mounted_here: None) -> None:
    """In a pid namespace of its own, where this test's are all there are."""
    require(os.geteuid() == 0, "root")
    script = f"""
import subprocess, sys
from lxcfs_py import cli
from lxcfs_py.runtimes.sandbox import Sandbox
with open({f"{views}/../all.toml"!r}, "w") as file:
    file.write('mountpoint = "{views}"')
with Sandbox(memory=64 << 20, cpus=1) as one, Sandbox(memory=64 << 20, cpus=1) as other:
    own_mounts = subprocess.Popen(["unshare", "--mount", "sleep", "60"])  # in no pid namespace of its own
    own_pids = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", "sleep", "60"])  # with our mounts
    sys.stdout.flush()
    code = cli.main(["attach", "--all", "--config", {f"{views}/../all.toml"!r}])
    print(code, [one.init, other.init], flush=True)
    for box in one, other:
        print(box.run(["sh", "-c", {SEEN!r}]).stdout, end="", flush=True)
    for process in own_mounts, own_pids:
        process.kill()
        process.wait()
"""
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    first, second, summary, *rest = done.stdout.splitlines(keepends=True)
    files = len(THERE)
    pids = [int(line.partition(" ")[0]) for line in (first, second) if line.endswith(f": {files} attached\n")]
    assert summary == f"0 {pids}\n", done.stdout + done.stderr
    assert "".join(rest) == 2 * LIMITED


def test_all_includes_a_container_that_was_only_being_made(
    box: Sandbox, views: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{views}"\n')
    assert box.run(["mount", "-t", "tmpfs", "none", "/proc"]).returncode == 0
    finish = SimpleNamespace(sleep=lambda seconds: box.run(["umount", "/proc"]))
    monkeypatch.setattr("lxcfs_py.commands.attach.time", finish)
    monkeypatch.setattr(attach, "all_targets", lambda: {box.init: [box.init]})  # no others of this machine
    assert command_line(["attach", "--all", "--config", str(tmp_path / "lxcfs.toml")]) == 0
    called = f"{box.init} (/{box.cgroup('memory').name})"
    assert capsys.readouterr() == (f"{called}: {len(THERE)} attached\n", "")
    assert seen(box) == LIMITED


def test_a_process_in_the_containers_own_mount_namespaces_sees_it_where_the_container_shares_its_mounts(
    box: Sandbox, views: str
) -> None:
    """As a systemd in a container does, whose services have mount namespaces."""
    box.run(["mount", "--make-rshared", "/"])
    service = box.popen(["unshare", "--mount", "--propagation", "slave", "sh"], stdin=-1, stdout=-1, text=True)
    assert service.stdin
    service.stdin.write("echo\n")
    service.stdin.flush()
    assert service.stdout
    service.stdout.readline()
    assert results(attach.attach(box.init, views, MEMINFO)) == {"attached"}
    printed, _ = service.communicate("grep MemTotal /proc/meminfo\n", timeout=30)
    assert printed == LIMITED.splitlines(keepends=True)[0]


# Mounts of other servers


@pytest.mark.usefixtures("filters")
@pytest.mark.parametrize("engine", ["kernel", "fusepy"])
def test_a_dead_mount_is_replaced_in_place(
    box: Sandbox, views: str, start_daemon: Callable[..., Daemon], engine: str
) -> None:
    names = ("proc/cpuinfo", "proc/meminfo", "proc/pressure/cpu", "sys/devices/system/cpu")
    before = len(mounts(box.init))
    dead_mount(box, start_daemon, engine, names)
    assert "Transport endpoint is not connected" in box.run(["cat", "/proc/meminfo"]).stderr
    assert set(states(box.init, views, names).values()) == {"dead"}
    assert results(attach.attach(box.init, views, names)) == {"replaced"}
    assert seen(box) == LIMITED
    assert len(mounts(box.init)) == before + len(names)


@pytest.mark.usefixtures("filters")
def test_a_living_servers_mount_is_told_apart_and_replaced_only_on_request(
    box: Sandbox, views: str, start_daemon: Callable[..., Daemon]
) -> None:
    other = str(start_daemon("kernel", '[memory]\nswap = false\n[cpu]\nmode = "cpuset"\n').mountpoint)
    attach.attach(box.init, other, MEMINFO)
    assert states(box.init, views, ("proc/meminfo",)) == {"proc/meminfo": "other"}
    assert results(attach.attach(box.init, views, MEMINFO)) == {"other"}
    assert results(attach.detach(box.init, views, MEMINFO)) == {"other"}
    assert results(attach.attach(box.init, views, MEMINFO, attach.Wanted(only_dead=True))) == {"other"}
    assert results(attach.attach(box.init, views, MEMINFO, attach.Wanted(replace=True))) == {"replaced"}
    assert states(box.init, views, ("proc/meminfo",)) == {"proc/meminfo": "live"}


@pytest.mark.usefixtures("filters")
def test_detach_clears_away_a_dead_mount_without_any_server(box: Sandbox, start_daemon: Callable[..., Daemon]) -> None:
    dead_mount(box, start_daemon, "kernel", tuple(MEMINFO))
    assert results(attach.detach(box.init, "/nowhere", MEMINFO)) == {"detached"}
    assert "MemTotal" in box.run(["cat", "/proc/meminfo"]).stdout


def test_a_server_that_does_not_answer_holds_up_nobody_for_long(
    box: Sandbox, sandbox: Callable[..., Sandbox], views: str, start_daemon: Callable[..., Daemon]
) -> None:
    stopped = start_daemon("kernel")
    attach.attach(box.init, str(stopped.mountpoint), MEMINFO)
    fine = sandbox(views=Path(views))
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(attach.AttachError, match=f"mount at {stopped.mountpoint} did not answer within 2 s"):
            attach.attach(fine.init, str(stopped.mountpoint), ["proc/stat"])
        found = {status.pid: status for status in attach.status(views, MEMINFO)}
        assert found[box.init].files == {"proc/meminfo": "silent"}
        assert found[fine.init].files == {"proc/meminfo": "live"}
        assert results(attach.attach(box.init, views, [*MEMINFO, "proc/stat"])) == {"other", "attached"}
        assert results(attach.attach(box.init, views, MEMINFO, attach.Wanted(replace=True))) == {
            "replaced"
        }  # which asks it nothing
    finally:
        stopped.process.send_signal(signal.SIGCONT)


def test_users_are_told_apart_by_whether_their_server_answers(
    box: Sandbox, sandbox: Callable[..., Sandbox], served: Daemon, start_daemon: Callable[..., Daemon]
) -> None:
    live, silent, dead = sandbox(views=Path(served.mountpoint)), sandbox(), box
    stopped = start_daemon("kernel")
    attach.attach(silent.init, str(stopped.mountpoint), MEMINFO)
    dead_mount(dead, start_daemon, "kernel", tuple(MEMINFO))
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        lines = [line.split("\t") for line in cli("users", daemon=served).stdout.splitlines()]
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    found = {pid: state for pid, *_, state in lines}
    boxes = {"served": live, "silent": silent, "unserved": dead}
    assert {state: found[str(box.init)] for state, box in boxes.items()} == {state: state for state in boxes}


def test_a_mount_that_does_not_answer_is_asked_for_once_whoever_has_it(
    sandbox: Callable[..., Sandbox], views: str, start_daemon: Callable[..., Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = start_daemon("kernel")
    boxes = [sandbox() for _ in range(3)]
    for each in boxes:
        attach.attach(each.init, str(stopped.mountpoint), MEMINFO)
    asked: list[str] = []
    monkeypatch.setattr(servers, "partial", lambda work, use: asked.append(use.device) or partial(work, use))
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        pids = [each.init for each in boxes]
        outcomes = attach.attach_all(pids, views, [*MEMINFO, "proc/stat"])
    finally:
        stopped.process.send_signal(signal.SIGCONT)
    assert [[each.result for each in one] for one in outcomes] == [["other", "attached"]] * 3
    assert len(asked) == 1


# Servers that are in containers themselves


@pytest.fixture
def server(box: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """The mountpoint of a server that runs in the box."""
    mountpoint = tmp_path / "within"
    process = box.popen([sys.executable, "-m", "lxcfs_py", "run", str(mountpoint)], cwd=ROOT, stderr=subprocess.PIPE)
    while f" {mountpoint} " not in Path(f"/proc/{box.init}/mountinfo").read_text():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    assert box.run(["cat", f"{mountpoint}/proc/meminfo"]).returncode == 0
    yield mountpoint
    process.terminate()
    process.wait(20)


def test_a_container_in_which_a_whole_mount_stands_is_left_alone(box: Sandbox, server: Path, served: Daemon) -> None:
    before = mounts(box.init)
    done = cli("attach", "--pid", str(box.init), daemon=served)
    assert done.returncode == 1
    assert done.stderr.startswith(f"lxcfs-py: a whole mount of lxcfs stands in the container, at {server}: ")
    assert mounts(box.init) == before


def test_a_container_that_holds_a_session_is_left_alone(box: Sandbox, server: Path, views: str) -> None:
    assert box.run(["mount", "--bind", f"{server}/proc/meminfo", "/etc/hostname"]).returncode == 0
    holder = min(pid for pid in pids_of(box) if "run" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"))
    os.kill(holder, signal.SIGSTOP)  # else it mounts itself again
    assert box.run(["umount", "--lazy", str(server)]).returncode == 0
    with pytest.raises(attach.LeftAloneError, match="holds the session"):
        attach.attach(holder, views, MEMINFO)
    os.kill(holder, signal.SIGCONT)


# Mount namespaces within a container


@pytest.fixture
def service(box: Sandbox) -> subprocess.Popen[str]:
    """A shell in the box with a /proc of its own, as systemd's ProtectProc= makes one."""
    shell = box.popen(["unshare", "--mount", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ask(shell, "mount -t proc proc /proc")
    return shell


def test_a_service_with_a_proc_of_its_own_sees_its_containers_limits_too(
    box: Sandbox, service: subprocess.Popen[str], served: Daemon
) -> None:
    assert ask(service, SEEN) == HOST
    files = len(THERE)
    done = cli("attach", "--pid", str(box.init), daemon=served)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{box.init}: {files} attached\n{service.pid}: {files} attached\n"
    assert ask(service, SEEN) == LIMITED
    cli("detach", "--pid", str(box.init), daemon=served)
    assert ask(service, SEEN) == HOST


def test_status_tells_of_a_service_that_misses_what_its_container_has(
    box: Sandbox, service: subprocess.Popen[str], views: str
) -> None:
    attach.attach(box.init, views, MEMINFO)
    found = {each.pid: each for each in attach.status(views, MEMINFO)}
    assert found[box.init].files == {"proc/meminfo": "live"}
    assert (found[service.pid].files, found[service.pid].within) == ({"proc/meminfo": "none"}, box.init)
    attach.attach(service.pid, views, MEMINFO)
    assert service.pid not in [each.pid for each in attach.status(views, MEMINFO)]


# What is asked for


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(
    box: Sandbox, served: Daemon, start_daemon: Callable[..., Daemon]
) -> None:
    before = mounts(box.init)
    done = cli("attach", "--dry-run", "--pid", str(box.init), daemon=served)
    assert (done.returncode, done.stdout) == (0, f"{box.init}: {len(THERE)} would be attached\n")
    assert mounts(box.init) == before
    dead_mount(box, start_daemon, "kernel", tuple(MEMINFO))
    before = mounts(box.init)
    for command, result in (("attach", "replaced"), ("detach", "detached")):
        done = cli(command, "--dry-run", "--dead", "--file", "meminfo", "--pid", str(box.init), daemon=served)
        assert (done.returncode, done.stdout) == (0, f"{box.init}: 1 would be {result}\n")
    assert mounts(box.init) == before


def test_only_what_is_dead_is_healed_where_that_is_asked_for(
    box: Sandbox, views: str, start_daemon: Callable[..., Daemon]
) -> None:
    dead_mount(box, start_daemon, "kernel", tuple(MEMINFO))
    outcomes = attach.attach(box.init, views, ["proc/meminfo", "proc/stat"], attach.Wanted(only_dead=True))
    assert [outcome.result for outcome in outcomes] == ["replaced", "absent"]
    assert states(box.init, views, ("proc/meminfo", "proc/stat")) == {"proc/meminfo": "live", "proc/stat": "none"}
    assert results(attach.detach(box.init, views, MEMINFO, attach.Wanted(only_dead=True))) == {"kept"}


def test_a_container_is_attached_to_by_its_name(
    box: Sandbox, views: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = f"/{box.cgroup('memory').name}"
    web = Identity("docker", "0" * 64, "web")
    monkeypatch.setattr(Names, "around", lambda self, cgroup: iter([web] if cgroup == path else []))
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{views}"\n')
    assert command_line(["attach", "web", "--file", "meminfo", "--config", str(tmp_path / "lxcfs.toml")]) == 0
    assert capsys.readouterr().out == f"{box.init}: 1 attached\n"
    assert command_line(["attach", "db", "--config", str(tmp_path / "lxcfs.toml")]) == 1
    assert 'no container that runs is called "db"' in capsys.readouterr().err


@pytest.mark.parametrize("opted_out_by", ["label", f"environment: {KEY}=none", "environment: LXCFS_PY_VIEWS=none"])
def test_all_leaves_a_container_alone_that_opts_out_unless_it_is_named(
    box: Sandbox,
    views: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    opted_out_by: str,
) -> None:
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{views}"\n')
    if opted_out_by == "label":
        init = box.init
        monkeypatch.setattr(Names, "of", lambda self, cgroup: Identity("docker", "0" * 64, "web", {KEY: "none"}))
    else:
        _, init = nested(box, ["env", opted_out_by.split()[1].replace("none", "None,"), *NESTED, "--mount-proc"])
    monkeypatch.setattr(attach, "all_targets", lambda: {init: [init]})
    options = ["--file", "meminfo", "--config", str(tmp_path / "lxcfs.toml")]
    assert command_line(["attach", "--all", *options]) == 0
    assert f"): left alone: it opts out by its {opted_out_by}" in capsys.readouterr().out
    assert command_line(["attach", "--pid", str(init), *options]) == 0
    assert capsys.readouterr().out == f"{init}: 1 attached\n"


# Containers of all kinds


def nested(box: Sandbox, command: list[str]) -> tuple[subprocess.Popen[str], int]:
    """Start a shell as the init of a container within a box; return it and that init's pid."""
    shell = box.popen([*command, "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ask(shell, "")
    (init,) = Path(f"/proc/{shell.pid}/task/{shell.pid}/children").read_text().split()
    return shell, int(init)


def ask(shell: subprocess.Popen[str], command: str) -> str:
    assert shell.stdin
    assert shell.stdout
    shell.stdin.write(f"{command}\necho end of it\n")
    shell.stdin.flush()
    return "".join(itertools.takewhile("end of it\n".__ne__, shell.stdout))


@pytest.mark.usefixtures("filters")
@pytest.mark.parametrize("proc", [["--mount-proc"], []], ids=["own proc", "inherited and locked proc"])
def test_a_container_in_a_user_namespace_sees_its_own_limits(box: Sandbox, views: str, proc: list[str]) -> None:
    shell, init = nested(box, [*NESTED, "--user", "--map-root-user", *proc])
    assert Path(f"/proc/{init}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
    assert results(attach.attach(init, views, THERE)) == {"attached"}
    assert ask(shell, SEEN) == LIMITED
    assert results(attach.detach(init, views, THERE)) == {"detached"}
    assert ask(shell, SEEN) == HOST


@pytest.mark.usefixtures("filters")
def test_a_dead_mount_that_a_user_namespace_has_locked_is_covered(
    box: Sandbox, views: str, start_daemon: Callable[..., Daemon]
) -> None:
    """What was mounted before the user namespace was made cannot be unmounted in it, by nobody."""
    dead_mount(box, start_daemon, "kernel", tuple(MEMINFO))
    shell, init = nested(box, [*NESTED, "--user", "--map-root-user"])
    assert results(attach.attach(init, views, MEMINFO)) == {"replaced"}
    assert ask(shell, "grep MemTotal /proc/meminfo") == LIMITED.splitlines(keepends=True)[0]
    before = mounts(init)
    assert results(attach.attach(init, views, MEMINFO)) == {"kept"}
    assert mounts(init) == before


def test_a_read_only_root_is_no_obstacle(box: Sandbox, views: str) -> None:
    for path in ("/", "/proc", "/sys"):
        assert box.run(["mount", "-o", "remount,bind,ro", path]).returncode == 0
    assert results(attach.attach(box.init, views, THERE)) == {"attached"}
    assert seen(box) == LIMITED


def test_a_process_in_a_chroot_gets_them_where_it_sees_them(box: Sandbox, views: str, tmp_path: Path) -> None:
    script = f"""
        mount --rbind / {tmp_path} && mount -t proc proc {tmp_path}/proc || exit
        exec chroot {tmp_path} sh
    """
    shell = box.popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert ask(shell, SEEN) == HOST
    assert results(attach.attach(shell.pid, views, THERE)) == {"attached"}
    assert ask(shell, SEEN) == LIMITED


# Containers that mean harm

HOSTILE = {
    "a bind mount over meminfo": ("mount --bind /etc/hostname /proc/meminfo", "ext4|xfs|btrfs|overlay|tmpfs|mounted"),
    "a file of proc over meminfo": ("mount --bind /proc/version /proc/meminfo", "has proc mounted over it"),
    "proc unmounted": ("umount --lazy /proc /proc", "not the kernel's own proc"),
    "a tmpfs over proc, with a symlink": (
        "mount -t tmpfs none /proc && ln -s /etc/hostname /proc/meminfo",
        "not the kernel's own proc",
    ),
    "a directory of proc over proc": ("mount --bind /proc/1 /proc", "not the kernel's own proc"),
    "a sysfs over proc": ("mount -t sysfs none /proc", "not the kernel's own proc"),
}


@pytest.mark.usefixtures("filters")
@pytest.mark.parametrize(("deed", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_nothing_is_mounted_over_what_a_container_put_in_the_way(
    box: Sandbox, served: Daemon, nothing_mounted_here: None, deed: str, reason: str
) -> None:
    assert box.run(["sh", "-c", deed]).returncode == 0
    before = mounts(box.init)
    done = cli("attach", "--pid", str(box.init), "--file", "meminfo", daemon=served)
    assert (done.returncode, done.stdout) == (1, f"{box.init}: 1 refused\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lxcfs-py: container {box.init}: /proc/meminfo: ")
    assert any(part in line for part in reason.split("|"))
    assert mounts(box.init) == before
    assert states(box.init, str(served.mountpoint), ("proc/meminfo",)) == {"proc/meminfo": "none"}


@pytest.mark.usefixtures("filters")
def test_what_a_container_mounted_over_a_directory_between_is_not_entered(box: Sandbox, views: str) -> None:
    assert box.run(["sh", "-c", "mount -t proc none /proc/fs && mount --bind /proc/fs /proc/pressure"]).returncode == 0
    (outcome,) = attach.attach(box.init, views, ["proc/pressure/cpu"])
    assert outcome.result == "refused"
    assert "mounted over a directory" in outcome.reason


CPUS = "sys/devices/system/cpu"
MASK = "mount -t tmpfs -o ro none /sys/devices/system/cpu/cpu0"
BELOW = {
    "a mask": (f"{MASK}/cache", "refused", "none", "engine has masked cpu0/cache in it"),
    "a mask of what is empty for all": (f"{MASK}/topology", "attached", "none", ""),
    "a mount": (f"mount -t proc none /{CPUS}/cpu0/cache", "refused", "none", "has proc mounted at cpu0/cache in it"),
    "a mount that is covered": (
        f"mount -t tmpfs none /{CPUS}/cpu0/cache; mount --bind /sys /sys",
        *("attached", "none", ""),
    ),
}


@pytest.mark.usefixtures("filters")
@pytest.mark.parametrize(("deed", "result", "state", "reason"), BELOW.values(), ids=BELOW)
def test_a_directory_is_not_mounted_over_where_that_uncovers_what_is_mounted_below_it(
    box: Sandbox, views: str, monkeypatch: pytest.MonkeyPatch, deed: str, result: str, state: str, reason: str
) -> None:
    """Docker masks cpuN/thermal_throttle, of which a virtual machine has none."""
    monkeypatch.setitem(FILES, CPUS, FILES[CPUS]._replace(masked=r"cpu(\d+)/topology"))
    assert box.run(["sh", "-c", deed]).returncode == 0
    assert states(box.init, views, (CPUS,)) == {CPUS: state}
    (outcome,) = attach.attach(box.init, views, [CPUS], attach.Wanted(dry_run=True))
    assert outcome.result == result
    (outcome,) = attach.attach(box.init, views, [CPUS])
    assert outcome.result == result
    assert reason in outcome.reason
    (outcome,) = attach.detach(box.init, views, [CPUS])
    assert outcome.result == ("detached" if result == "attached" else "absent")


def test_a_directory_is_mounted_over_a_file_of_another_such_mount_in_it(box: Sandbox, views: str) -> None:
    """The C program's containers may have cpu/online alone."""
    assert attach.attach(box.init, views, ["proc/meminfo"])
    assert box.run(["mount", "--bind", "/proc/meminfo", f"/{CPUS}/online"]).returncode == 0
    assert results(attach.attach(box.init, views, [CPUS])) == {"attached"}
    assert box.run(["cat", f"/{CPUS}/online"]).stdout == "0\n"


@pytest.mark.usefixtures("filters")
@pytest.mark.parametrize("target", ["/elsewhere", "elsewhere", "/real"], ids=["absolute", "relative", "to a real proc"])
def test_a_symbolic_link_in_place_of_proc_is_not_followed(
    box: Sandbox, views: str, tmp_path: Path, nothing_mounted_here: None, target: str
) -> None:
    script = f"""
        mount -t tmpfs none {tmp_path} && cd {tmp_path} && mkdir elsewhere real usr && touch elsewhere/meminfo &&
        mount --rbind /usr usr && ln -s usr/bin usr/lib usr/lib64 . && mount -t proc none real && ln -s {target} proc &&
        exec chroot . sh
    """
    shell = box.popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert ask(shell, "test -h /proc && echo link") == "link\n"
    before = mounts(shell.pid)
    (outcome,) = attach.attach(shell.pid, views, MEMINFO)
    assert outcome.result == "refused"
    assert "has no /proc" in outcome.reason
    assert mounts(shell.pid) == before


def test_odd_names_of_mountpoints_are_no_obstacle(box: Sandbox, views: str, tmp_path: Path) -> None:
    """Those that str.splitlines takes for the ends of lines stand in /proc/PID/mountinfo as they are."""
    name = f"{tmp_path}/a\rb\x0bc\x0cd\x1ce\x85f\u2028g - h\n"
    assert box.run(["mkdir", name]).returncode == 0
    assert box.run(["mount", "-t", "tmpfs", "none", name]).returncode == 0
    assert results(attach.attach(box.init, views, MEMINFO)) == {"attached"}
    assert states(box.init, views, ("proc/meminfo",)) == {"proc/meminfo": "live"}


SHARED_HOST = ["unshare", "--mount", "--propagation", "shared", sys.executable, "-c"]


def test_what_a_container_mounts_over_an_attached_file_stays_in_it(views: str, require: Callable[..., None]) -> None:
    """Also where the host's mounts are shared, as systemd has them."""
    require(os.geteuid() == 0, "root")
    script = f"""
from lxcfs_py.attach import attach
from lxcfs_py.runtimes.sandbox import Sandbox
with Sandbox() as box:
    print([outcome.result for outcome in attach.attach(box.init, {views!r}, {MEMINFO!r})])
    print(box.run(["mount", "--bind", "/etc/hostname", "/proc/meminfo"]).returncode)
    print(box.run(["cat", "/proc/meminfo"]).stdout == open("/etc/hostname").read())
    print(open("{views}/proc/meminfo").read().split(":")[0])
"""
    done = subprocess.run([*SHARED_HOST, script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["['attached']", "0", "True", "MemTotal"], done.stderr


def test_a_container_that_shares_its_proc_with_the_host_is_refused(views: str, require: Callable[..., None]) -> None:
    require(os.geteuid() == 0, "root")
    script = f"""
import subprocess
from pathlib import Path
from lxcfs_py.attach import attach, running
before = Path("/proc/self/mountinfo").read_text()
running.serves = lambda pid: ""  # the whole mount is shared, too
container = subprocess.Popen(
    ["unshare", "--mount", "--propagation", "unchanged", "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
)
container.stdin.write(b"echo\\n")
container.stdin.flush()
container.stdout.readline()
print([outcome for outcome in attach.attach(container.pid, {views!r}, {MEMINFO!r})])
print(Path("/proc/self/mountinfo").read_text() == before)
container.communicate(timeout=10)
"""
    done = subprocess.run([*SHARED_HOST, script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    outcomes, unchanged = done.stdout.splitlines() or [done.stderr, ""]
    assert "result='refused'" in outcomes
    assert "shares its mounts with the host" in outcomes
    assert unchanged == "True"


# What goes wrong


def test_a_container_that_dies_in_the_middle_has_ended(
    box: Sandbox, views: str, monkeypatch: pytest.MonkeyPatch, nothing_mounted_here: None
) -> None:
    enter = syscalls.setns
    before = children()

    def kill_and_enter(descriptor: int, kind: int) -> None:
        os.kill(box.init, signal.SIGKILL)
        while not Path(f"/proc/{box.init}/stat").read_text().rpartition(") ")[2].startswith("Z"):
            time.sleep(0.01)
        enter(descriptor, kind)

    monkeypatch.setattr(syscalls, "setns", kill_and_enter)  # in the helper
    with pytest.raises(attach.EndedError, match=f"process {box.init} has ended"):
        attach.attach(box.init, views, THERE)
    assert children() == before


def test_an_unexpected_exception_opens_no_file_while_in_the_container(
    box: Sandbox, views: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files there are the container's, and what is imported from them is executed with all rights."""

    def odd(*_: object) -> str:
        raise ValueError("b\udcffd")

    monkeypatch.setattr(attach, "_attach_file", odd)  # in the process that has entered the container
    opened = syscalls.inotify_init1(os.O_NONBLOCK)
    for path in (attach.__file__, __file__, linecache.__file__, str(Path(encodings.__file__).parent)):
        syscalls.inotify_add_watch(opened, path, IN_OPEN)

    def is_silent() -> bool:
        """Tell whether nobody opens a file meanwhile: another Python that starts just then does."""
        with contextlib.suppress(BlockingIOError):
            os.read(opened, 1 << 16)
        with pytest.raises(attach.AttachError, match=r"bug.*: ValueError: b.d \(.*odd:\d+\)$"):
            attach.attach(box.init, views, MEMINFO)
        try:
            return not os.read(opened, 1 << 16)
        except BlockingIOError:
            return True

    try:
        assert any(is_silent() for _ in range(50))
    finally:
        os.close(opened)


def test_a_kernel_before_5_2_is_named_as_the_reason(box: Sandbox, views: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(syscalls, "clone_mount", missing)
    with pytest.raises(attach.AttachError, match=r"Linux 5\.2 or later"):
        attach.attach(box.init, views, MEMINFO)


def test_a_mount_without_a_server_is_attached_to_nobody(box: Sandbox, start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon("kernel")
    daemon.process.kill()
    daemon.process.wait(10)
    with pytest.raises(attach.AttachError, match="has ended: start the daemon again"):
        attach.attach(box.init, str(daemon.mountpoint), MEMINFO)


def test_without_a_mount_there_is_nothing_to_attach(box: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(attach.AttachError, match=f"nothing is mounted at {tmp_path}; start the daemon"):
        attach.attach(box.init, str(tmp_path), MEMINFO)


@pytest.mark.usefixtures("filters")
def test_a_file_that_is_not_served_is_refused_and_the_others_are_attached(
    box: Sandbox, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon("kernel", '[files]\nenabled = ["proc/meminfo"]\n')
    outcomes = attach.attach(box.init, str(daemon.mountpoint), ["proc/meminfo", "proc/version"])
    assert [outcome.result for outcome in outcomes] == ["attached", "refused"]
    assert "does not serve it" in outcomes[1].reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pid", "PID"], "process PID is in no container"),
        (["--pid", "4194305"], "there is no process 4194305"),
    ],
)
def test_what_cannot_be_attached_is_refused_in_one_sentence(
    served: Daemon, nothing_mounted_here: None, arguments: list[str], message: str
) -> None:
    own = str(os.getpid())
    done = cli("attach", *(word.replace("PID", own) for word in arguments), daemon=served)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"lxcfs-py: {message.replace('PID', own)}")


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """engine(script): what the command podman does."""

    def write(script: str) -> None:
        (tmp_path / "podman").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "podman").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return write


def test_an_engine_is_asked_for_the_pid(box: Sandbox, engine: Callable[[str], None]) -> None:
    identity = box.cgroup("memory").name
    engine(f'test "$5 $6" = "-- a name" && test "$4" = "{{{{.State.Pid}}}} {{{{.Id}}}}" && echo {box.init} {identity}')
    assert attach.engine_pid("podman", "a name") == box.init


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo warning >&2; echo no such container >&2; exit 125", "which process web is: no such container"),
        ("echo 0 abc", "the container web is not running"),
        ("echo $$ 0123456789abcdef", "another or none"),
    ],
)
def test_an_engine_that_has_no_such_container_here_is_an_error(
    engine: Callable[[str], None], script: str, message: str
) -> None:
    engine(script)
    with pytest.raises(attach.AttachError, match=message):
        attach.engine_pid("podman", "web")


def test_an_engine_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(attach.AttachError, match="no command docker here"):
        attach.engine_pid("docker", "web")


# status


def test_status_shows_each_container_with_its_cgroup_and_files(
    box: Sandbox, sandbox: Callable[..., Sandbox], served: Daemon
) -> None:
    partly = sandbox(views=Path(served.mountpoint), files=MEMINFO)
    attach.attach(box.init, str(served.mountpoint), THERE)
    done = cli("status", "--json", daemon=served)
    assert done.returncode == 0, done.stderr
    found = {status["pid"]: status for status in json.loads(done.stdout)["containers"]}
    assert found[box.init]["cgroup"] == f"/{box.cgroup('memory').name}"
    assert found[box.init]["files"] == dict.fromkeys(THERE, "live")
    assert found[partly.init]["files"] == {**dict.fromkeys(THERE, "none"), "proc/meminfo": "live"}
    assert os.getpid() not in found

    lines = cli("status", daemon=served).stdout.splitlines()
    (row,) = [line.split(None, 2) for line in lines if f" {box.init} " in line]
    assert row == [f"/{box.cgroup('memory').name}", str(box.init), "all live"]
    assert any(f" {partly.init} " in line for line in lines)
    assert "; live: meminfo" in " ".join(" ".join(lines).split())


def test_status_needs_no_daemon(box: Sandbox, tmp_path: Path) -> None:
    assert states(box.init, str(tmp_path), ("proc/meminfo",)) == {"proc/meminfo": "none"}


def test_nothing_is_left_open_and_no_helper_is_left_behind(box: Sandbox, views: str) -> None:
    before = children(), len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        attach.attach(box.init, views, THERE)
        list(attach.status(views, THERE))
        attach.detach(box.init, views, THERE)
    assert (children(), len(os.listdir("/proc/self/fd"))) == before
