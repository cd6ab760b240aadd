"""Which mount namespaces are in a container, and which containers are a server's own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lxcfs_py.attach import running
from lxcfs_py.attach.running import Process
from lxcfs_py.engine import session
from lxcfs_py.linux.mount_table import Mount

PROC = Mount("0:60", "/", "/proc", "proc", "rw")
LXCFS = Mount("0:45", "/", "/var/lib/lxcfs", "fuse.lxcfs", "rw")

MOUNTS = running.mounts

PROCESSES = [
    Process(1, 0, pids=100, mounts=200, depth=0, is_init=True),
    Process(20, 1, pids=100, mounts=201, depth=0, is_init=False),  # a service of the host's
    Process(30, 20, pids=101, mounts=202, depth=1, is_init=True),  # a container
    Process(31, 30, pids=101, mounts=202, depth=1, is_init=False),
    Process(32, 30, pids=101, mounts=203, depth=1, is_init=False),  # a service in it
    Process(33, 30, pids=101, mounts=203, depth=1, is_init=False),
    Process(34, 30, pids=101, mounts=204, depth=1, is_init=False),  # one without a /proc
    Process(40, 31, pids=102, mounts=205, depth=2, is_init=True),  # a container in it
    Process(41, 40, pids=102, mounts=206, depth=2, is_init=False),  # and a service in that
    Process(45, 1, pids=100, mounts=207, depth=0, is_init=False),  # a container in the machine's pid namespace
    Process(46, 45, pids=100, mounts=208, depth=0, is_init=False),  # and a service in that
    Process(50, 20, pids=101, mounts=202, depth=1, is_init=False),  # entered from outside
]


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "host_mount_namespaces", lambda: {200})
    monkeypatch.setattr(running, "mounts", lambda pid: [] if pid == 34 else [PROC])


def test_containers_are_the_inits_of_pid_namespaces_below() -> None:
    assert [process.pid for process in running.containers(PROCESSES)] == [30, 40]


@pytest.mark.parametrize(
    ("init", "deep", "found"), [(30, False, [32]), (30, True, [32, 40, 41]), (40, True, [41]), (45, True, [46])]
)
def test_a_containers_mount_namespaces_are_those_with_a_proc_of_the_kernels(
    init: int, deep: bool, found: list[int]
) -> None:
    (container,) = [process for process in PROCESSES if process.pid == init]
    assert [process.pid for process in running.within(container, PROCESSES, deep)] == found


def test_parents_of_different_moments_may_go_around_in_a_circle() -> None:
    circle = [Process(60, 61, 103, 207, 2, True), Process(61, 60, 104, 208, 2, True)]
    (container,) = [process for process in PROCESSES if process.pid == 30]
    assert 60 not in [process.pid for process in running.within(container, [*PROCESSES, *circle], deep=True)]


@pytest.mark.parametrize(
    ("seen", "root", "place"),
    [
        ([PROC, LXCFS], "", "/var/lib/lxcfs"),
        ([PROC], "", ""),
        ([LXCFS._replace(root="/proc/meminfo", mountpoint="/proc/meminfo")], "", ""),
        ([LXCFS], "/run/bundle/rootfs", ""),
        ([LXCFS._replace(mountpoint="/run/bundle/rootfs/mnt")], "/run/bundle/rootfs", "/run/bundle/rootfs/mnt"),
    ],
)
def test_a_whole_mount_is_found_where_it_stands(seen: list[Mount], root: str, place: str) -> None:
    assert running.whole_mount(seen, root) == place


def test_a_sessions_memory_is_known_by_its_name() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        assert not running.serves(other.pid)
        other.kill()
    memory = session.new_memory("/nowhere")
    with subprocess.Popen(["sleep", "60"], pass_fds=[memory]) as holder:
        assert "session" in running.serves(holder.pid)
        holder.kill()
    os.close(memory)


def test_of_a_container_with_very_much_a_bounded_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a process that enters it, whatever those in it have mounted, started and opened."""
    longest = max(len(line) for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
    whole = MOUNTS("self")
    monkeypatch.setattr(running, "_MAX_MOUNTINFO", longest + 1)
    assert 0 < len(MOUNTS("self")) < len(whole)
    assert whole[: len(MOUNTS("self"))] == MOUNTS("self")

    monkeypatch.setattr(running, "_MAX_PROCESSES", 3)
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(6)]
    assert len(list(running._descendants(os.getpid()))) == 3
    for child in children:
        child.kill()
        child.wait()

    looks: list[str] = []
    monkeypatch.setattr(running, "_MAX_DESCRIPTORS", 2)
    monkeypatch.setattr(os, "readlink", lambda path: looks.append(path) or "")
    assert not running._holds_session(os.getpid())
    assert len(looks) == 2
