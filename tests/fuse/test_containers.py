"""Who is asking: processes of this machine, in namespaces and cgroups of their own, are put into their containers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest

from lxcfs_py.cgroup.layout import find
from lxcfs_py.cgroup.tree import Quota
from lxcfs_py.container import containers as module
from lxcfs_py.container import processes
from lxcfs_py.container.containers import Containers, UnplacedError
from lxcfs_py.container.cpu_time import Ledger
from lxcfs_py.container.load import Sampler
from lxcfs_py.container.visible_cpus import Visible
from lxcfs_py.linux import process_texts, syscalls
from lxcfs_py.linux.kernel_files import KernelDirectory
from lxcfs_py.runtimes.sandbox import Sandbox, _children_in
from tests.kept import wait_for

MIB = 1 << 20
ONE = Visible((0,), Quota(1.0), False)
TWO = Visible((0, 1), None)


@pytest.fixture
def containers():
    return Containers(find(), Ledger(), Sampler(5))


@pytest.fixture
def service(sandbox):
    """service(box) starts a process in a sandbox's cgroups, with a mount namespace of its own and the host's pids."""
    with contextlib.ExitStack() as stack:

        def start(box: Sandbox, command: tuple[str, ...] = ("sleep", "1000")) -> int:
            directories = {box.cgroup(name) for name in find().hierarchies if _has(box, name)}

            def enter():
                for directory in directories:
                    (directory / "cgroup.procs").write_text("0")
                syscalls.unshare(syscalls.CLONE_NEWNS)

            process = subprocess.Popen(command, preexec_fn=enter)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            return process.pid

        yield start


@pytest.fixture
def neighbour(sandbox):
    """neighbour(host, box) starts a process of `box` in the pid namespace of `host`, and returns its pid here."""
    with contextlib.ExitStack() as stack:

        def start(host: Sandbox, box: Sandbox, own_cgroups: bool = False) -> int:
            directories = {box.cgroup(name) for name in find().hierarchies if _has(box, name)}

            def enter():
                for directory in directories:
                    (directory / "cgroup.procs").write_text("0")
                syscalls.unshare(syscalls.CLONE_NEWNS | (syscalls.CLONE_NEWCGROUP if own_cgroups else 0))

            with _children_in(host._pid_namespace):
                process = subprocess.Popen(["sleep", "1000"], preexec_fn=enter)
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            return process.pid

        yield start


@pytest.fixture
def nested(sandbox):
    """nested(box, inner, command) has `box` run a command that makes pid namespaces, in the cgroups of `inner`.

    It returns the pids here of those in the innermost one: as many processes sleep as the command has sleep.
    """
    with contextlib.ExitStack() as stack:

        def end(process: subprocess.Popen) -> None:
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            process.wait(10)

        def sleeping(pid: int) -> list[int]:
            children = psutil.Process(pid).children(recursive=True)
            return [child.pid for child in children if processes.read(child.pid, "comm") == b"sleep\n"]

        def start(box: Sandbox, inner: Sandbox, command: str) -> list[int]:
            process = box.popen(["sh", "-c", f"read go; {command}"], stdin=subprocess.PIPE)
            stack.callback(end, process)
            for directory in {inner.cgroup(name) for name in find().hierarchies if _has(inner, name)}:
                (directory / "cgroup.procs").write_text(f"{process.pid}")
            depth = len(processes._pids(process.pid)) + command.count("--pid")
            assert process.stdin is not None
            process.stdin.close()
            wait_for(lambda: len(sleeping(process.pid)) == command.count("sleep"))
            return [pid for pid in sleeping(process.pid) if len(processes._pids(pid)) == depth]

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


def test_the_log_tells_of_each_container_once_how_it_was_placed(containers, sandbox, caplog):
    box = sandbox(memory=64 << 20)
    with caplog.at_level("DEBUG"):
        containers.of(box.init)
        containers.of(box.init)
    (line,) = (record.getMessage() for record in caplog.records if f"process {box.init} " in record.getMessage())
    assert "pid:[" in line
    assert f"/{box.cgroup('memory').name}'" in line


def test_a_process_that_cannot_be_placed_sees_the_host_is_counted_and_logged_once(containers, caplog):
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    for pid in (0, 0, ended.pid, 0):
        assert containers.of(pid) is None
    assert containers.unplaced == 4
    (record,) = caplog.records
    why = "cannot be placed and sees the host's files: /proc/0: No such file or directory"
    assert record.getMessage() == f"process 0 {why} (said once, counted from now on)"
    assert record.levelname == "WARNING"


def test_a_command_that_cannot_place_a_process_logs_nothing_and_says_why(containers, caplog, sandbox):
    box = sandbox()
    assert containers.placed(box.init).init == box.init
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    with pytest.raises(UnplacedError, match=rf"process {ended.pid} has ended"):
        containers.placed(ended.pid)
    assert not caplog.records


# Finding init


@pytest.fixture
def no_ioctl(monkeypatch):
    """As before Linux 6.11."""
    known = fcntl.ioctl

    def ioctl(fd, request, *arguments):
        if request in (processes._NS_GET_PID_FROM_PIDNS, processes._NS_GET_PID_IN_PIDNS):
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return known(fd, request, *arguments)

    monkeypatch.setattr("lxcfs_py.container.processes.fcntl.ioctl", ioctl)


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def test_init_is_found_whoever_asks(sandbox):
    box = sandbox()
    for pid in (box.init, orphan(box), box.popen(["sleep", "1000"]).pid):
        assert processes.find_init(pid, namespace(pid)) == box.init


def test_before_linux_6_11_init_is_found_among_the_parents(sandbox, no_ioctl, monkeypatch):
    box = sandbox()
    child = orphan(box)
    monkeypatch.setattr("lxcfs_py.container.processes.os.listdir", lambda path: [])
    assert processes.find_init(box.init, namespace(box.init)) == box.init
    assert processes.find_init(child, namespace(box.init)) == box.init


def test_before_linux_6_11_init_is_found_for_who_has_entered_from_outside(sandbox, no_ioctl):
    box = sandbox()
    entered = box.popen(["sleep", "1000"]).pid  # a child of this process, as with `docker exec`
    assert psutil.Process(entered).ppid() == os.getpid()
    assert processes.find_init(entered, namespace(entered)) == box.init


def test_before_linux_6_11_a_container_in_a_container_has_its_own_init(sandbox, no_ioctl, containers):
    box = sandbox()
    nested = box.popen(["unshare", "--pid", "--fork", "sleep", "1000"])
    deadline = time.monotonic() + 10
    while not (children := psutil.Process(nested.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (inner,) = children
    assert processes.find_init(inner.pid, namespace(inner.pid)) == inner.pid
    assert containers.of(inner.pid) is not containers.of(nested.pid) is containers.of(box.init)


def test_an_init_that_has_ended_is_an_error(no_ioctl):
    with pytest.raises(ProcessLookupError, match=f"namespace of process {os.getpid()} cannot be found"):
        processes.find_init(os.getpid(), "pid:[12345]")


def test_a_process_may_call_itself_anything(sandbox):
    stat = b"4711 (a) S 1 ) R (b) S 42 1 1 0 -1 4194560 " + b" ".join(b"%d" % n for n in range(10, 60))
    assert process_texts.stat_fields(stat)[:2] == [b"S", b"42"]
    box = sandbox()
    script = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (x) 2'); print(flush=True); input()"
    odd = box.popen(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    odd.stdout.readline()
    assert list(processes.ancestors(odd.pid))[:2] == [odd.pid, os.getpid()]
    odd.stdin.close()
    odd.stdout.close()


# The cgroup of a container


def test_where_there_may_be_no_more_threads_a_container_is_found_all_the_same(sandbox, monkeypatch):
    box = sandbox()
    text = Path(f"/proc/{box.init}/cgroup").read_bytes()
    processes.begin_to_visit()
    monkeypatch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
    assert processes.container_paths(box.init, text)
    there = processes._visit(lambda: os.readlink("/proc/thread-self/ns/cgroup").encode())
    assert there.decode() == os.readlink("/proc/self/ns/cgroup"), "who went into its namespace has come back"


def test_a_fork_visits_by_a_thread_of_its_own(sandbox):
    box = sandbox()
    text = Path(f"/proc/{box.init}/cgroup").read_bytes()
    paths = processes.container_paths(box.init, text)
    child = os.fork()
    if not child:
        signal.alarm(10)
        os._exit(int(processes.container_paths(box.init, text) != paths))
    assert os.waitpid(child, 0)[1] == 0


def test_a_containers_cgroup_is_the_root_of_its_cgroup_namespace(sandbox):
    """Its init may be in one below that, as a systemd in a container is."""
    box = sandbox()
    before = processes.container_paths(box.init, Path(f"/proc/{box.init}/cgroup").read_bytes())
    name = next(name for name in ("pids", "memory", "") if _has(box, name))
    inner = box.cgroup(name) / "below" / "init.scope"
    inner.mkdir(parents=True)
    (inner / "cgroup.procs").write_text(f"{box.init}")
    text = Path(f"/proc/{box.init}/cgroup").read_bytes()
    assert b"/below/init.scope\n" in text
    assert processes.container_paths(box.init, text) == before
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
    assert processes.container_paths(os.getpid(), text) == paths


def test_an_init_that_is_moved_is_followed_within_a_second(containers, sandbox, monkeypatch):
    other, box = sandbox(memory=96 * MIB), sandbox(memory=64 * MIB)  # ended in reverse, whatever happens
    container = containers.of(box.init)
    assert limit(container) == 64 * MIB
    box.run(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do ls > /dev/null; done"], check=True)
    faults = container.cgroup.memory.events()["pgfault"]
    assert faults > containers.of(other.init).cgroup.memory.events()["pgfault"] + 100
    assert module._REFRESH_SECONDS <= 1
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    (other.cgroup("memory") / "cgroup.procs").write_text(f"{box.init}")
    assert containers.of(box.init) is container
    assert limit(container) == 96 * MIB
    assert container.cgroup.memory.events()["pgfault"] >= faults
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
    monkeypatch.setattr(processes, "parse_paths", lambda text: {"memory": "/", "cpu": "/", "": "/"})
    assert containers.of(service(sandbox())) is None
    assert containers.unplaced == 0


def test_a_pid_namespace_without_a_cgroup_of_its_own_is_no_container_until_it_has_one(containers, sandbox, monkeypatch):
    box = sandbox(memory=64 * MIB)
    roots = {Path(hierarchy.mountpoint) for hierarchy in find().hierarchies.values()}
    own = {box.cgroup(name) for name in find().hierarchies if _has(box, name)}
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    for directories, expected in ((roots, None), (own, 64 * MIB), (roots, None)):
        for directory in directories:
            (directory / "cgroup.procs").write_text(f"{box.init}")
        container = containers.of(box.init)
        assert (container and limit(container)) == expected


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
    monkeypatch.setattr(processes, "start_time", lambda stat: 42)
    monkeypatch.setattr(processes, "oldest", lambda pids: None)  # and no sandbox's init
    ledger = Ledger()
    containers = Containers(find(), ledger, Sampler(5))
    pids = [service(sandbox()) for _ in range(2)]
    for pid, visible in zip(pids, (ONE, TWO)):
        found = containers.of(pid)
        found.account.read(found.cgroup, visible, 10**9)
    names = [containers.of(pid).account._container for pid in pids]
    assert [ledger.get(name).visible for name in names] == [ONE, TWO]


@pytest.mark.parametrize("error", [ProcessLookupError, FileNotFoundError])
def test_a_process_that_ends_as_it_is_looked_at_for_a_reader_hides_no_container(
    sandbox, containers, monkeypatch, error
):
    box, looked = sandbox(memory=32 * MIB), processes.container_paths
    looks = iter([Mock(side_effect=error(errno.ESRCH, "it has ended")), looked])
    monkeypatch.setattr(processes, "container_paths", lambda *given: next(looks, looked)(*given))
    assert limit(containers.of(box.init)) == 32 * MIB
    assert containers.unplaced == 0


def test_where_no_thread_can_be_started_a_reader_sees_the_hosts_files_and_is_counted(sandbox, containers, monkeypatch):
    """A cgroup namespace is entered by a thread of its own."""

    def refused(thread):
        raise RuntimeError("can't start new thread")

    box = sandbox()
    with monkeypatch.context() as context:
        processes._visitor.cache_clear()
        context.setattr(threading.Thread, "start", refused)
        assert containers.of(box.init) is None
    assert containers.unplaced == 1
    assert containers.of(box.init) is not None


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


def test_loads_are_taken_up_of_the_same_containers_and_no_others(sandbox, tmp_path):
    box = sandbox()
    path = str(tmp_path / "loads")
    sampler = Sampler(5, path)
    containers = Containers(find(), Ledger(), sampler)
    container = containers.of(box.init)
    container.load.read(container.states)
    container.load.averages = (3.0, 2.0, 1.0)
    with Sandbox() as other:
        containers.of(other.init).load.read(container.states)
        sampler.sample()
    kept = json.loads(Path(path).read_text())
    kept["a container before it"] = [box.init, *kept[container.load.name][1:]]
    Path(path).write_text(json.dumps(kept))
    again = Containers(find(), Ledger(), Sampler(5, path))
    again.take_up_loads()
    (same,) = again.all()
    assert same.load.name == container.load.name
    assert same.load.averages == pytest.approx((3.0, 2.0, 1.0), abs=0.5)
    assert again.unplaced == 0


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


def test_no_more_containers_are_kept_than_there_may_be_and_all_are_served(containers, sandbox):
    containers.most = 2
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
def test_a_container_that_is_looked_up_anew_goes_on_counting_where_it_was(how, sandbox):
    containers = Containers(find(), Ledger(), Sampler(5))
    box = sandbox()
    second = 10**9

    def read(visible, age):
        container = containers.of(box.init)
        return container.account.read(container.cgroup, visible, age)

    read(TWO, 10 * second)
    before = read(ONE, 10 * second)  # what the vanished CPU had counted stays in the total
    assert before[0][3] > 1500
    if how == "forgotten":
        containers.forget(box.init)
    else:
        containers.most = 1
        containers.of(sandbox().init)
        assert len(containers) == 1
    after = read(ONE, 10 * second)
    assert after[0][3] >= before[0][3]


def test_an_error_of_the_host_forgets_no_container_and_one_that_moved_is_found_where_it_is(containers, sandbox):
    other, box = sandbox(memory=96 * MIB), sandbox(memory=64 * MIB)  # ended in reverse, whatever happens
    container = containers.of(box.init)
    containers.forget(box.init, FileNotFoundError(errno.ENOENT, "no dev of this disk"))
    assert containers.of(box.init) is container
    (other.cgroup("memory") / "cgroup.procs").write_text(f"{box.init}")
    containers.forget(box.init, OSError(errno.ENODEV, "this cgroup is gone"))
    assert containers.of(box.init) is container
    assert limit(container) == 96 * MIB


def test_of_very_many_processes_below_a_cgroup_a_bounded_number_is_looked_at(containers, sandbox, service, monkeypatch):
    container = containers.of(service(sandbox()))
    pids = range(10**6, 10**6 + 5000)
    looks = []
    tasks = SimpleNamespace(pids=lambda most: list(pids[:most]))
    monkeypatch.setattr(module, "open_cgroup", lambda *_, **__: SimpleNamespace(tasks=tasks))
    monkeypatch.setattr(processes, "read", lambda pid, _name: looks.append("a text") or b"0::/below/%d\n" % pid)
    monkeypatch.setattr(processes, "namespace_or_none", lambda pid, _kind: f"cgroup:[{pid}]")
    monkeypatch.setattr(processes, "container_paths", lambda *_: looks.append("a namespace") or {"": "/other"})
    assert containers._oldest(container.home, "", lambda _text: False) is None
    assert Counter(looks) == {"a text": module._MAX_PROCESSES, "a namespace": module._MAX_ENTERED}
    looks.clear()
    monkeypatch.setattr(processes, "read", lambda *_: looks.append("a text") or b"0::/below\n")
    monkeypatch.setattr(processes, "namespace_or_none", lambda *_: "cgroup:[1]")
    assert containers._oldest(container.home, "", lambda _text: False) is None
    assert looks.count("a namespace") == 1


def test_no_more_readers_are_known_than_the_bound(containers, sandbox, monkeypatch):
    monkeypatch.setattr(module, "_MAX_READERS", 3)
    box = sandbox(memory=32 * MIB)
    sleeping = [box.popen(["sleep", "1000"]) for _ in range(6)]
    for process in sleeping:
        assert limit(containers.of(process.pid)) == 32 * MIB
        assert len(containers._readers) <= 3


def test_by_no_more_texts_is_a_container_found_than_the_bound(containers, sandbox, service, monkeypatch):
    """Those in it may make as many cgroup namespaces as they like."""
    monkeypatch.setattr(module, "_MAX_KEYS", 3)
    container = containers.of(service(sandbox()))
    for number in range(10):
        assert containers._add_cgroup(container.init, b"0::/%d\n" % number, container.home) is container
    assert len(container.known_as) == len(containers._known) == 3


def test_of_very_many_processes_the_oldest_is_looked_for_among_the_first(monkeypatch):
    looks = []
    monkeypatch.setattr(processes, "read", lambda pid, _: looks.append(pid) or b"1 (x) S" + b" 7" * 20)
    assert processes.oldest(range(1000)) == 0
    assert looks == list(range(64))


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


# Several containers in one pid namespace: `--pid=container:NAME`, a pod with shareProcessNamespace


def test_a_container_in_anothers_pid_namespace_is_its_own_cgroup(containers, sandbox, neighbour):
    """Whoever asks first, and with what the cgroup has: one container, not one for each reader."""
    pause = sandbox(memory=32 * MIB)
    time.sleep(2 / os.sysconf("SC_CLK_TCK"))  # the kernel tells a start by ticks
    box = sandbox(memory=96 * MIB)
    one, two = neighbour(pause, box), neighbour(pause, box)
    assert namespace(one) == namespace(two) == namespace(pause.init)
    assert limit(containers.of(pause.init)) == 32 * MIB
    assert limit(containers.of(one)) == 96 * MIB
    assert containers.of(two) is containers.of(one) is not containers.of(pause.init)
    assert containers.of(one).start > containers.of(pause.init).start
    assert len(containers) == 2


def test_the_first_read_of_a_container_in_anothers_pid_namespace_is_right(containers, sandbox, neighbour):
    pause, box = sandbox(memory=32 * MIB), sandbox(memory=96 * MIB)
    assert limit(containers.of(neighbour(pause, box))) == 96 * MIB


def test_with_a_cgroup_namespace_of_its_own_it_is_the_root_of_that(containers, sandbox, neighbour):
    """Its processes may be in cgroups below, as those of a systemd are."""
    pause, box = sandbox(memory=32 * MIB), sandbox(memory=96 * MIB)
    name = next(name for name in ("memory", "") if _has(box, name))
    one, two = neighbour(pause, box, own_cgroups=True), neighbour(pause, box, own_cgroups=True)
    for pid, below in ((one, "a"), (two, "b")):
        (box.cgroup(name) / below).mkdir()
        (box.cgroup(name) / below / "cgroup.procs").write_text(f"{pid}")
        assert b"/" + below.encode() + b"\n" in Path(f"/proc/{pid}/cgroup").read_bytes()
    assert containers.of(one) is containers.of(two)
    assert limit(containers.of(one)) == 96 * MIB
    assert len(containers) == 2  # with the one whose init theirs is


def test_a_process_below_inits_cgroup_is_in_inits_container(containers, sandbox, neighbour):
    """A container in a container, and each unit of a systemd in one, whatever limits it has."""
    box = sandbox(memory=96 * MIB)
    inner = sandbox(memory=32 * MIB, parent=box)
    assert containers.of(neighbour(box, inner)) is containers.of(box.init)
    assert limit(containers.of(box.init)) == 96 * MIB


@pytest.mark.parametrize(
    "command",
    [
        "unshare --pid --fork --cgroup sleep 1000",
        "unshare --pid --fork sleep 1000",
        "unshare --pid --fork unshare --pid --fork sleep 1000",
        "unshare --pid --fork sh -c 'unshare --pid --fork sleep 1000 & exec unshare --cgroup sleep 1000'",
    ],
    ids=["own", "the outer one's", "that of two around it", "that of the outer one of two around it"],
)
def test_a_container_in_a_container_is_its_own_whosever_cgroup_namespace_it_has(containers, sandbox, nested, command):
    box = sandbox(memory=96 * MIB)
    (pid,) = nested(box, sandbox(memory=32 * MIB, parent=box), command)
    assert limit(containers.of(pid)) == 32 * MIB
    assert limit(containers.of(box.init)) == 96 * MIB


def test_before_linux_6_11_a_container_in_a_container_is_its_own_too(containers, sandbox, nested, no_ioctl):
    box = sandbox(memory=96 * MIB)
    (pid,) = nested(box, sandbox(memory=32 * MIB, parent=box), "unshare --pid --fork sleep 1000")
    assert limit(containers.of(pid)) == 32 * MIB


def test_a_container_in_a_container_without_a_cgroup_namespace_is_its_own_cgroup_on_v2_too(sandbox, nested):
    box = sandbox()
    (pid,) = nested(box, box, "unshare --pid --fork sleep 1000")
    assert processes.container_paths(pid, b"0::/outer/inner\n") == {"": "/outer/inner"}
    assert processes.container_paths(pid, b"0::/outer/inner/init.scope\n") == {"": "/outer/inner"}


def test_so_it_is_in_a_pid_namespace_within_a_container_that_several_share(containers, sandbox, nested):
    """A pod with shareProcessNamespace on a node that is a container, without cgroup namespaces of their own."""
    node = sandbox(memory=96 * MIB)
    pause, box = sandbox(memory=32 * MIB, parent=node), sandbox(memory=64 * MIB, parent=node)
    init, other = sorted(nested(node, pause, "unshare --pid --fork sh -c 'sleep 1000 & exec sleep 1000'"))
    for directory in {box.cgroup(name) for name in find().hierarchies if _has(box, name)}:
        (directory / "cgroup.procs").write_text(f"{other}")
    assert namespace(init) == namespace(other) != namespace(node.init)
    assert [limit(containers.of(pid)) for pid in (init, other, node.init)] == [32 * MIB, 64 * MIB, 96 * MIB]


def test_who_enters_a_container_is_in_it(containers, sandbox):
    """As with `docker exec`: in its namespaces and its cgroup."""
    box = sandbox(memory=64 * MIB)
    assert containers.of(box.popen(["sleep", "1000"]).pid) is containers.of(box.init)


def test_another_process_with_the_pid_of_one_that_was_seen_is_looked_at_anew(containers, sandbox, monkeypatch):
    boxes = [sandbox(memory=size * MIB) for size in (32, 64)]
    stat = os.stat(f"/proc/{boxes[0].init}")
    container = containers.of(boxes[0].init)
    asked = []
    place = containers._place
    monkeypatch.setattr(containers, "_place", lambda pid: (asked.append(pid), place(pid))[1])
    assert containers.of(boxes[0].init) is container
    assert asked == []
    monkeypatch.setattr(module.os, "stat", lambda path: os.stat_result((*stat[:1], stat.st_ino + 1, *stat[2:10])))
    assert containers.of(boxes[0].init) is container
    assert asked == [boxes[0].init]


def test_a_container_goes_on_with_its_counters_and_its_age_when_its_oldest_process_ends(
    sandbox, neighbour, monkeypatch
):
    """Also for a daemon that is started afterwards."""
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0)
    ledger = Ledger()
    containers = Containers(find(), ledger, Sampler(5))
    pause, box = sandbox(), sandbox(memory=96 * MIB)
    os.kill(box.init, signal.SIGKILL)
    first = neighbour(pause, box)
    time.sleep(0.02)  # start times are in ticks
    second = neighbour(pause, box)
    container = containers.of(second)
    assert container.init == first
    started = container.start
    container.account.read(container.cgroup, ONE, 10**9)
    os.kill(first, signal.SIGKILL)
    assert select.select([containers], [], [], 10)[0]
    containers.reap()
    assert containers.of(second) is container
    assert (container.init, container.start) == (second, started)
    assert not container.load.closed
    again = Containers(find(), ledger, Sampler(5)).of(second)
    assert (again.init, again.start) == (second, started)
    os.kill(second, signal.SIGKILL)
    assert select.select([containers], [], [], 10)[0]
    wait_for(lambda: containers.reap() is None)
    assert container not in containers._watched.values()


# How many are kept, and of whom


def test_without_descriptors_for_another_container_others_are_forgotten_and_all_see_their_own(sandbox, containers):
    boxes = [sandbox(memory=size * MIB) for size in (32, 64, 96)]
    for box in boxes[:2]:
        limit(containers.of(box.init))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(map(int, os.listdir("/proc/self/fd")))
    fillers = [os.open("/dev/null", os.O_RDONLY)]  # of the numbers below that are free
    while fillers[-1] < most:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, hard))
    try:
        container = containers.of(boxes[2].init)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    assert limit(container) == 96 * MIB
    assert containers.unplaced == 0


def test_as_many_containers_are_kept_as_there_are_descriptors_for(monkeypatch):
    for limit_, most in ((1024, 24), (1 << 20, 4096), (64, 16)):
        monkeypatch.setattr(module.resource, "getrlimit", lambda _, soft=limit_: (soft, soft))
        assert Containers(find(), Ledger(), Sampler(5)).most == most


# Deep cgroups


@pytest.mark.parametrize("length", [4040, 4600])
def test_a_container_in_a_cgroup_too_deep_for_a_path_sees_the_limits_of_the_nearest_ancestor(
    length, containers, sandbox, neighbour
):
    """Beyond 4096 bytes, the kernel cuts the path off or, before Linux 6.2 or so, refuses to tell it."""
    pause, box = sandbox(memory=32 * MIB), sandbox(memory=64 * MIB)
    pids = box.popen(["sleep", "1000"]).pid, neighbour(pause, box), box.init
    name = next(name for name in ("memory", "") if _has(box, name))
    with deep(box.cgroup(name), length, pids):
        assert [limit(containers.of(pid)) for pid in pids] == [64 * MIB] * 3
    assert containers.unplaced == 0


def test_where_the_kernel_does_not_tell_a_deep_cgroup_a_reader_is_in_inits_container(containers, sandbox, monkeypatch):
    def read(pid, name):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    box = sandbox(memory=64 * MIB)
    assert limit(containers.of(box.init)) == 64 * MIB
    monkeypatch.setattr(processes, "read", read)
    assert limit(containers.of(box.popen(["sleep", "1000"]).pid)) == 64 * MIB
    assert containers.unplaced == 0


@pytest.fixture
def untold(monkeypatch):
    """The pids of processes in cgroups so deep that the kernel does not tell them: a set, of none at first."""
    pids: set[int] = set()

    def refused(pid: int, name: str) -> None:
        if name == "cgroup" and pid in pids:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))

    def read(pid, name, read=processes.read):
        refused(pid, name)
        return read(pid, name)

    def read_kept(self, name, read=KernelDirectory.read):
        refused(int(os.path.basename(self.path)) if name == "cgroup" else 0, name)
        return read(self, name)

    monkeypatch.setattr(processes, "read", read)
    monkeypatch.setattr(KernelDirectory, "read", read_kept)
    return pids


def test_in_the_hosts_pid_namespace_a_reader_whose_cgroup_is_not_told_any_more_is_known_as_it_was(
    containers, sandbox, service, untold, monkeypatch
):
    monkeypatch.setattr(module, "_REFRESH_SECONDS", 0.0)
    reader = service(sandbox(memory=64 * MIB))
    container = containers.of(reader)
    assert limit(container) == 64 * MIB
    untold.add(reader)
    assert containers.of(reader) is container
    assert containers.unplaced == 0


def test_in_the_hosts_pid_namespace_a_reader_whose_cgroup_is_never_told_is_where_its_parent_is(
    containers, sandbox, service, untold
):
    parent = service(sandbox(memory=64 * MIB), ("sh", "-c", "sleep 1000; :"))
    (reader,) = children(parent)
    try:
        untold.add(reader)
        assert limit(containers.of(reader)) == 64 * MIB
        assert containers.unplaced == 0
        untold.add(parent)
        assert Containers(find(), Ledger(), Sampler(5)).of(reader) is None, "the tests' own process is the host"
    finally:
        os.kill(reader, signal.SIGKILL)


def test_where_inits_cgroup_is_not_told_a_reader_is_in_its_own(containers, sandbox, untold):
    box = sandbox(memory=64 * MIB)
    untold.add(box.init)
    assert limit(containers.of(box.popen(["sleep", "1000"]).pid)) == 64 * MIB
    assert containers.unplaced == 0
    assert containers.of(box.init) is None
    assert containers.unplaced == 1


def children(pid: int) -> list[int]:
    """Return the children of a process, which is about to have some."""
    deadline = time.monotonic() + 10
    while not (pids := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        assert time.monotonic() < deadline
    return list(map(int, pids))


@contextlib.contextmanager
def deep(top: Path, length: int, pids: tuple[int, ...]):
    """Have processes in a cgroup whose path below a hierarchy's root is about so long."""
    with contextlib.ExitStack() as stack:
        directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, directory)
        for _ in range((length - len(str(top))) // 201 + 1):
            os.mkdir("d" * 200, dir_fd=directory)
            stack.callback(os.rmdir, "d" * 200, dir_fd=directory)
            directory = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
            stack.callback(os.close, directory)
        stack.callback(move, top, pids)
        move(f"/proc/self/fd/{directory}", pids)
        yield


def move(directory: Path | str, pids: tuple[int, ...]) -> None:
    """Move processes into the cgroup of that directory."""
    for pid in pids:
        Path(directory, "cgroup.procs").write_text(f"{pid}")


# Time namespaces


def test_the_offset_of_a_readers_clock_since_boot_is_that_of_its_own_time_namespace(containers, sandbox, require):
    require(os.path.exists("/proc/self/ns/time"), "Linux 5.6")
    assert offset(containers, sandbox().init) == 0
    box = sandbox(own_clock=True)
    of_init = offset(containers, box.init)
    assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) + of_init < 10 * 10**9
    assert of_init % 10**9 == 0
    program = box.popen(["unshare", "--time", "--boottime", "100000", "--fork", "sleep", "1000"])
    (below,) = children(program.pid)
    assert offset(containers, below) == 100_000 * 10**9
    assert offset(containers, box.init) == of_init


