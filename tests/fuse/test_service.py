"""The daemon's life and the commands, as an operator meets them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.daemon import engines
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ENGINES, ROOT, Daemon, mountpoints, unmount_below
from tests.kept import wait_for

MIB = 1 << 20

MakeSandbox = Callable[..., Sandbox]
StartDaemon = Callable[..., Daemon]


def lxcfs_py(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "lxcfs_py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **options)


def reload(daemon: Daemon, config: str) -> str:
    """Give the daemon another configuration; return what it logs of it."""
    already = len(daemon.log.read_text())
    daemon.config.write_text(config)
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in daemon.log.read_text()[already:])
    return daemon.log.read_text()[already:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_to_stop_unmounts(start_daemon: StartDaemon, engine: str, number: int) -> None:
    daemon = start_daemon(engine)
    daemon.process.send_signal(number)
    assert daemon.process.wait(10) == 0
    assert str(daemon.mountpoint) not in mountpoints()
    assert "Traceback" not in daemon.log.read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_log_says_which_engine_runs_and_why(start_daemon: StartDaemon, engine: str) -> None:
    log = start_daemon(engine).log.read_text()
    assert f"engine {engine}: " in log.splitlines()[0]


def test_engine_auto_takes_the_one_whose_mount_can_outlive_it(start_daemon: StartDaemon) -> None:
    assert "engine kernel: " in start_daemon("auto").log.read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reload_is_seen_by_who_has_the_files_mounted(
    start_daemon: StartDaemon, sandbox: MakeSandbox, engine: str
) -> None:
    daemon = start_daemon(engine)
    box = sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)
    fuse = f'\n[fuse]\nengine = "{engine}"\n'

    def cpus() -> int:
        return box.run(["cat", "/proc/cpuinfo"]).stdout.count("processor\t:")

    assert cpus() == 1
    reload(daemon, '[cpu]\nmode = "cpuset"\n' + fuse)
    assert cpus() == os.cpu_count()
    reload(daemon, '[files]\nenabled = ["proc/cpuinfo"]\n' + fuse)
    assert cpus() == 1
    assert os.listdir(daemon.mountpoint) == ["proc"]
    assert os.listdir(daemon.mountpoint / "proc") == ["cpuinfo"]
    host = Path("/proc/meminfo").read_text().splitlines()[0]
    assert box.run(["head", "-n", "1", "/proc/meminfo"]).stdout.strip() == host


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_configuration_is_refused_and_the_old_one_stays(
    start_daemon: StartDaemon, sandbox: MakeSandbox, engine: str
) -> None:
    daemon = start_daemon(engine)
    box = sandbox(cpus=1, views=daemon.mountpoint)
    log = reload(daemon, '[cpu]\nmode = "quotas"\n\n[memroy]\nswap = true\n')
    config = daemon.config
    assert f'{config}:2: cpu.mode is "quotas"; allowed: "quota", "cpuset"' in log
    assert f'{config}:5: unknown key "memroy.swap"; did you mean "memory.swap"?' in log
    assert "the old one stays" in log
    assert box.run(["cat", "/proc/cpuinfo"]).stdout.count("processor\t:") == 1


def test_what_a_reload_cannot_change_is_said(start_daemon: StartDaemon) -> None:
    daemon = start_daemon("kernel")
    log = reload(daemon, '[fuse]\nengine = "fusepy"\n')
    assert "fuse.engine stays what it is until the service is stopped and started" in log


def test_after_its_end_a_unit_unmounts_where_it_served_whatever_the_configuration_says_by_now(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    start_daemon("kernel")  # only for what it requires of the machine
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{tmp_path}/old"\n')
    command = [sys.executable, "-m", "lxcfs_py", "run", "--config", str(tmp_path / "lxcfs.toml")]
    daemon = Daemon(command, tmp_path / "old", tmp_path / "log")
    try:
        reload(daemon, f'mountpoint = "{tmp_path}/new"\n')  # which is taken at the next start
    finally:
        daemon.process.kill()
        daemon.process.wait(10)
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho 7 a.service stop running\n")
    (tmp_path / "systemctl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    config = daemon.config
    ended = lxcfs_py("unmount", "--unless-restarting", "a.service", "--config", config, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert str(daemon.mountpoint) not in mountpoints()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_daemon_can_be_killed_at_any_moment_of_its_start(start_daemon: StartDaemon, engine: str) -> None:
    """One that asks its own mount whether it answers would wait for itself for ever, and nobody could end it."""
    daemon = start_daemon(engine)
    daemon.process.kill()
    daemon.process.wait(10)
    for moment in range(60):
        daemon.process = subprocess.Popen(daemon.command, cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(0.1 + moment * 0.003)  # Python itself takes the first of it
        daemon.process.kill()
        daemon.process.wait(10)


def test_libfuse_does_not_let_a_broken_pipe_end_the_daemon(start_daemon: StartDaemon) -> None:
    """At its end it makes SIGPIPE deadly where that is ignored, and leaves alone what has a handler."""
    status = Path(f"/proc/{start_daemon('fusepy').process.pid}/status").read_text()
    (caught,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    assert caught >> signal.SIGPIPE - 1 & 1


@pytest.mark.parametrize("most", [20, 25, 30, 40, 48])
def test_a_start_that_fails_for_want_of_descriptors_says_so_and_leaves_no_mount(tmp_path: Path, most: int) -> None:
    command = [sys.executable, "-m", "lxcfs_py", "run", "--config", "/dev/null", str(tmp_path / "views")]
    limited = ["prlimit", f"--nofile={most}", *command]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Too many open files" in done.stderr) == (1, True)
    assert "the mount is left" not in done.stderr
    assert not [place for place in mountpoints() if place.startswith(str(tmp_path))]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mount_that_a_dead_server_left_is_cleared_away(start_daemon: StartDaemon, engine: str) -> None:
    daemon = start_daemon(engine)
    daemon.process.kill()
    daemon.process.wait(10)
    with pytest.raises(OSError, match="not connected"):
        (daemon.mountpoint / "proc/uptime").read_text()
    again = Daemon(daemon.command, daemon.mountpoint, daemon.log)
    assert (daemon.mountpoint / "proc/uptime").read_text()
    assert "a dead server had left" in daemon.log.read_text()
    assert again.stop() == 0
    assert str(daemon.mountpoint) not in mountpoints()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mountpoint_with_a_living_server_is_refused_with_its_pid(start_daemon: StartDaemon, engine: str) -> None:
    daemon = start_daemon("fusepy")
    config = daemon.log.parent / "second.toml"
    config.write_text(f'[fuse]\nengine = "{engine}"\n')
    answer = lxcfs_py("run", "--config", config, daemon.mountpoint)
    assert answer.returncode == 1
    assert f"{daemon.mountpoint} is served already, by process {daemon.process.pid}; stop that first" in answer.stderr
    assert (daemon.mountpoint / "proc/uptime").read_text()


def test_a_mountpoint_may_be_a_symbolic_link(start_daemon: StartDaemon, tmp_path: Path) -> None:
    start_daemon("kernel")  # only for what it requires of the machine
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    command = [sys.executable, "-m", "lxcfs_py", "run", str(tmp_path / "link")]
    daemon = Daemon(command, tmp_path / "real", tmp_path / "log")
    assert (tmp_path / "link/proc/uptime").read_text()
    assert daemon.stop() == 0
    assert str(tmp_path / "real") not in mountpoints()


def test_a_server_never_reads_its_own_mount(start_daemon: StartDaemon, tmp_path: Path) -> None:
    # In a mount namespace of its own, a dead server's files and later the daemon's own cover the host's.
    script = """
        set -e
        serve() {
            "$1" -m lxcfs_py run "$2" & server=$!
            until timeout 5 cat "$2/proc/uptime" >/dev/null 2>&1; do kill -0 $server; sleep 0.05; done
        }
        mount --make-rprivate /
        trap 'kill $server' EXIT
        serve "$@"
        mount --bind "$2/proc/meminfo" /proc/meminfo
        mount --bind "$2/sys/devices/system/cpu" /sys/devices/system/cpu
        kill -9 $server; wait $server || true
        ! timeout 5 cat /proc/meminfo 2>/dev/null
        serve "$@"
        umount -l /proc/meminfo /sys/devices/system/cpu
        mount --bind "$2/proc/meminfo" /proc/meminfo
        mount --bind "$2/sys" /sys
        timeout 5 head -n 1 /proc/meminfo
        timeout 5 head -n 1 "$2/proc/meminfo"
        timeout 5 cat "$2/sys/devices/system/cpu/cpu0/uevent" >/dev/null
        mount --bind "$2/proc" /proc
        timeout 5 unshare --mount --pid --fork cat "$2/sys/devices/system/cpu/online"
    """
    start_daemon("kernel")  # only for what it requires of the machine
    answer = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    *meminfo, online = answer.stdout.splitlines()
    assert meminfo == [Path("/proc/meminfo").read_text().splitlines()[0]] * 2
    assert online == Path("/sys/devices/system/cpu/online").read_text().strip()


def test_check_prints_the_effective_configuration_or_all_errors(tmp_path: Path) -> None:
    config = tmp_path / "lxcfs.toml"
    config.write_text('[cpu]\nmode = "cpuset"\n')
    good = lxcfs_py("check", config)
    assert (good.returncode, good.stderr) == (0, "")
    assert 'mode = "cpuset"' in good.stdout
    assert "[loadavg]" in good.stdout
    config.write_text('[fuse]\nengine = "fusepy"\n')
    fusepy = lxcfs_py("check", config)
    assert (fusepy.returncode, fusepy.stderr) == (0, f"lxcfs-py: fuse.engine: {engines.FUSEPY_ENDS}\n")
    config.write_text('mountpoint = 1\n[cpu]\nmode = "x"\n')
    bad = lxcfs_py("check", config)
    assert (bad.returncode, len(bad.stderr.splitlines())) == (1, 2)
    missing = lxcfs_py("check", tmp_path / "none")
    assert (missing.returncode, missing.stderr) == (1, f"{tmp_path}/none: cannot be read: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["show", "sys/devices/system/cpu"], 1, "is a directory; name a file in it"),
        (["run", "--stay"], 2, "--stay requires --keep"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(arguments: list[str], code: int, error: str) -> None:
    answer = lxcfs_py(*arguments)
    assert answer.returncode == code
    assert error in answer.stderr


def test_show_prints_what_a_process_would_read_without_any_mount(sandbox: MakeSandbox) -> None:
    box = sandbox(memory=128 * MIB)
    answer = lxcfs_py("show", "meminfo", "--pid", box.init)
    assert answer.stdout.startswith("MemTotal:         131072 kB\n"), answer.stderr
    online = lxcfs_py("show", "sys/devices/system/cpu/online", "--pid", box.init)
    assert online.stdout == Path("/sys/devices/system/cpu/online").read_text()
    host = lxcfs_py("show", "meminfo")
    assert host.stdout.splitlines()[0] == Path("/proc/meminfo").read_text().splitlines()[0]
    assert "there is no process 99999999" in lxcfs_py("show", "meminfo", "--pid", "99999999").stderr
    assert "there is: proc/cpuinfo" in lxcfs_py("show", "meminf").stderr


def test_try_runs_a_command_that_sees_itself(daemon: Daemon) -> None:
    answer = lxcfs_py("try", "--mountpoint", daemon.mountpoint, "--memory", "128M", "--", "free", "-m")
    assert answer.stdout.splitlines()[1].split()[:2] == ["Mem:", "128"]
    asked = lxcfs_py("try", "--mountpoint", daemon.mountpoint, "--memory", "128M", "--", "getconf", "_PHYS_PAGES")
    assert int(asked.stdout) * os.sysconf("SC_PAGE_SIZE") == 128 << 20, "of the kernel itself"
    failed = lxcfs_py("try", "--mountpoint", daemon.mountpoint, "--", "sh", "-c", "exit 7")
    assert failed.returncode == 7


def test_try_without_a_daemon_says_how_to_start_one(tmp_path: Path) -> None:
    answer = lxcfs_py("try", "--mountpoint", tmp_path, "--", "free")
    assert answer.returncode == 1
    assert answer.stderr == (
        f"lxcfs-py: nothing is mounted at {tmp_path}\n  start the daemon: lxcfs-py run {tmp_path}\n"
    )  # fmt: skip


def test_metrics_count_reads_by_file(start_daemon: StartDaemon) -> None:
    import socket
    import urllib.request

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = start_daemon("kernel", f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    for _ in range(3):
        (daemon.mountpoint / "proc/uptime").read_text()
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert 'lxcfs_reads_total{file="proc/uptime"} 3.0' in text
    assert "lxcfs_unplaced_reads_total 0.0" in text


@pytest.fixture(autouse=True)
def _nothing_stays_mounted(tmp_path: Path) -> Any:
    yield
    unmount_below(tmp_path)


def test_a_selinux_label_reaches_the_kernel_which_takes_it_or_says_why_not(
    tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    require(os.geteuid() == 0, "root")
    label = "context=system_u:object_r:container_file_t:s0"
    program = "import sys; from lxcfs_py.lxcfs import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "-f", "-o", f"allow_other,{label}", str(tmp_path)]
    with (tmp_path.parent / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log)
        try:
            if os.path.exists("/sys/fs/selinux/enforce"):
                wait_for(lambda: str(tmp_path) in mountpoints())
                assert label in Path("/proc/self/mountinfo").read_text()
            else:
                assert process.wait(30) == 1
                said = (tmp_path.parent / "log").read_text()
                assert f"Invalid argument with {label}: has this kernel SELinux?" in said
        finally:
            process.kill()
            process.wait()
            unmount_below(tmp_path)
