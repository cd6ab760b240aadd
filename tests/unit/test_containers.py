"""Who is asking: processes of this machine, in namespaces and cgroups of their own, are put into their containers."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.cgroup.layout import find
from lxcfs_py.container import containers as module
from lxcfs_py.container.containers import Containers, container_paths, find_init
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes.sandbox import Sandbox

MIB = 1 << 20
ONE = Visible((0,), 1.0, False)
TWO = Visible((0, 1), None)


@pytest.fixture
def containers():
    return Containers(find(), Ledger(), Sampler(5))


@pytest.fixture
def service(sandbox):
    """service(box) starts a process in a sandbox's cgroups, with a mount namespace of its own and the host's pids."""
    with contextlib.ExitStack() as stack:

        def start(box: Sandbox) -> int:
            directories = {box.cgroup(name) for name in find().hierarchies if _has(box, name)}

            def enter():
                for directory in directories:
                    (directory / "cgroup.procs").write_text("0")
                syscalls.unshare(syscalls.CLONE_NEWNS)

            process = subprocess.Popen(["sleep", "1000"], preexec_fn=enter)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            return process.pid

        yield start


def _has(box: Sandbox, controller: str) -> bool:
    try:
        return box.cgroup(controller).is_dir()
    except Exception:
        return False


def limit(container) -> int | None:
    return container.cgroup.memory.room()[0]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def orphan(box: Sandbox) -> int:
    """Start a process that the sandbox's PID 1 inherits, and return its pid here."""
    before = set(members(box))
    box.run(["sh", "-c", "sleep 1000 & "], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (new,) = set(members(box)) - before
    return new


def members(box: Sandbox) -> list[int]:
    name = next(name for name in find().hierarchies if _has(box, name))
    return [int(pid) for pid in (box.cgroup(name) / "cgroup.procs").read_text().split()]


# The host, and processes in pid namespaces


def test_a_process_of_the_host_is_in_no_container(containers):
    child = subprocess.Popen(["sleep", "1000"])
    try:
        assert containers.of(os.getpid()) is containers.of(child.pid) is None
    finally:
        child.kill()
        child.wait(10)
    assert len(containers) == containers.unplaced == 0


def test_all_processes_and_threads_of_a_pid_namespace_are_in_one_container(containers, sandbox):
    box = sandbox(memory=64 * MIB)
    container = containers.of(box.init)
    assert limit(container) == 64 * MIB
    process = box.popen(
        ["python3", "-c", "import threading, time; threading.Thread(target=time.sleep, args=[99]).start()"]
    )
    deadline = time.monotonic() + 10
    while len(threads := os.listdir(f"/proc/{process.pid}/task")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in (*map(int, threads), orphan(box)):
        assert containers.of(pid) is container
    assert len(containers) == 1


def test_two_containers_are_told_apart(containers, sandbox):
    boxes = [sandbox(memory=size * MIB) for size in (64, 96)]
    assert [limit(containers.of(box.init)) for box in boxes] == [64 * MIB, 96 * MIB]
    assert [limit(containers.of(box.init)) for box in boxes] == [64 * MIB, 96 * MIB]
    assert len(containers) == 2


def test_a_container_starts_when_its_init_does(containers, sandbox):
    container = containers.of(sandbox().init)
    started = time.clock_gettime(time.CLOCK_BOOTTIME) - container.start / 1e9
    assert 0 <= started < 10
    init = psutil.Process(containers.of(sandbox().init).init)
    assert init.create_time() == pytest.approx(time.time(), abs=10)


def test_a_process_that_cannot_be_placed_sees_the_host_is_counted_and_logged_once(containers, caplog):
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    for pid in (0, 0, ended.pid, 0):
        assert containers.of(pid) is None
    assert containers.unplaced == 4
    (record,) = caplog.records
    assert record.getMessage().startswith("process 0 cannot be placed and sees the host's files: ")
    assert record.levelname == "WARNING"


# Finding init


@pytest.fixture
def no_ioctl(monkeypatch):
    """As before Linux 6.11."""

    def ioctl(*arguments):
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr("lxcfs_py.container.containers.fcntl.ioctl", ioctl)


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def test_init_is_found_whoever_asks(sandbox):
    box = sandbox()
    for pid in (box.init, orphan(box), box.popen(["sleep", "1000"]).pid):
        assert find_init(pid, namespace(pid)) == box.init


def test_before_linux_6_11_init_is_found_among_the_parents(sandbox, no_ioctl, monkeypatch):
    box = sandbox()
    child = orphan(box)
    monkeypatch.setattr("lxcfs_py.container.containers.os.listdir", lambda path: [])
    assert find_init(box.init, namespace(box.init)) == box.init
    assert find_init(child, namespace(box.init)) == box.init


def test_before_linux_6_11_init_is_found_for_who_has_entered_from_outside(sandbox, no_ioctl):
    box = sandbox()
    entered = box.popen(["sleep", "1000"]).pid  # a child of this process, as with `docker exec`
    assert psutil.Process(entered).ppid() == os.getpid()
    assert find_init(entered, namespace(entered)) == box.init


def test_before_linux_6_11_a_container_in_a_container_has_its_own_init(sandbox, no_ioctl, containers):
    box = sandbox()
    nested = box.popen(["unshare", "--pid", "--fork", "sleep", "1000"])
    deadline = time.monotonic() + 10
    while not (children := psutil.Process(nested.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (inner,) = children
    assert find_init(inner.pid, namespace(inner.pid)) == inner.pid
    assert containers.of(inner.pid) is not containers.of(nested.pid) is containers.of(box.init)


def test_an_init_that_has_ended_is_an_error(no_ioctl):
    with pytest.raises(ProcessLookupError, match=f"namespace of process {os.getpid()} cannot be found"):
        find_init(os.getpid(), "pid:[12345]")


def test_a_process_may_call_itself_anything(sandbox):
    stat = b"4711 (a) S 1 ) R (b) S 42 1 1 0 -1 4194560 " + b" ".join(b"%d" % n for n in range(10, 60))
    assert module._stat_fields(stat)[:2] == [b"S", b"42"]
    box = sandbox()
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (x) 2'); print(flush=True); input()"
    odd = box.popen(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    odd.stdout.readline()
    assert list(module._ancestors(odd.pid))[:2] == [odd.pid, os.getpid()]
    odd.stdin.close()
    odd.stdout.close()


# The cgroup of a container


def test_a_containers_cgroup_is_the_root_of_its_cgroup_namespace(sandbox):
    """Its init may be in one below that, as a systemd in a container is."""
    box = sandbox()
    before = container_paths(box.init, Path(f"/proc/{box.init}/cgroup").read_bytes())
    name = next(name for name in ("pids", "memory", "") if _has(box, name))
    inner = box.cgroup(name) / "below" / "init.scope"
    inner.mkdir(parents=True)
    (inner / "cgroup.procs").write_text(f"{box.init}")
    text = Path(f"/proc/{box.init}/cgroup").read_bytes()
    assert b"/below/init.scope\n" in text
    assert container_paths(box.init, text) == before
    assert any(path.endswith(box.cgroup(name).name) for path in before.values())


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (b"0::/system.slice/box.service\n", {"": "/system.slice/box.service"}),
        (b"0::/machine.slice/box.scope/init.scope\n", {"": "/machine.slice/box.scope"}),
        (b"0::/init.scope\n", {"": "/"}),
        (b"0::/box/other-init.scope\n", {"": "/box/other-init.scope"}),
        (b"2:cpu,cpuacct:/box/init.scope\n1:memory:/box\n", {"cpu": "/box", "cpuacct": "/box", "memory": "/box"}),
    ],
)
def test_without_a_cgroup_namespace_it_is_inits_own_but_for_the_scope_that_a_systemd_puts_itself_in(text, paths):
    assert container_paths(os.getpid(), text) == paths


def test_an_init_that_is_moved_is_followed_within_a_second(containers, sandbox, monkeypatch):
    other, box = sandbox(memory=96 * MIB), sandbox(memory=64 * MIB)  # ended in reverse, whatever happens
    container = containers.of(box.init)
    assert limit(container) == 64 * MIB
    assert module._REFRESH_SECONDS <= 1
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    (other.cgroup("memory") / "cgroup.procs").write_text(f"{box.init}")
    assert containers.of(box.init) is container
    assert limit(container) == 96 * MIB
    (box.cgroup("memory") / "cgroup.procs").write_text(f"{box.init}")
    assert limit(containers.of(box.init)) == 64 * MIB


def test_a_limit_that_changes_is_seen_at_the_next_look(containers, sandbox):
    box = sandbox(memory=64 * MIB)
    assert limit(containers.of(box.init)) == 64 * MIB
    box.limit(memory=32 * MIB)
    assert limit(containers.of(box.init)) == 32 * MIB


# Processes with the host's pids: `--pid=host` containers, systemd services


def test_a_service_in_the_hosts_pid_namespace_is_its_cgroup(containers, sandbox, service):
    box = sandbox(memory=64 * MIB)
    one, two = service(box), service(box)
    container = containers.of(one)
    assert limit(container) == 64 * MIB
    assert containers.of(two) is container
    assert len(containers) == 1
    # The oldest process is what starts it, whoever asks first.
    assert containers.of(two).init == min(members(box), key=lambda pid: psutil.Process(pid).create_time())


def test_a_process_with_the_hosts_own_files_sees_the_host_whatever_its_cgroup(containers, sandbox):
    box = sandbox()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (box.cgroup("memory") / "cgroup.procs").write_text(f"{process.pid}")
        assert containers.of(process.pid) is None
    finally:
        process.kill()
        process.wait(10)


def test_a_process_without_a_cgroup_of_its_own_is_in_no_container_though_it_has_its_own_mounts(
    containers, sandbox, service, monkeypatch
):
    monkeypatch.setattr(module, "parse_paths", lambda text: {"memory": "/", "cpu": "/", "": "/"})
    assert containers.of(service(sandbox())) is None
    assert containers.unplaced == 0


# In the next two, the sandbox's init stands for the main process of a service.


def test_a_service_whose_first_process_is_moved_away_still_sees_its_own_limits(
    containers, sandbox, service, monkeypatch
):
    other = sandbox(memory=96 * MIB)
    box = sandbox(memory=64 * MIB)
    pids = service(box), service(box)
    for pid in pids:
        assert containers.of(pid).init == box.init
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    (other.cgroup("memory") / "cgroup.procs").write_text(f"{box.init}")
    for _ in range(3):
        for pid in pids:
            assert limit(containers.of(pid)) == 64 * MIB
            assert containers.of(pid).init in pids
    assert len(containers) == 1


def test_a_service_whose_first_process_has_ended_goes_on(containers, sandbox, service, monkeypatch):
    box = sandbox(memory=64 * MIB)
    pids = service(box), service(box)
    assert containers.of(pids[0]).init == box.init
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    os.kill(box.init, signal.SIGKILL)  # nobody has reaped it yet
    deadline = time.monotonic() + 10
    while box.init in members(box):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for pid in pids:
        assert limit(containers.of(pid)) == 64 * MIB
        assert containers.of(pid).init in pids
    assert containers.unplaced == 0


def test_the_last_readers_of_a_container_that_is_ending_still_see_it(containers, sandbox, monkeypatch):
    box = sandbox(memory=64 * MIB)
    container = containers.of(box.init)
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    for gone in (ProcessLookupError, FileNotFoundError):

        def refresh(self, error=gone):
            raise error("process has ended")

        monkeypatch.setattr(module.Container, "refresh", refresh)
        assert containers.of(box.init) is container
    assert containers.unplaced == 0


@pytest.mark.skipif(find().version("pids") != 1, reason="on cgroup v2 a process has one cgroup for all controllers")
def test_processes_that_share_only_some_cgroups_are_told_apart(containers, sandbox, service):
    """On cgroup v1, a session's processes may be in one cgroup of one controller, and in several of another."""
    box, other = sandbox(memory=64 * MIB), sandbox(memory=96 * MIB)
    pid = service(other)
    (box.cgroup("pids") / "cgroup.procs").write_text(f"{pid}")
    container = containers.of(pid)
    assert container.init == pid  # and not box.init, which is older and has the same pids cgroup
    assert limit(container) == 96 * MIB


def test_services_started_in_the_same_instant_keep_their_own_counters(sandbox, service, monkeypatch):
    monkeypatch.setattr(module, "_start_time", lambda stat: 42)
    monkeypatch.setattr(module, "_oldest", lambda pids, cgroup, default: default)  # and no sandbox's init
    ledger = Ledger()
    containers = Containers(find(), ledger, Sampler(5))
    pids = [service(sandbox()) for _ in range(2)]
    for pid, visible in zip(pids, (ONE, TWO)):
        found = containers.of(pid)
        found.account.read(found.cgroup, visible, 10**9)
    names = [containers.of(pid).account._container for pid in pids]
    assert [ledger.get(name).visible for name in names] == [ONE, TWO]


# What is kept, and for how long


def test_a_container_that_has_ended_is_forgotten_with_all_that_was_open_for_it(sandbox):
    ledger, sampler = Ledger(), Sampler(5)
    containers = Containers(find(), ledger, sampler)
    gc.collect()  # what other tests left; here, nothing may wait for it
    before = open_descriptors()
    with Sandbox(memory=64 * MIB) as box:
        inside = open_descriptors()
        container = containers.of(box.init)
        container.load.read(container.states)
        container.account.read(container.cgroup, ONE, 0)
        limit(container)
        name = container.account._container
        assert ledger.get(name)
        assert open_descriptors() > inside
        assert not select.select([containers], [], [], 0)[0]
        del container
    assert select.select([containers], [], [], 10)[0]
    containers.reap()
    assert len(containers) == 0
    assert not select.select([containers], [], [], 0)[0]
    assert ledger.get(name) is None
    assert not sampler._loads
    assert open_descriptors() == before


def test_before_linux_5_3_a_container_that_has_ended_is_forgotten_when_the_next_one_comes(sandbox, monkeypatch):
    def pidfd_open(pid):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("lxcfs_py.container.containers.os.pidfd_open", pidfd_open)
    ledger = Ledger()
    containers = Containers(find(), ledger, Sampler(5))
    living = sandbox(memory=32 * MIB)
    with Sandbox(memory=64 * MIB) as box:
        container = containers.of(box.init)
        assert limit(container) == 64 * MIB
        container.account.read(container.cgroup, ONE, 0)
        name = container.account._container
        assert containers.of(box.init) is container
        assert limit(containers.of(living.init)) == 32 * MIB
    assert len(containers) == 2
    assert limit(containers.of(sandbox(memory=96 * MIB).init)) == 96 * MIB
    assert len(containers) == 2
    assert ledger.get(name) is None
    assert containers.of(living.init)
    assert len(containers) == 2
    assert not select.select([containers], [], [], 0)[0]


def test_a_reader_that_is_under_way_when_the_container_ends_is_not_disturbed(containers):
    with Sandbox(memory=64 * MIB) as box:
        container = containers.of(box.init)
    containers.reap()
    assert len(containers) == 0
    with pytest.raises(OSError, match="No such"):
        limit(container)
    with pytest.raises(ProcessLookupError):
        container.refresh()


def test_no_more_containers_are_kept_than_there_may_be_and_all_are_served(containers, sandbox, monkeypatch):
    monkeypatch.setattr(module, "MAX_CONTAINERS", 2)
    boxes = [sandbox(memory=size * MIB) for size in (32, 64, 96)]
    for _ in range(3):
        for box, size in zip(boxes, (32, 64, 96)):
            assert limit(containers.of(box.init)) == size * MIB
            assert len(containers) <= 2
    before = open_descriptors()
    for box in boxes * 3:
        limit(containers.of(box.init))
    assert open_descriptors() <= before + 5


@pytest.mark.parametrize("how", ["forgotten", "pushed out by others"])
def test_a_container_that_is_looked_up_anew_goes_on_counting_where_it_was(how, sandbox, monkeypatch):
    containers = Containers(find(), Ledger(), Sampler(5))
    box = sandbox()
    second = 10**9

    def read(visible, age):
        container = containers.of(box.init)
        return container.account.read(container.cgroup, visible, age)

    read(TWO, 10 * second)
    before = read(ONE, 10 * second)  # what the vanished CPU had counted stays in the total
    assert before.total.idle > 1500
    if how == "forgotten":
        containers.forget(box.init)
    else:
        monkeypatch.setattr(module, "MAX_CONTAINERS", 1)
        containers.of(sandbox().init)
        assert len(containers) == 1
    after = read(ONE, 10 * second)
    assert after.total.idle >= before.total.idle


def test_many_threads_that_ask_at_once_get_one_container(containers, sandbox):
    box = sandbox()
    found, start = [], threading.Barrier(8)

    def ask():
        start.wait(10)
        found.append(containers.of(box.init))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(map(id, found))) == len(containers) == 1