def test_who_made_a_time_namespace_for_its_children_is_still_in_its_own(containers, sandbox, require):
    require(os.path.exists("/proc/self/ns/time"), "Linux 5.6")
    box = sandbox(own_clock=True)
    command = [sys.executable, "-c", MAKES_ONE_FOR_ITS_CHILDREN]
    parent = box.popen(command, stdout=subprocess.PIPE)
    assert parent.stdout.readline()
    assert offset(containers, parent.pid) == offset(containers, box.init)
    unshare = ["unshare", "--time", "--boottime", "100000", "--fork", "sh", "-c", '"$@"; true', "sh", *command]
    program = box.popen(unshare, stdout=subprocess.PIPE)
    assert program.stdout.readline()
    (shell,) = children(program.pid)
    (below,) = children(shell)
    assert offset(containers, below) == 100_000 * 10**9


@pytest.mark.parametrize("is_alone", [True, False])
def test_the_clock_that_a_process_gives_its_children_is_never_taken_for_its_own(containers, sandbox, require, is_alone):
    """Its parent has ended, and so perhaps have all others in its time namespace: then it is taken for its init's."""
    require(os.path.exists("/proc/self/ns/time"), "Linux 5.6")
    box = sandbox(own_clock=True)
    orphans = '"$@" & echo $!' + ("" if is_alone else "; sleep 1000 >/dev/null &")
    unshare = ["unshare", "--time", "--boottime", "100000", "--fork", "sh", "-c", orphans, "sh"]
    program = box.popen([*unshare, sys.executable, "-c", MAKES_ONE_FOR_ITS_CHILDREN], stdout=subprocess.PIPE)
    inside = int(program.stdout.readline() + program.stdout.readline())  # the shell's, and the empty one of the program
    assert program.wait() == 0
    (orphan,) = (pid for pid in children(box.init) if processes.pid_inside(pid, containers.of(pid).namespace) == inside)
    assert offset(containers, orphan) == (offset(containers, box.init) if is_alone else 100_000 * 10**9)


