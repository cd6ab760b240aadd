"""lxcfs-py status: how the daemon is, as an operator and as a script asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from lxcfs_py.daemon import engines
from lxcfs_py.linux import runtime_directory
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ENGINES, ROOT, Daemon
from tests.kept import wait_for

MIB = 1 << 20


def lxcfs_py(*arguments: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "lxcfs_py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def daemon(start_daemon: Callable[..., Daemon]) -> Daemon:
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())  # its mount answers before it does
    return daemon


def config(daemon: Daemon) -> str:
    arguments: Any = daemon.process.args
    return str(arguments[5])


def status(daemon: Daemon, *options: str) -> subprocess.CompletedProcess[str]:
    return lxcfs_py("status", *options, "--mountpoint", daemon.mountpoint, "--config", config(daemon))


def at(daemon: Daemon, directory: Path) -> Path:
    """Return a configuration with a daemon's mountpoint."""
    file = directory / "at.toml"
    file.write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    return file


def test_without_a_daemon_it_says_so_and_how_to_start_one(tmp_path: Path) -> None:
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{tmp_path}/views"\n')
    for options in ([], ["--json"], ["--probe"]):
        done = lxcfs_py("status", *options, "--config", tmp_path / "lxcfs.toml")
        assert done.returncode == 3
        assert f"no daemon runs for {tmp_path}/views" in done.stdout + done.stderr
    assert (
        json.loads(lxcfs_py("status", "--json", "--config", tmp_path / "lxcfs.toml").stdout)["state"] == "not running"
    )


@pytest.mark.parametrize("command", ["status", "users", "unmount", "detach", "remove"])
@pytest.mark.parametrize("text", [None, "mountpoint = nowhere"], ids=["missing", "broken"])
def test_a_configuration_that_was_named_and_cannot_be_read_stands_for_no_other_mountpoint(
    command: str, text: Optional[str], tmp_path: Path
) -> None:
    file = tmp_path / "named.toml"
    if text:
        file.write_text(text)
    done = lxcfs_py(command, *(["--all"] if command == "detach" else []), "--config", file)
    assert done.returncode == 1
    assert str(file) in done.stderr


def test_of_a_daemon_that_is_well_it_says_what_it_serves_and_who_has_the_files(
    daemon: Daemon, sandbox: Callable[..., Sandbox]
) -> None:
    box = sandbox(memory=256 * MIB, views=daemon.mountpoint)
    box.run(["cat", "/proc/meminfo"])
    done = status(daemon)
    assert done.returncode == 0
    assert done.stdout.startswith(f"healthy: serving {daemon.mountpoint} since 20")
    assert f"process {daemon.process.pid}, engine kernel" in done.stdout
    assert f"configuration: {config(daemon)}\n" in done.stdout
    (line,) = (line for line in done.stdout.splitlines() if f" {box.init} " in line)
    assert line.endswith("all live")
    assert max(map(len, done.stdout.splitlines())) <= 120
    told = json.loads(status(daemon, "--json").stdout)
    assert (told["state"], told["daemon"]["mounted"], told["daemon"]["reads"]["proc/meminfo"]) == ("healthy", True, 1)


@pytest.mark.parametrize("engine", ENGINES)
def test_of_the_engine_fusepy_it_says_what_is_not_promised(start_daemon: Callable[..., Daemon], engine: str) -> None:
    daemon = start_daemon(engine)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    done = status(daemon)
    assert (done.returncode, f"\n  {engines.FUSEPY_ENDS}\n" in done.stdout) == (0, engine == "fusepy")


