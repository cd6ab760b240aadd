"""The small container that the other tests, and `lxcfs-py try`, run commands in."""

from __future__ import annotations

import contextlib
import itertools
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from unittest.mock import Mock

import psutil
import pytest

from lxcfs_py.cgroup import layout
from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes.sandbox import Sandbox, SandboxError, parse_size

MB = 1 << 20
MakeSandbox = Callable[..., Sandbox]

# Exits with 0 where 64 MB are to be had, and is killed where they are not.
HOG = [sys.executable, "-c", "b'x' * (64 << 20)"]

# Prints what part of a CPU it gets.
SPIN = [
    sys.executable,
    "-c",
    "from time import monotonic, process_time\n"
    "start, used = monotonic(), process_time()\n"
    "while monotonic() < start + 2: pass\n"
    "print((process_time() - used) / (monotonic() - start))",
]


@pytest.fixture(autouse=True)
def nothing_is_left(require: Callable[[object, str], None]) -> Iterator[None]:
    require(os.geteuid() == 0, "root")
    before = mounts(), psutil.Process().num_fds()
    others = *psutil.Process().children(), *cgroups_of(os.getpid())
    yield
    assert [left for left in (*psutil.Process().children(), *cgroups_of(os.getpid())) if left not in others] == []
    assert (mounts(), psutil.Process().num_fds()) == before


def cgroups_of(pid: int) -> list[Path]:
    """The cgroups that sandboxes of a process have."""
    mountpoints = {hierarchy.mountpoint for hierarchy in layout.find().hierarchies.values()}
    directories = (Path(path) for mountpoint in mountpoints for path, _, _ in os.walk(mountpoint))
    return [directory for directory in directories if directory.name.startswith(f"lxcfs-py-try-{pid}-")]


