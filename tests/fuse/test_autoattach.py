"""Views put into new containers as they start, by the daemon itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.attach import attach
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon

MIB = 1 << 20
PATIENCE = 15.0


@pytest.fixture
def engine(sandbox: Callable[..., Sandbox]) -> Sandbox:
    """A sandbox whose children are the containers of an engine."""
    return sandbox()


@pytest.fixture
def automatic(start_daemon: Callable[..., Daemon], engine: Sandbox) -> Iterator[Callable[..., Daemon]]:
    """automatic(config="", keep=False): a daemon that attaches to the engine's containers; it ends with the test."""
    daemons: list[Daemon] = []

    def start(config: str = "", auto: str = "true", keep: bool = False, **options: Any) -> Daemon:
        attach = f'[attach]\nauto = {auto}\ncgroups = ["/{engine.cgroup("memory").name}/*"]\n'
        daemons.append(start_daemon("kernel", f'{attach}{config}[log]\nlevel = "debug"\n', keep=keep, **options))
        return daemons[-1]

    yield start
    for daemon in daemons:
        print(daemon.log.read_text())  # shown where the test has failed
        if daemon.process.poll() is None:
            daemon.stop()


def within(seconds: float, condition: Callable[[], Any]) -> Any:
    """What the condition returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.002)
    return result


def has(box: Sandbox, name: str = "sys/devices/system/cpu") -> bool:
    """Whether a container has a file; the default is the one that is attached last."""
    return f" /{name} /{name} " in Path(f"/proc/{box.init}/mountinfo").read_text()


def seen(box: Sandbox) -> str:
    return str(box.run(["grep", "MemTotal", "/proc/meminfo"]).stdout)


def limited(mib: int) -> str:
    return f"MemTotal: {mib * 1024:14} kB\n"


def attachers(daemon: Daemon) -> list[int]:
    """The processes that attach for a daemon, but not those that they have forked."""
    started = [daemon.process.pid, *children(daemon.process.pid)]
    servers = [pid for pid in started if b"lxcfs_py" in arguments(pid)]
    found = [child for server in servers for child in children(server)]
    return [pid for pid in found if b"lxcfs_py.attach.auto_attach" in arguments(pid)]


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def arguments(pid: int) -> list[bytes]:
    """The command line of a process, of none where it has ended, whether or not its parent was told."""
    try:
        return [argument for argument in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if argument]
    except OSError:
        return []


def reload(daemon: Daemon, old: str, new: str) -> None:
    file = daemon.mountpoint.parent / "lxcfs.toml"
    file.write_text(file.read_text().replace(old, new))
    command = [sys.executable, "-m", "lxcfs_py", "reload", "--config", str(file)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=30)


def settled(daemon: Daemon, engine: Sandbox, sandbox: Callable[..., Sandbox]) -> None:
    """Wait till it attaches: its process has started."""
    box = sandbox(parent=engine)
    within(PATIENCE, lambda: has(box))


# What it is for


def test_each_new_container_sees_its_own_limits(automatic, engine, sandbox) -> None:
    settled(automatic(), engine, sandbox)
    for number in range(5):
        box = sandbox(memory=(64 + number) * MIB, parent=engine)
        within(PATIENCE, lambda box=box: has(box))
        assert seen(box) == limited(64 + number)


def test_containers_that_run_already_are_attached_too(automatic, engine, sandbox) -> None:
    boxes = [sandbox(memory=(64 + number) * MIB, parent=engine) for number in range(3)]
    automatic()
    for box in boxes:
        within(PATIENCE, lambda box=box: has(box))
    assert [seen(box) for box in boxes] == [limited(64 + number) for number in range(3)]


def test_other_cgroups_are_left_alone(automatic, engine, sandbox) -> None:
    other = sandbox(memory=64 * MIB)
    settled(automatic(), engine, sandbox)
    nested = sandbox(memory=64 * MIB, parent=sandbox(parent=engine))
    settled(automatic(), engine, sandbox)
    assert not has(other)
    assert not has(nested)


def test_each_container_is_one_line_in_the_log(automatic, engine, sandbox) -> None:
    daemon = automatic()
    boxes = [sandbox(parent=engine) for _ in range(3)]
    for box in boxes:
        within(PATIENCE, lambda box=box: has(box))
    within(PATIENCE, lambda: daemon.log.read_text().count("files attached\n") == 3)
    for box in boxes:
        path = f"/{engine.cgroup('memory').name}/{box.cgroup('memory').name}"
        pattern = rf"^lxcfs-py: INFO: container {box.init} \({path}\): \d+ files attached$"
        assert re.search(pattern, daemon.log.read_text(), re.MULTILINE)


# On and off


def test_a_reload_switches_it_off_and_on(automatic, engine, sandbox) -> None:
    daemon = automatic()
    settled(daemon, engine, sandbox)
    reload(daemon, "auto = true", "auto = false")
    assert not attachers(daemon)
    box = sandbox(memory=64 * MIB, parent=engine)
    time.sleep(0.5)
    assert not has(box)
    reload(daemon, "auto = false", "auto = true")
    within(PATIENCE, lambda: has(box))
    assert len(attachers(daemon)) == 1


def test_a_reload_that_changes_the_files_is_heeded(automatic, engine, sandbox) -> None:
    daemon = automatic(config='[files]\nenabled = ["proc/stat"]\n')
    box = sandbox(memory=64 * MIB, parent=engine)
    within(PATIENCE, lambda: has(box, "proc/stat"))
    assert not has(box, "proc/meminfo")
    reload(daemon, '"proc/stat"', '"proc/stat", "proc/meminfo"')
    within(PATIENCE, lambda: has(box, "proc/meminfo"))


def test_a_reload_that_changes_nothing_of_it_leaves_the_process(automatic, engine, sandbox) -> None:
    daemon = automatic()
    settled(daemon, engine, sandbox)
    before = attachers(daemon)
    reload(daemon, "[log]", "[memory]\nswap = false\n[log]")
    assert attachers(daemon) == before


def test_a_daemon_that_starts_heals_what_a_dead_one_has_left(automatic, engine, sandbox) -> None:
    dead = automatic()
    box = sandbox(memory=64 * MIB, parent=engine)
    within(PATIENCE, lambda: has(box))
    assert dead.stop() == 0
    assert "Transport endpoint is not connected" in box.run(["cat", "/proc/meminfo"]).stderr
    daemon = automatic()
    within(PATIENCE, lambda: seen(box) == limited(64))
    within(PATIENCE, lambda: f"container {box.init} " in daemon.log.read_text())


def test_by_default_there_is_no_such_process(automatic) -> None:
    assert not attachers(automatic(auto="false"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_with_the_daemon(automatic, engine, sandbox, number) -> None:
    daemon = automatic()
    settled(daemon, engine, sandbox)
    (process,) = attachers(daemon)
    daemon.process.send_signal(number)
    daemon.process.wait(PATIENCE)
    within(PATIENCE, lambda: not arguments(process))


def test_when_the_process_is_killed_another_attaches(automatic, engine, sandbox) -> None:
    daemon = automatic()
    settled(daemon, engine, sandbox)
    (killed,) = attachers(daemon)
    os.kill(killed, signal.SIGKILL)
    box = sandbox(memory=64 * MIB, parent=engine)
    within(PATIENCE, lambda: has(box))
    assert killed not in attachers(daemon)
    assert "the process that attaches to new containers has ended (-9): next one in 1 s" in daemon.log.read_text()


def test_the_successor_of_a_killed_daemon_attaches(automatic, engine, sandbox) -> None:
    daemon = automatic(keep=True)
    settled(daemon, engine, sandbox)
    (before,) = attachers(daemon)
    (server,) = children(daemon.process.pid)
    os.kill(server, signal.SIGKILL)
    box = sandbox(memory=64 * MIB, parent=engine)
    within(PATIENCE, lambda: has(box))
    assert seen(box) == limited(64)
    assert attachers(daemon) != [before]
    within(PATIENCE, lambda: not arguments(before))


def test_a_container_whose_init_has_not_the_lowest_pid_is_attached(automatic, engine, sandbox) -> None:
    """Pids wrap around, and then a child that is about to end may have the lowest."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    most = int(Path("/proc/sys/kernel/pid_max").read_text())
    low = int(last.read_text()) % (most // 4) + 1000
    last.write_text(str(low + most // 2))
    box = sandbox(memory=64 * MIB, parent=engine)
    shell = box.popen(["sh", "-c", "read go; while :; do /bin/true; done"], stdin=subprocess.PIPE)
    last.write_text(str(low))
    shell.stdin.write(b"\n")
    shell.stdin.flush()
    within(PATIENCE, lambda: any(pid < box.init for pid in children(shell.pid)))
    automatic()
    within(PATIENCE, lambda: has(box))


def test_while_the_daemon_does_not_answer_its_containers_wait_and_none_is_forgotten(automatic, engine, sandbox) -> None:
    daemon = automatic()
    settled(daemon, engine, sandbox)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        box = sandbox(memory=64 * MIB, parent=engine)
        within(PATIENCE, lambda: f"container {box.init} " in daemon.log.read_text())
        assert f"the daemon's mount at {daemon.mountpoint} did not answer within 2 s" in daemon.log.read_text()
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    within(PATIENCE, lambda: has(box))


def test_what_attaches_can_run_nothing(automatic, engine, sandbox) -> None:
    daemon = automatic()
    settled(daemon, engine, sandbox)
    (attacher,) = attachers(daemon)
    assert "\nSeccomp:\t2\n" in Path(f"/proc/{attacher}/status").read_text()


# Containers that are left alone


def test_a_container_in_which_a_whole_mount_stands_is_never_attached(automatic, engine, sandbox, tmp_path) -> None:
    box = sandbox(memory=64 * MIB, parent=engine)
    command = [sys.executable, "-m", "lxcfs_py", "run", str(tmp_path / "within")]
    server = box.popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    within(PATIENCE, lambda: f" {tmp_path / 'within'} " in Path(f"/proc/{box.init}/mountinfo").read_text())
    daemon = automatic()
    for _ in range(3):
        settled(daemon, engine, sandbox)
    assert not has(box)
    server.terminate()
    server.wait(PATIENCE)


# Containers that mean harm


def test_what_a_container_has_mounted_itself_stays_and_is_told_once(automatic, engine, sandbox) -> None:
    box = sandbox(memory=64 * MIB, parent=engine)
    assert box.run(["mount", "--bind", "/etc/hostname", "/proc/meminfo"]).returncode == 0
    daemon = automatic()
    within(PATIENCE, lambda: has(box))
    assert box.run(["cat", "/proc/meminfo"]).stdout == Path("/etc/hostname").read_text()
    settled(daemon, engine, sandbox)
    lines = [line for line in daemon.log.read_text().splitlines() if f"container {box.init} " in line]
    assert len(lines) == 2
    assert re.search(r"WARNING: .*: /proc/meminfo: the container has \w+ mounted over it", lines[1])


def test_a_container_with_the_daemons_own_files_keeps_them(automatic, engine, sandbox) -> None:
    daemon = automatic(auto="false")
    box = sandbox(memory=64 * MIB, parent=engine, views=daemon.mountpoint)
    before = Path(f"/proc/{box.init}/mountinfo").read_text()
    reload(daemon, "auto = false", "auto = true")
    settled(daemon, engine, sandbox)
    assert Path(f"/proc/{box.init}/mountinfo").read_text() == before
    assert f"container {box.init} " not in daemon.log.read_text()


def test_a_container_with_something_else_at_proc_is_refused_and_the_next_one_attached(
    automatic, engine, sandbox
) -> None:
    box = sandbox(parent=engine)
    assert box.run(["mount", "-t", "tmpfs", "none", "/proc"]).returncode == 0
    daemon = automatic(config='[files]\nenabled = ["proc/meminfo", "proc/stat"]\n')
    other = sandbox(parent=engine)
    within(PATIENCE, lambda: has(other, "proc/stat"))
    refused = "/proc/meminfo /proc/stat: the container's /proc is not the kernel's own proc"
    within(PATIENCE, lambda: refused in daemon.log.read_text())
    assert daemon.log.read_text().count("WARNING") == 1


def test_a_container_whose_proc_has_a_stopped_server_holds_up_no_other(
    automatic, engine, sandbox, start_daemon
) -> None:
    stopped = start_daemon("fusepy")
    hostile = sandbox(parent=engine)
    # What is below the mountpoint: all of it would look like a server's own container.
    attach.attach(hostile.init, str(stopped.mountpoint), ["sys/devices/system/cpu"])
    assert hostile.run(["mount", "--move", "/sys/devices/system/cpu", "/proc"]).returncode == 0
    stopped.process.send_signal(signal.SIGSTOP)
    try:
        daemon = automatic()
        box = sandbox(memory=64 * MIB, parent=engine)
        within(PATIENCE, lambda: has(box))
        within(PATIENCE, lambda: f"container {hostile.init} " in daemon.log.read_text())
    finally:
        stopped.process.send_signal(signal.SIGCONT)


def test_cgroups_without_a_container_hold_up_no_other(automatic, engine, sandbox) -> None:
    settled(automatic(), engine, sandbox)
    parent = engine.cgroup("memory")
    empty = [parent / f"empty-{number}" for number in range(200)]
    try:
        for directory in empty:
            directory.mkdir()
        box = sandbox(memory=64 * MIB, parent=engine)
        within(PATIENCE, lambda: has(box))
        assert seen(box) == limited(64)
    finally:
        for directory in empty:
            directory.rmdir()


def test_nothing_is_left_behind(automatic, engine, sandbox) -> None:
    """No process that was not waited for, and no descriptor."""
    daemon = automatic()
    settled(daemon, engine, sandbox)
    (process,) = attachers(daemon)
    within(PATIENCE, lambda: len(children(process)) == 1)  # that by whose own cgroups are looked at
    before = len(os.listdir(f"/proc/{process}/fd"))
    for _ in range(5):
        settled(daemon, engine, sandbox)
    within(PATIENCE, lambda: len(children(process)) == 1)
    within(PATIENCE, lambda: len(os.listdir(f"/proc/{process}/fd")) == before)  # it may be looking just now