MAKES_ONE_FOR_ITS_CHILDREN = """
import ctypes, time
ctypes.CDLL(None).unshare(0x80)  # CLONE_NEWTIME: its own clock stays as it is
with open("/proc/self/timens_offsets", "w") as offsets:
    offsets.write("boottime 500000 0")
print(flush=True)
time.sleep(1000)
"""


def offset(containers: Containers, reader: int) -> int:
    assert containers.of(reader)
    return containers.boottime_offset(reader)


# Pids


def test_the_last_pid_is_the_latest_that_a_reader_has_in_its_own_namespace(containers, sandbox):
    box = sandbox()
    assert containers.of(box.init).last_pid == 1
    for expected in (2, 3):
        assert containers.of(box.popen(["sleep", "1000"]).pid).last_pid == expected
    assert containers.of(box.init).last_pid == 3


def test_the_last_pid_begins_anew_with_the_pids_and_older_readers_change_nothing(containers, sandbox):
    box = sandbox()

    def started_with_pid(inside: int) -> int:
        box.run(["sh", "-c", f"echo {inside - 1} >/proc/sys/kernel/ns_last_pid"], check=True)
        pid = box.popen(["sleep", "1000"]).pid
        with open(f"/proc/{pid}/ns/pid") as pids:
            assert processes.pid_inside(pid, pids.fileno()) == inside
        return pid

    older, latest = started_with_pid(300), started_with_pid(500)
    assert containers.of(latest).last_pid == 500
    assert containers.of(older).last_pid == containers.of(box.init).last_pid == 500
    time.sleep(0.02)  # starts are told in ticks
    assert containers.of(started_with_pid(100)).last_pid == 100
    assert containers.of(older).last_pid == 100, "it is known"


def test_before_linux_6_11_a_pid_inside_is_found_too(sandbox, no_ioctl):
    box = sandbox()
    with open(f"/proc/{box.init}/ns/pid") as pids:
        assert processes.pid_inside(box.popen(["sleep", "1000"]).pid, pids.fileno()) == 2