def test_of_a_daemon_that_stands_still_it_says_so_and_does_not_wait_for_it(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        done = status(daemon)
        assert (done.returncode, done.stdout.splitlines()[0][:15]) == (1, "not answering: ")
        assert f"kill -KILL {daemon.process.pid} ends it, and the mount: start it again" in done.stdout
        assert status(daemon, "--probe").returncode == 1
    finally:
        daemon.process.send_signal(signal.SIGCONT)


def test_of_a_daemon_that_stands_still_and_whose_mount_is_kept_it_says_that_it_is(
    start_daemon: Callable[..., Daemon],
) -> None:
    keeper = start_daemon("kernel", keep=True)
    wait_for(lambda: "INFO: serving" in keeper.log.read_text())
    server = json.loads(status(keeper, "--json").stdout)["daemon"]["pid"]
    for pid in (keeper.process.pid, server):
        os.kill(pid, signal.SIGSTOP)
    try:
        said = status(keeper).stdout
    finally:
        for pid in (keeper.process.pid, server):
            os.kill(pid, signal.SIGCONT)
    assert f"kill -KILL {server} ends it: it is started again, and the mount is kept" in said


def test_a_container_whose_files_wait_is_not_told_that_reading_them_fails(
    daemon: Daemon, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    other = start_daemon("kernel")
    sandbox(views=other.mountpoint)
    other.process.send_signal(signal.SIGSTOP)
    try:
        done = status(daemon)
    finally:
        other.process.send_signal(signal.SIGCONT)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "1 container with files whose server does not answer: who reads them waits; lxcfs-py doctor" in said
    assert "--dead" not in said


def test_a_container_with_dead_files_is_no_state_to_be_well_in(
    daemon: Daemon, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox], tmp_path: Path
) -> None:
    other = start_daemon("kernel")
    box = sandbox(views=other.mountpoint)
    assert status(daemon).returncode == 0
    other.process.kill()
    other.process.wait(10)
    done = status(daemon)
    assert done.returncode == 1
    assert done.stdout.startswith("degraded: ")
    assert "problem: 1 container with files whose server has ended: reading them fails" in done.stdout
    assert status(daemon, "--probe").returncode == 0
    assert lxcfs_py("attach", "--all", "--dead", "--config", at(daemon, tmp_path)).returncode == 0
    assert status(daemon).returncode == 0
    assert box.run(["cat", "/proc/uptime"]).returncode == 0


MASKED = {
    "proc/vmstat": "mount --bind /dev/null /proc/vmstat",
    "sys/dev/block": "mount -t tmpfs -o ro no /sys/dev/block",
}


@pytest.mark.parametrize(("name", "command"), MASKED.items(), ids=MASKED)
def test_what_an_engine_has_masked_stays_hidden_and_is_no_reason_to_complain(
    name: str, command: str, daemon: Daemon, sandbox: Callable[..., Sandbox], tmp_path: Path
) -> None:
    box = sandbox()
    assert box.run(["sh", "-c", command]).returncode == 0
    done = lxcfs_py("attach", "--pid", str(box.init), "--config", at(daemon, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(" attached, 1 hidden\n") or ", 1 hidden, " in done.stdout
    told = json.loads(status(daemon, "--json").stdout)
    (container,) = (each for each in told["containers"] if each["pid"] == box.init)
    assert container["files"].pop(name) == "hidden"
    assert set(container["files"].values()) == {"live"}
    doctor = lxcfs_py("doctor", "--config", at(daemon, tmp_path)).stdout
    assert "with all enabled files: 1" in doctor
    assert f"(process {box.init}): " not in doctor


def test_a_configuration_that_has_changed_or_was_refused_is_told(daemon: Daemon) -> None:
    before = Path(config(daemon)).read_text()
    Path(config(daemon)).write_text(before + '\n[cpu]\nmode = "cpuset"\n')
    assert "the file has changed since: cpu.mode (lxcfs-py reload)" in status(daemon).stdout
    Path(config(daemon)).write_text(before + '\n[cpu]\nmode = "cpusets"\n')
    assert lxcfs_py("reload", "--config", config(daemon)).returncode == 1
    done = status(daemon)
    assert done.returncode == 1
    assert "problem: the last reload changed nothing" in done.stdout
    assert 'cpu.mode is "cpusets"' in done.stdout
    assert status(daemon, "--probe").returncode == 0, "it serves: no reason to start it again"


def test_where_the_file_has_gone_what_it_had_is_in_force_and_no_defaults(start_daemon: Callable[..., Daemon]) -> None:
    daemon = start_daemon(config="memory.swap = false")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    daemon.config.unlink()
    assert lxcfs_py("reload", "--config", daemon.config).returncode == 1
    done = lxcfs_py("status", "--mountpoint", daemon.mountpoint)
    assert f"  configuration: what {daemon.config} had, which is not there any more, reloaded 20" in done.stdout
    assert "defaults" not in done.stdout


def test_a_daemon_is_found_by_its_file_which_names_another_mountpoint_by_now(
    sandbox: Callable[..., Sandbox], tmp_path: Path
) -> None:
    place, file = tmp_path / "before", tmp_path / "lxcfs.toml"
    file.write_text(f'mountpoint = "{place}"\n')
    command = [sys.executable, "-m", "lxcfs_py", "run", "--config", str(file)]
    daemon = Daemon(command, place, tmp_path / "log")
    try:
        wait_for(lambda: "INFO: serving" in daemon.log.read_text())
        file.write_text(f'mountpoint = "{tmp_path}/after"\n')
        for reload in (False, True):
            if reload:
                assert lxcfs_py("reload", "--config", file).returncode == 0
            done = lxcfs_py("status", "--config", file)
            assert (done.returncode, done.stdout.partition(" since ")[0]) == (0, f"healthy: serving {place}")
            late = "the file has changed since: mountpoint (once the service is stopped and started)"
            assert late in done.stdout
            assert lxcfs_py("status", "--probe", "--config", file).stdout == f"serving at {place}\n"
        assert lxcfs_py("try", "--config", file, "true").returncode == 0
        assert f"process {daemon.process.pid}, engine kernel, it answers" in lxcfs_py("doctor", "--config", file).stdout
        box = sandbox()
        assert " attached" in lxcfs_py("attach", "--pid", box.init, "--config", file).stdout
        assert " detached" in lxcfs_py("detach", "--pid", box.init, "--config", file).stdout
        refused = lxcfs_py("unmount", "--config", file).stderr
        assert f"{place} is served by process {daemon.process.pid}" in refused
    finally:
        assert daemon.stop() == 0
    assert lxcfs_py("status", "--config", file).returncode == 3


def test_a_server_that_may_take_over_names_who_serves_and_both_configurations(daemon: Daemon, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.touch()
    command = [str(other) if word == str(daemon.config) else word for word in daemon.command]
    successor = Daemon(command, daemon.mountpoint, tmp_path / "log")
    try:
        assert daemon.process.wait(30) == 0
        by = f"by process {daemon.process.pid}, by {daemon.config}; this one goes by {other}\n"
        assert f"{daemon.mountpoint} is served {by}" in successor.log.read_text()
    finally:
        assert successor.stop() == 0


def test_who_reads_most_is_named(daemon: Daemon, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(views=daemon.mountpoint)
    reader = box.popen(["sh", "-c", "while cat /proc/uptime; do :; done"], stdout=subprocess.DEVNULL)
    try:
        told = json.loads(status(daemon, "--json").stdout)
    finally:
        reader.kill()
    (container,) = (each for each in told["containers"] if each["pid"] == box.init)
    assert container["reads_per_second"] > 0
    assert container["reads_per_second"] > told["reads_per_second"] / 2


def test_only_root_may_ask_and_the_socket_goes_with_the_daemon(daemon: Daemon) -> None:
    socket = Path(runtime_directory.writable_path_of(str(daemon.mountpoint), "status") or "")
    assert socket.stat().st_mode & 0o777 == 0o600
    daemon.process.terminate()
    daemon.process.wait(10)
    assert not socket.exists()