def mounts() -> list[str]:
    """What is mounted in /proc and /sys, where a sandbox has its mounts."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in table if line.split()[4].startswith(("/proc", "/sys"))]


def lines(box: Sandbox, command: str) -> list[str]:
    """What a shell command prints inside."""
    done = box.run(["sh", "-c", command], timeout=30)
    assert done.returncode == 0, done.stderr
    return [line.strip() for line in done.stdout.splitlines()]


def eventually(condition: Callable[[], object], within: float = 10) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def some_views(tmp_path: Path) -> Path:
    """A directory laid out as a mounted lxcfs is, with files that show which they are."""
    for name in ("proc/meminfo", "proc/uptime"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"the view of {name}\n")
    return tmp_path


# Isolation


def test_a_command_sees_only_itself_and_pid_1(sandbox: MakeSandbox) -> None:
    assert lines(sandbox(), "ps -e -o pid= -o comm=") == ["1 sleep", "2 sh", "3 ps"]


def test_a_command_has_the_namespaces_of_pid_1_and_not_the_hosts(sandbox: MakeSandbox) -> None:
    box = sandbox()
    for kind in ("pid", "mnt", "cgroup"):
        (inside,) = lines(box, f"readlink /proc/self/ns/{kind}")
        assert inside == str(Path(f"/proc/{box.init}/ns/{kind}").readlink())
        assert inside != str(Path(f"/proc/self/ns/{kind}").readlink())


def test_its_cgroups_look_like_roots_from_inside(sandbox: MakeSandbox) -> None:
    box = sandbox(memory=64 * MB)
    shown = layout.parse_paths("\n".join(lines(box, "cat /proc/self/cgroup")).encode())
    if layout.find().version("memory") == 2:
        assert shown[""] == "/"
        assert lines(box, "cat /sys/fs/cgroup/memory.max") == [str(64 * MB)]
    else:
        assert shown["memory"] == shown["cpu"] == shown["cpuset"] == "/"
        assert lines(box, "cat /sys/fs/cgroup/memory/memory.limit_in_bytes") == [str(64 * MB)]


def test_a_mount_made_inside_stays_inside(sandbox: MakeSandbox, tmp_path: Path) -> None:
    box = sandbox()
    try:
        assert lines(box, f"mount -t tmpfs none {tmp_path} && touch {tmp_path}/file && ls {tmp_path}") == ["file"]
        assert list(tmp_path.iterdir()) == []
    finally:
        with contextlib.suppress(OSError):
            syscalls.umount(str(tmp_path))


def test_a_command_keeps_the_working_directory(sandbox: MakeSandbox, tmp_path: Path) -> None:
    box = sandbox()
    assert box.run(["pwd"], cwd=tmp_path).stdout.strip() == str(tmp_path)
    assert box.run(["pwd"]).stdout.strip() == str(Path.cwd())


def test_what_the_caller_starts_afterwards_is_outside(sandbox: MakeSandbox) -> None:
    box = sandbox()
    box.run(["true"])
    box.popen(["sleep", "60"])
    outside = subprocess.run(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True).stdout.strip()
    assert outside == str(Path("/proc/self/ns/pid").readlink())


def test_pid_1_holds_no_descriptors_of_the_caller_and_little_memory(sandbox: MakeSandbox) -> None:
    box = sandbox()
    # The standard streams; the loader of `sleep` has more open for a moment.
    assert eventually(lambda: psutil.Process(box.init).num_fds() == 3)
    usage = "memory.current" if layout.find().version("memory") == 2 else "memory.usage_in_bytes"
    assert int((box.cgroup("memory") / usage).read_text()) < 4 * MB


def test_orphans_are_reaped(sandbox: MakeSandbox) -> None:
    box = sandbox()
    box.run(["sh", "-c", "sleep 0.1 >/dev/null 2>&1 &"])
    assert "sleep" in lines(box, "ps -e -o comm=")
    assert eventually(lambda: lines(box, "ps -e -o pid=,stat=,comm= | grep -v -e ps -e sh -e grep") == ["1 Ss   sleep"])


# The views


def test_the_views_are_bound_over_its_files(sandbox: MakeSandbox, some_views: Path) -> None:
    box = sandbox(views=some_views)
    assert lines(box, "cat /proc/meminfo /proc/uptime") == ["the view of proc/meminfo", "the view of proc/uptime"]
    assert Path("/proc/meminfo").read_text().startswith("MemTotal:")


def test_the_views_may_be_in_a_directory_whose_name_is_not_utf_8(sandbox: MakeSandbox, some_views: Path) -> None:
    views = some_views / os.fsdecode(b"\xff")
    views.mkdir()
    (some_views / "proc").rename(views / "proc")
    assert lines(sandbox(views=views), "cat /proc/uptime") == ["the view of proc/uptime"]


def test_only_the_files_asked_for_are_bound(sandbox: MakeSandbox, some_views: Path) -> None:
    box = sandbox(views=some_views, files=["proc/uptime"])
    shown = lines(box, "head -n 1 /proc/meminfo; cat /proc/uptime")
    assert shown[0].startswith("MemTotal:")
    assert shown[1] == "the view of proc/uptime"


def test_a_view_of_a_file_that_the_kernel_does_not_have_is_left_out(
    sandbox: MakeSandbox, some_views: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (some_views / "proc/nosuch").write_text("")
    monkeypatch.setattr("lxcfs_py.files.NAMES", ("proc/nosuch", "proc/uptime"))
    assert lines(sandbox(views=some_views), "cat /proc/uptime") == ["the view of proc/uptime"]


def test_views_that_are_not_there_are_an_error(some_views: Path) -> None:
    with pytest.raises(SandboxError, match="no views at /nosuch"), Sandbox(views=Path("/nosuch")):
        pass
    unknown = Sandbox(views=some_views, files=["proc/stat"])
    with pytest.raises(SandboxError, match=r"no proc/stat in .* proc/meminfo, proc/uptime"), unknown:
        pass


def test_free_shows_the_limit_where_the_daemon_serves_the_views(sandbox: MakeSandbox, daemon: Any) -> None:
    box = sandbox(memory=256 * MB, swap=0, views=daemon.mountpoint)
    assert lines(box, "free -b | awk '/^Mem:/ {print $2}'") == [str(256 * MB)]


# Limits


def test_memory_beyond_the_limit_is_not_to_be_had(sandbox: MakeSandbox) -> None:
    box = sandbox(memory=32 * MB, swap=0)
    assert box.run(HOG).returncode == -signal.SIGKILL
    assert box.run(["true"]).returncode == 0, "PID 1 is still there"


def test_the_memory_limit_can_be_raised_lowered_and_taken_away(sandbox: MakeSandbox) -> None:
    box = sandbox(memory=32 * MB, swap=0)
    box.limit(memory=256 * MB)
    assert box.run(HOG).returncode == 0
    box.limit(memory=48 * MB)
    assert box.run(HOG).returncode == -signal.SIGKILL
    box.limit(memory=32 * MB, swap=256 * MB)
    box.limit(memory=512 * MB, swap=0)
    box.limit(memory=None, swap=None)
    assert box.run(HOG).returncode == 0


def test_a_swap_limit_is_beside_the_memory_limit(sandbox: MakeSandbox) -> None:
    box = sandbox(memory=64 * MB, swap=16 * MB)
    if layout.find().version("memory") == 2:
        assert (box.cgroup("memory") / "memory.swap.max").read_text().strip() == str(16 * MB)
    else:
        assert (box.cgroup("memory") / "memory.memsw.limit_in_bytes").read_text().strip() == str(80 * MB)


@pytest.mark.slow
def test_a_command_gets_no_more_cpu_time_than_its_quota(sandbox: MakeSandbox) -> None:
    box = sandbox(cpus=0.2)
    assert float(box.run(SPIN).stdout) < 0.3
    assert throttled(box) > 0
    box.limit(cpus=None)
    before = throttled(box)
    box.run(SPIN)
    assert throttled(box) == before


def throttled(box: Sandbox) -> int:
    """How often its quota has stopped it."""
    return int(dict(line.split() for line in (box.cgroup("cpu") / "cpu.stat").read_text().splitlines())["nr_throttled"])


def test_a_command_runs_on_the_cpus_of_its_cpuset(sandbox: MakeSandbox) -> None:
    cpu = max(os.sched_getaffinity(0))
    box = sandbox(cpuset=str(cpu))
    assert lines(box, "grep Cpus_allowed_list /proc/self/status") == [f"Cpus_allowed_list:\t{cpu}"]
    box.limit(cpuset=None)
    assert lines(box, "nproc --all; nproc") == [str(os.cpu_count())] * 2


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"cpuset": "99999"}, r"cannot set /sys/fs/cgroup/.*cpuset.cpus to 99999: .*\(it takes a list such as 0-3,8"),
        ({"cpus": 0.001}, r"cannot set /sys/fs/cgroup/.*cpu.* to 100.*: Invalid argument \(0.01 CPUs is the least"),
    ],
)
def test_a_limit_that_the_kernel_refuses_is_an_error(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(SandboxError, match=message), Sandbox(**limits):
        pass


def test_a_refused_change_leaves_the_limit_as_it_was(sandbox: MakeSandbox) -> None:
    box = sandbox(cpuset="0")
    with pytest.raises(SandboxError):
        box.limit(cpuset="99999")
    assert box.limits.cpuset == "0"
    assert lines(box, "nproc") == ["1"]


# Parents


def test_the_limit_of_a_parent_holds_in_its_children(sandbox: MakeSandbox) -> None:
    parent = sandbox(memory=32 * MB, swap=0)
    child = sandbox(parent=parent)
    assert child.cgroup("memory").parent == parent.cgroup("memory")
    assert child.run(HOG).returncode == -signal.SIGKILL
    parent.limit(memory=None, swap=None)
    assert child.run(HOG).returncode == 0
    assert parent.run(["true"]).returncode == 0, "a parent still runs commands"


def test_a_parent_can_be_a_path_as_proc_shows_it(sandbox: MakeSandbox) -> None:
    parent = sandbox()
    sandbox(parent=parent)  # which makes of it a cgroup that has children, on v2
    child = sandbox(parent=f"/{parent.cgroup('memory').name}")
    for controller in ("memory", "cpu", "pids"):
        assert child.cgroup(controller).parent == parent.cgroup(controller)


def test_a_parent_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SandboxError, match=r"no cgroup /sys/fs/cgroup.*/nosuch"), Sandbox(parent="/nosuch"):
        pass


# Commands


def test_the_exit_status_is_the_commands(sandbox: MakeSandbox) -> None:
    box = sandbox()
    assert box.run(["sh", "-c", "exit 7"]).returncode == 7
    assert box.run(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM


def test_a_command_that_is_not_there_is_an_error_and_the_sandbox_goes_on(sandbox: MakeSandbox) -> None:
    box = sandbox()
    with pytest.raises(FileNotFoundError):
        box.run(["nosuchcommand"])
    assert lines(box, "echo yes") == ["yes"]


def test_a_timeout_kills_the_command(sandbox: MakeSandbox) -> None:
    box = sandbox()
    with pytest.raises(subprocess.TimeoutExpired):
        box.run(["sleep", "60"], timeout=0.2)
    assert lines(box, "ps -e -o args= | grep -c '^sleep 60' || true") == ["0"]


def test_a_background_command_can_be_talked_to(sandbox: MakeSandbox) -> None:
    process = sandbox().popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.communicate("hello", timeout=10) == ("hello", None)


# The end


def test_nothing_is_left_when_the_body_raises() -> None:
    inits = []

    def fail() -> None:
        with Sandbox(memory=64 * MB) as box:
            inits.append(box.init)
            box.popen(["sleep", "60"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert cgroups_of(os.getpid()) == []
    assert not any(running(init) for init in inits)


def test_commands_orphans_and_cgroups_made_inside_go_with_the_sandbox() -> None:
    with Sandbox() as box:
        process = box.popen(["sh", "-c", "trap '' TERM HUP; sleep 60 & sleep 60"])
        box.run(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 &"])
        (box.cgroup("pids") / "inner").mkdir()
        pids = [int(pid) for pid in (box.cgroup("pids") / "cgroup.procs").read_text().split()]
        assert len(pids) >= 4
    assert process.returncode == -signal.SIGKILL
    assert not any(running(pid) for pid in pids)
    assert cgroups_of(os.getpid()) == []


def test_nothing_is_left_when_it_cannot_be_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(1, "Operation not permitted", "/proc")

    monkeypatch.setattr(syscalls, "mount", refuse)
    with pytest.raises(SandboxError, match=r"cannot enter the sandbox: .*Operation not permitted: '/proc'"):
        Sandbox(memory=64 * MB).__enter__()
    assert cgroups_of(os.getpid()) == []


def test_whatever_keeps_it_from_being_set_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "mount", Mock(side_effect=ValueError("no name: \udcff")))
    with pytest.raises(SandboxError, match="cannot enter the sandbox: no name: \udcff"):
        Sandbox(memory=64 * MB).__enter__()


def test_a_user_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SandboxError, match="needs root"), Sandbox():
        pass


def test_a_sandbox_that_has_ended_says_so() -> None:
    with Sandbox() as box:
        pass
    with pytest.raises(SandboxError, match="not running"):
        box.run(["true"])


def test_cgroups_that_a_killed_process_left_are_not_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lxcfs_py.runtimes.sandbox._numbers", itertools.count())
    left = Path(layout.find().hierarchies["pids"].mountpoint, f"lxcfs-py-try-{os.getpid()}-0")
    left.mkdir()
    try:
        with Sandbox() as box:
            assert box.cgroup("pids").name == f"lxcfs-py-try-{os.getpid()}-1"
    finally:
        left.rmdir()


# The command for the terminal


def program(command: list[str], **limits: object) -> list[str]:
    """A program that runs a command as `lxcfs-py try` does."""
    source = (
        "import sys; from lxcfs_py.runtimes.foreground import run_command; "
        "from lxcfs_py.runtimes.sandbox import Sandbox; "
        f"sys.exit(run_command({command!r}, Sandbox(own_clock=True, **{limits!r})))"
    )
    return [sys.executable, "-c", source]


@contextlib.contextmanager
def started(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
            remove_cgroups_of(process.pid)


def remove_cgroups_of(pid: int) -> None:
    """Clean up after a program that was killed, and could not."""

    def removed() -> bool:
        with contextlib.suppress(OSError):
            for directory in cgroups_of(pid):
                directory.rmdir()
            return True
        return False

    assert eventually(removed)


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -TERM $$", 143)])
def test_the_exit_code_is_the_commands_as_a_shell_gives_it(script: str, status: int) -> None:
    assert subprocess.run(program(["sh", "-c", script]), timeout=30).returncode == status


def test_the_standard_streams_are_the_callers() -> None:
    command = program(["sh", "-c", "cat; echo complaint >&2"], memory=64 * MB)
    done = subprocess.run(command, input="hello", capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("hello", "complaint\n")


def test_sigterm_goes_to_the_command_and_nothing_is_left() -> None:
    script = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    with started(program(["sh", "-c", script]), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.communicate(timeout=10)[0] == b"told\n"
        assert process.returncode == 3
        assert cgroups_of(process.pid) == []


@pytest.mark.parametrize("started_with", [signal.SIG_DFL, signal.SIG_IGN])
def test_ctrl_c_goes_to_the_command_whether_or_not_a_script_has_started_it_in_the_background(
    started_with: signal.Handlers,
) -> None:
    script = "trap 'echo told; exit 3' INT; echo ready; while :; do sleep 0.1; done"
    with terminal(program(["sh", "-c", script]), sigint=started_with) as (pid, keyboard):
        assert eventually(lambda: b"ready" in shown(keyboard))
        os.write(keyboard, b"\x03")
        assert eventually(lambda: b"told" in shown(keyboard))
        _, status = os.waitpid(pid, 0)
        assert os.WEXITSTATUS(status) == 3
        assert cgroups_of(pid) == []


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_exit_code_of_a_shell_with_job_control_is_its_own(
    shell: str, require: Callable[[object, str], None]
) -> None:
    require(shutil.which(shell), shell)
    with terminal(program([shell])) as (pid, keyboard):
        os.write(keyboard, b"sleep 0; echo $((6 * 7))\n")
        assert shows(keyboard, b"42")
        os.write(keyboard, b"exit 5\n")
        assert exit_code(pid) == 5


ANSWERS = ["sh", "-c", "echo ready; while read line; do echo you are $line; done"]


def test_where_no_shell_could_let_a_stopped_command_go_on_it_goes_on() -> None:
    with terminal(program(ANSWERS)) as (pid, keyboard):
        assert shows(keyboard, b"ready")
        os.write(keyboard, b"\x1a")
        os.write(keyboard, b"someone\n")
        assert shows(keyboard, b"you are someone")
        os.write(keyboard, b"\x04")
        assert exit_code(pid) == 0


def test_the_shell_that_has_started_it_can_stop_the_command_and_let_it_go_on() -> None:
    with terminal(["sh", "-i"]) as (pid, keyboard):
        os.write(keyboard, f"{shlex.join(program(ANSWERS))}\n".encode())
        assert shows(keyboard, b"ready\r\n")
        for resume in (b"fg", b"bg; sleep 0.5; fg"):
            os.write(keyboard, b"\x1a")
            assert shows(keyboard, b"Stopped")
            os.write(keyboard, b"echo $((6 * 7))\n")
            assert shows(keyboard, b"42")
            os.write(keyboard, resume + b"\nsomeone\n")
            assert shows(keyboard, b"you are someone")
        os.write(keyboard, b"\x04")
        os.write(keyboard, b"exit 7\n")
        assert exit_code(pid) == 7


def test_a_command_that_ends_in_the_background_leaves_the_terminal_to_the_shell() -> None:
    with terminal(["sh", "-i"]) as (pid, keyboard):
        os.write(keyboard, f"{shlex.join(program(['sh', '-c', 'echo ready; sleep 1']))}\n".encode())
        assert shows(keyboard, b"ready\r\n")
        os.write(keyboard, b"\x1a")
        assert shows(keyboard, b"Stopped")
        os.write(keyboard, b"bg; wait; echo $((6 * 7))\n")
        assert shows(keyboard, b"42")
        os.write(keyboard, b"exit 7\n")
        assert exit_code(pid) == 7


def test_ctrl_c_ends_the_script_that_runs_the_command_too() -> None:
    script = f"{shlex.join(program(['sh', '-c', 'echo ready; exec sleep 60']))}; echo went on"
    with terminal(["sh", "-c", script]) as (pid, keyboard):
        assert shows(keyboard, b"ready")
        os.write(keyboard, b"\x03")
        assert exit_code(pid) == -signal.SIGINT


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def shows(terminal: int, text: bytes) -> bool:
    """Whether a text is written to a terminal within a while."""
    seen = b""

    def is_there() -> bool:
        nonlocal seen
        seen += shown(terminal)
        return text in seen

    return eventually(is_there)


def shown(terminal: int) -> bytes:
    """What has been written to a terminal since the last time, if anything."""
    return os.read(terminal, 1000) if select.select([terminal], [], [], 0)[0] else b""


@contextlib.contextmanager
def terminal(argv: list[str], sigint: signal.Handlers = signal.SIG_DFL) -> Iterator[tuple[int, int]]:
    """Run a program on a terminal of its own: its pid, and a descriptor to type at."""
    pid, keyboard = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, sigint)
        os.execvp(argv[0], argv)
    try:
        yield pid, keyboard
    finally:
        os.close(keyboard)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        remove_cgroups_of(pid)


def test_the_processes_inside_die_with_a_caller_that_is_killed() -> None:
    with started(program(["sh", "-c", "echo ready; sleep 60"]), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        members = [directory / "cgroup.procs" for directory in cgroups_of(process.pid)]
        assert all(len(file.read_text().split()) >= 2 for file in members)
        process.kill()
        assert eventually(lambda: not any(file.read_text() for file in members))


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("262144", 262144),
        ("256M", 256 * MB),
        ("1G", 1024 * MB),
        ("1.5G", 1536 * MB),
        ("64k", 65536),
        ("2MiB", 2 * MB),
        ("0", 0),
    ],
)
def test_a_size_is_bytes_or_has_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "256X", "-1", "1e6", "1,5G", "256 M B"])
def test_what_is_no_size_is_an_error_that_shows_one(text: str) -> None:
    with pytest.raises(ValueError, match="such as 256M"):
        parse_size(text)


# Clocks


@pytest.fixture
def with_time_namespaces(require: Callable[[object, str], None]) -> None:
    require(Path("/proc/self/ns/time").exists(), "Linux 5.6")


def test_with_a_clock_of_its_own_all_that_tells_time_agrees(
    sandbox: MakeSandbox, daemon: Any, with_time_namespaces: None
) -> None:
    """Uptime, boot time, and the start, age and CPU share of processes."""
    box = sandbox(views=daemon.mountpoint, own_clock=True)
    began = time.time()
    process = box.popen(["sleep", "60"])
    time.sleep(1.5)
    up, kernels = (float(text.split()[0]) for text in lines(box, "cat /proc/uptime; awk '{print $1}' /proc/uptime"))
    assert 1 < up < 60
    clock = "import time; print(time.clock_gettime(time.CLOCK_BOOTTIME))"
    assert float(box.run([sys.executable, "-c", clock]).stdout) == pytest.approx(kernels, abs=2)
    (btime,) = lines(box, "awk '/^btime/ {print $2}' /proc/stat")
    assert int(btime) == pytest.approx(time.time() - up, abs=3)
    (inside,) = lines(box, "ps -C sleep -o pid=,etimes= --sort -pid | head -n 1")
    assert 1 <= int(inside.split()[1]) <= up
    (started,) = lines(box, f'date +%s -d "$(ps -o lstart= -p {inside.split()[0]})"')
    assert int(started) == pytest.approx(began, abs=3)
    assert process.poll() is None


def test_in_a_time_namespace_below_inits_all_that_tells_time_agrees(
    sandbox: MakeSandbox, daemon: Any, with_time_namespaces: None
) -> None:
    """To each its own: what the kernel says there, from where start times of processes count."""
    box = sandbox(views=daemon.mountpoint)
    agrees = """
    read -r up idle </proc/uptime; sleep 1000 &
    echo "${up%.*} $(awk '/^btime/ {print $2}' /proc/stat)"; date +%s -d "$(ps -o lstart= -p $!)"; kill $!
    """
    offset = 100_000
    command = ["unshare", "--time", "--boottime", str(offset), "--fork", "sh", "-c", agrees]
    figures, started = box.run(command, check=True).stdout.splitlines()
    up, btime = map(int, figures.split())
    assert up == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME) + offset, abs=10)
    assert btime == pytest.approx(time.time() - up, abs=10)
    assert int(started) == pytest.approx(time.time(), abs=10)
    assert float(lines(box, "cat /proc/uptime")[0].split()[0]) < 60


def test_without_one_processes_started_when_they_did(sandbox: MakeSandbox, daemon: Any) -> None:
    box = sandbox(views=daemon.mountpoint)
    (started,) = lines(box, 'date +%s -d "$(ps -o lstart= -p 1)"')
    assert int(started) == pytest.approx(time.time(), abs=10)


def test_the_command_for_the_terminal_has_a_clock_of_its_own(with_time_namespaces: None) -> None:
    shown = subprocess.run(program(["cat", "/proc/uptime"]), capture_output=True, text=True, check=True).stdout
    assert float(shown.split()[0]) < 30
