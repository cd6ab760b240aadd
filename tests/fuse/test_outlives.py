"""The mount outlives its server: the real daemon is killed, stopped and replaced under readers of all files."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import psutil
import pytest

from lxcfs_py.engine import session
from lxcfs_py.linux import runtime_directory, serving, syscalls
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon, mountpoints
from tests.kept import Kept, reading, wait_for

MIB = 1 << 20

MakeSandbox = Callable[..., Sandbox]
StartDaemon = Callable[..., Daemon]


@pytest.fixture
def kept(start_daemon: StartDaemon) -> Iterator[Kept]:
    kept = Kept(start_daemon("kernel"))
    yield kept
    kept.close()


@pytest.mark.slow
def test_no_reader_notices_200_kills_of_the_daemon(kept: Kept, sandbox: MakeSandbox) -> None:
    box = sandbox(memory=256 * MIB, cpus=1, views=kept.daemon.mountpoint)
    with reading(box):
        for number in range(200):
            # Start-up is a quarter of a second here: some die before they serve. Ten of these in a row would have the
            # last resort serve, which shows the machine's figures.
            time.sleep(random.uniform(0, 0.4))
            if number % 8 == 0:
                kept.wait_until_it_serves()
            kept.kill()
            kept.start()
        kept.wait_until_it_serves()


@pytest.mark.slow
def test_no_reader_notices_50_takeovers_by_another_daemon(start_daemon: StartDaemon, sandbox: MakeSandbox) -> None:
    daemon = start_daemon("kernel")
    box = sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)
    with reading(box):
        for _ in range(50):
            before = daemon.process
            with daemon.log.open("wb") as log:
                daemon.process = subprocess.Popen(before.args, cwd=ROOT, stderr=log)
            assert before.wait(60) == 0
            # Not before can it be taken over in turn.
            wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    daemon.stop()


def test_of_servers_that_start_at_once_each_takes_over_from_the_one_before(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with reading(sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)), contextlib.ExitStack() as stack:
        logs = [daemon.log.with_name(f"log-{number}") for number in range(3)]
        servers = [daemon.process]
        for path in logs:
            file = stack.enter_context(path.open("wb"))
            servers.append(subprocess.Popen(daemon.command, cwd=ROOT, stderr=file))
        # One that is taken over before it serves has nothing to say of that.
        wait_for(lambda: [server.poll() for server in servers].count(0) == 3)
        (daemon.process,) = (server for server in servers if server.poll() is None)
        log = logs[servers.index(daemon.process) - 1]
        wait_for(lambda: "INFO: serving" in log.read_text())
    assert daemon.stop() == 0


def test_no_reader_notices_a_daemon_that_stands_still_for_a_while(kept: Kept, sandbox: MakeSandbox) -> None:
    with reading(sandbox(memory=256 * MIB, views=kept.daemon.mountpoint)):
        for _ in range(5):
            kept.server.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            kept.server.send_signal(signal.SIGCONT)
            time.sleep(0.1)


def test_a_daemon_that_dies_at_its_start_three_times_is_only_a_pause(kept: Kept, sandbox: MakeSandbox) -> None:
    with reading(sandbox(memory=256 * MIB, views=kept.daemon.mountpoint)):
        kept.kill()
        for _ in range(3):
            kept.start()
            time.sleep(0.03)
            kept.kill()
        kept.start()
        kept.wait_until_it_serves()
        time.sleep(0.3)


def test_cpu_counters_go_on_in_the_next_daemon(kept: Kept, sandbox: MakeSandbox) -> None:
    def counters() -> list[int]:
        return [int(word) for word in box.run(["head", "-n", "1", "/proc/stat"]).stdout.split()[1:]]

    box = sandbox(cpus=2, views=kept.daemon.mountpoint)
    box.run(["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
    counters()
    box.limit(cpus=1)  # which takes a CPU away, and its idle time with it
    before = counters()
    kept.kill()
    kept.start()
    after = counters()
    assert all(new >= old for old, new in zip(before, after)), (before, after)
    assert sum(after) - sum(before) < 10 * os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_load_averages_go_on_in_the_next_daemon(kept: Kept, sandbox: MakeSandbox) -> None:
    box = sandbox(views=kept.daemon.mountpoint)
    path = runtime_directory.writable_path_of(str(kept.daemon.mountpoint), "loads")
    assert path

    def load() -> float:
        return float(box.run(["cat", "/proc/loadavg"]).stdout.split()[0])

    def sampled() -> list[float]:
        return [at for _, _, _, at in json.loads(Path(path).read_text()).values()]

    with box.popen(["sh", "-c", "while :; do :; done"]) as busy:
        try:
            assert load() == 0
            wait_for(lambda: load() >= 0.1)  # after the second look, and the first one is kept by then
            kept.kill()
            (before,) = sampled()
            kept.start()
            wait_for(lambda: sampled()[0] > before)  # though nobody asks
            assert load() >= 0.1
            kept.kill()
            kept.start()
            assert load() > 0
        finally:
            busy.kill()


def test_a_resumed_mount_follows_the_new_configuration(kept: Kept, sandbox: MakeSandbox) -> None:
    box = sandbox(memory=256 * MIB, views=kept.daemon.mountpoint)
    host = Path("/proc/meminfo").read_text().splitlines()[0]
    mount = kept.daemon.mountpoint / "proc"
    engine = '\n[fuse]\nengine = "kernel"\n'
    mine = "MemTotal:         262144 kB"

    def meminfo() -> str:
        return box.run(["head", "-n", "1", "/proc/meminfo"]).stdout.strip()

    assert meminfo() == mine
    kept.kill()
    kept.start('[files]\nenabled = ["proc/uptime"]' + engine)
    kept.wait_until_it_serves()
    assert os.listdir(mount) == ["uptime"]
    assert (mount / "meminfo").read_text().splitlines()[0] == host, "a container that has it could not start"
    assert meminfo() == host
    kept.kill()
    kept.start('[files]\nenabled = ["proc/uptime", "proc/meminfo"]' + engine)
    kept.wait_until_it_serves()
    assert sorted(os.listdir(mount)) == ["meminfo", "uptime"]
    assert meminfo() == mine


def test_a_keeper_starts_the_daemon_again(start_daemon: StartDaemon, sandbox: MakeSandbox) -> None:
    daemon = start_daemon("kernel", keep=True)
    (server,) = psutil.Process(daemon.process.pid).children()
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        server.kill()
        wait_for(lambda: [child.pid for child in psutil.Process(daemon.process.pid).children()] != [server.pid])
        time.sleep(0.5)
    assert daemon.stop() == 0
    assert str(daemon.mountpoint) not in mountpoints()


def test_where_a_keeper_is_killed_status_says_so_and_another_takes_over(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    daemon = start_daemon("kernel", keep=True)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        daemon.process.kill()
        daemon.process.wait(10)
        ask = [sys.executable, "-m", "lxcfs_py", "status", "--mountpoint", str(daemon.mountpoint)]
        told = subprocess.run([*ask, "--config", "/dev/null"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert "nobody keeps the mount" in told.stdout
        with daemon.log.open("wb") as log:
            daemon.process = subprocess.Popen(daemon.command, cwd=ROOT, stderr=log)
        wait_for(lambda: "INFO: serving" in daemon.log.read_text())
        (server,) = psutil.Process(daemon.process.pid).children()
        server.kill()
        wait_for(lambda: daemon.log.read_text().count("INFO: serving") == 2)
    assert daemon.stop() == 0


FEW_THREADS = """
import sys, threading
from lxcfs_py import cli

start = threading.Thread.start
most = int(sys.argv.pop(1))

def start_one_of_few(thread):
    if threading.active_count() > most:
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = start_one_of_few
sys.exit(cli.main())
"""

DIES_AS_IT_TAKES_OVER = """
import os, sys
from lxcfs_py import cli
from lxcfs_py.engine.session import Session

claim = Session.claim

def claim_and_die(session):
    claim(session)
    os._exit(1)

Session.claim = claim_and_die
sys.exit(cli.main())
"""

TAKES_ITS_TIME = """
import os, signal, sys, time
from lxcfs_py import cli
from lxcfs_py.engine.session import Session

claim, before, seconds = Session.claim, int(sys.argv.pop(1)), float(sys.argv.pop(1))

def claim_later(session):
    if session.predecessor is not None:
        os.kill(before, signal.SIGTERM)
        time.sleep(seconds)
    claim(session)

Session.claim = claim_later
sys.exit(cli.main())
"""


def another(daemon: Daemon, script: str, *arguments: str) -> list[str]:
    """The command of one that would take over from a daemon, changed by a script."""
    return [sys.executable, "-c", script, *arguments, "run", "--config", str(daemon.config), str(daemon.mountpoint)]


def test_a_server_that_lacks_threads_leaves_the_one_before_it_serving(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    """Or it has enough of them to serve; whatever else it would have had, it does without."""
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        for most in (1, 3, 5, 8, 12, 20):
            log = daemon.log.with_name(f"log-{most}")
            with log.open("wb") as output:
                successor = subprocess.Popen(another(daemon, FEW_THREADS, str(most)), cwd=ROOT, stderr=output)
            wait_for(lambda one=successor, log=log: one.poll() is not None or "INFO: serving" in log.read_text())
            if successor.poll() is None:
                assert daemon.process.wait(60) == 0
                daemon.process = successor
                break
            assert "the limit on processes is reached" in log.read_text()
            assert "this is a bug" not in log.read_text()
            assert daemon.process.poll() is None
        else:
            raise AssertionError("none took over")
        assert most > 4
        time.sleep(0.5)
    assert daemon.stop() == 0


@pytest.mark.parametrize("most", [48, 60, 110])
def test_a_server_that_lacks_descriptors_leaves_the_one_before_it_serving(
    start_daemon: StartDaemon, sandbox: MakeSandbox, most: int
) -> None:
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        limited = ["prlimit", f"--nofile={most}", *daemon.command]
        done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "Too many open files" in done.stderr) == (1, True), done.stderr
        assert "Exception ignored" not in done.stderr
    assert daemon.stop() == 0


def test_a_keeper_whose_servers_cannot_take_over_leaves_the_one_before_it_serving(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    """Each of them has the session, too, since the first one gave it to its keeper."""
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    log = daemon.log.with_name("log-of-keeper")
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)), log.open("wb") as output:
        run = daemon.command.index("run")
        command = [*daemon.command[: run + 1], "--keep", *daemon.command[run + 1 :]]
        keeper = subprocess.Popen(["prlimit", "--nofile=90", *command], cwd=ROOT, stderr=output)
        try:
            wait_for(lambda: log.read_text().count("Too many open files") >= 3)
            paths = [entry.path for entry in os.scandir(f"/proc/{daemon.process.pid}/fd")]
            memory = next(path for path in paths if os.readlink(path) == serving.SESSION_MEMORY)
            with open(memory, "rb") as file:
                assert session.has_come_to_serve(file.fileno()), "no start is counted as one that has failed"
        finally:
            keeper.terminate()
            keeper.wait(60)
    assert daemon.stop() == 0


def test_a_server_that_takes_over_has_the_descriptors_that_it_needs(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        for most in itertools.count(110, 4):
            log = daemon.log.with_name(f"log-{most}")
            limited = ["prlimit", f"--nofile={most}", *daemon.command]
            with log.open("wb") as output:
                successor = subprocess.Popen(limited, cwd=ROOT, stderr=output)
            wait_for(lambda one=successor, log=log: one.poll() is not None or "INFO: serving" in log.read_text())
            if successor.poll() is None:
                assert daemon.process.wait(60) == 0
                daemon.process = successor
                break
        time.sleep(0.5)
    assert daemon.stop() == 0


WORSE = {
    "no CAP_SYS_ADMIN": ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
    "no CAP_SYS_PTRACE": ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"],
    "a user namespace": ["unshare", "--user", "--map-root-user"],
    "a pid namespace": ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
    "cgroups covered": ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys && exec "$@"', "sh"],
    "no cgroups": [
        *("unshare", "--mount", "sh", "-c"),
        'grep -o " /sys/fs/cgroup[^ ]*" /proc/self/mountinfo | tac | xargs -n 1 umount --lazy && exec "$@"',
        "sh",
    ],
}


@pytest.mark.parametrize("how", WORSE, ids=lambda how: how.replace(" ", "-"))
def test_a_server_that_could_tell_no_containers_apart_leaves_the_one_before_it_serving(
    start_daemon: StartDaemon, sandbox: MakeSandbox, how: str
) -> None:
    daemon = start_daemon("kernel")
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    box = sandbox(memory=256 * MIB, views=daemon.mountpoint)
    done = subprocess.run(
        [*WORSE[how], *daemon.command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "no cgroups can be seen" in done.stderr or " goes on" in done.stderr
    assert daemon.process.poll() is None
    assert box.run(["head", "-n", "1", "/proc/meminfo"]).stdout == "MemTotal:         262144 kB\n"
    assert daemon.stop() == 0


@pytest.mark.parametrize("keep", [False, True], ids=["alone", "kept"])
@pytest.mark.parametrize(
    ("seconds", "is_late"), [(0.5, False), pytest.param(6, True, marks=pytest.mark.slow)], ids=["in-time", "late"]
)
def test_who_is_told_to_stop_while_another_takes_over_leaves_the_mount_to_it(
    start_daemon: StartDaemon, sandbox: MakeSandbox, keep: bool, seconds: float, is_late: bool
) -> None:
    """One that says too late that it takes over mounts again what was unmounted meanwhile."""
    daemon = start_daemon("kernel", keep=keep)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    log = daemon.log.with_name("log-successor")
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        with log.open("wb") as output:
            command = another(daemon, TAKES_ITS_TIME, str(daemon.process.pid), str(seconds))
            successor = subprocess.Popen(command, cwd=ROOT, stderr=output)
        assert daemon.process.wait(60) == 0
        daemon.process = successor
        wait_for(lambda: "INFO: serving" in log.read_text())
        wait_for(lambda: (daemon.mountpoint / "proc/uptime").exists())
    assert ("mounted it there again" in log.read_text()) == is_late
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_keeper_serves_again_where_its_successor_dies_before_it_serves(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    daemon = start_daemon("kernel", keep=True)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        for times in (2, 3):
            successor = subprocess.run(another(daemon, DIES_AS_IT_TAKES_OVER), cwd=ROOT, timeout=60)
            assert successor.returncode == 1
            wait_for(lambda times=times: daemon.log.read_text().count("INFO: serving") == times)
    assert daemon.stop() == 0


@pytest.mark.slow
def test_a_server_goes_on_while_its_keeper_stands_still(start_daemon: StartDaemon, sandbox: MakeSandbox) -> None:
    daemon = start_daemon("kernel", keep=True)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    (server,) = psutil.Process(daemon.process.pid).children()
    asks = [sys.executable, "-m", "lxcfs_py", "status", "--config", "/dev/null", "--mountpoint", str(daemon.mountpoint)]
    with reading(sandbox(memory=256 * MIB, views=daemon.mountpoint)):
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            while "does not listen" not in daemon.log.read_text():
                server.send_signal(signal.SIGHUP)  # the server tells its keeper of each reload
                time.sleep(0.01)
            told = subprocess.run(asks, cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert "whoever started this server does not listen to it" in told.stdout
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        wait_for(lambda: "no longer degraded: listener" in daemon.log.read_text())
    assert daemon.stop() == 0


KEEPER = """
import sys
from lxcfs_py.engine import keeper
keeper.WATCHDOG = 2.0
sys.exit(keeper.keep([sys.executable, *sys.argv[1:]]))
"""

SERVER = """
import contextlib, os, sys, threading
from lxcfs_py import cli
from lxcfs_py.daemon.filesystem import Filesystem

flag, render = sys.argv.pop(1), Filesystem.render

def hang_once(*arguments):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(flag)
        threading.Event().wait()
    return render(*arguments)

Filesystem.render = hang_once
sys.exit(cli.main())
"""


@pytest.mark.slow
def test_a_keeper_replaces_a_server_that_hangs_or_stands_still(tmp_path: Path, sandbox: MakeSandbox) -> None:
    mountpoint, flag = tmp_path / "mount", tmp_path / "hang"
    mountpoint.mkdir()
    (tmp_path / "lxcfs.toml").write_text('[fuse]\nengine = "kernel"\n')
    served = ["-c", SERVER, str(flag), "run", "--config", str(tmp_path / "lxcfs.toml"), str(mountpoint)]
    daemon = Daemon([sys.executable, "-c", KEEPER, *served], mountpoint, tmp_path / "log")
    try:

        def server() -> int:
            (child,) = psutil.Process(daemon.process.pid).children()
            return child.pid

        first = server()
        with reading(sandbox(memory=256 * MIB, views=mountpoint)):
            flag.touch()
            wait_for(lambda: "starting it again" in daemon.log.read_text())
            wait_for(lambda: daemon.log.read_text().count("INFO: serving") == 2)
            second = server()
            os.kill(second, signal.SIGSTOP)
            wait_for(lambda: daemon.log.read_text().count("INFO: serving") == 3)
        assert len({first, second, server()}) == 3
        assert daemon.log.read_text().count("no sign of life") == 2
    finally:
        assert daemon.stop() == 0


HEARS = """
import sys
from lxcfs_py.engine import keeper
from lxcfs_py.linux import runtime_directory

runtime_directory.PATH = sys.argv[1]
keeper.WATCHDOG = 4.0
take = keeper._Keeper._take

def tell(self, message, descriptors):
    sys.stderr.write(f"heard {message.decode()}\\n")  # at once: a server writes there, too
    take(self, message, descriptors)

keeper._Keeper._take = tell
sys.exit(keeper.keep([sys.executable, "-c", *sys.argv[2:]]))
"""

ELSEWHERE = """
import sys
from lxcfs_py import cli
from lxcfs_py.linux import runtime_directory

runtime_directory.PATH = sys.argv.pop(1)
sys.exit(cli.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("covered", [False, True], ids=["removed", "covered"])
def test_a_keeper_hears_its_server_where_its_socket_is_removed_or_covered(
    require: Callable[[object, str], None], tmp_path: Path, covered: bool
) -> None:
    require(os.geteuid() == 0, "root")
    mountpoint, run = tmp_path / "mount", tmp_path / "run"
    mountpoint.mkdir()
    (tmp_path / "lxcfs.toml").write_text('[fuse]\nengine = "kernel"\n')
    served = [str(run), ELSEWHERE, str(run), "run", "--config", str(tmp_path / "lxcfs.toml"), str(mountpoint)]
    daemon = Daemon([sys.executable, "-c", HEARS, *served], mountpoint, tmp_path / "log")

    def hears(message: str) -> None:
        before = daemon.log.read_text().count(f"heard {message}")
        wait_for(lambda: daemon.log.read_text().count(f"heard {message}") > before + 1)  # one was on its way

    try:
        hears("WATCHDOG=1")
        if covered:
            syscalls.mount("none", str(run), "tmpfs")
        else:
            (keepers,) = run.glob("keeper-*")
            keepers.unlink()
        hears("WATCHDOG=1")
        (server,) = psutil.Process(daemon.process.pid).children()
        server.kill()
        wait_for(lambda: daemon.log.read_text().count("heard READY=1") >= 2)
        hears("WATCHDOG=1")
        assert "no sign of life" not in daemon.log.read_text()
        assert "nobody keeps the mount" not in daemon.log.read_text()
    finally:
        assert daemon.stop() == 0
        if covered:
            syscalls.umount(str(run))


def test_sigusr2_shows_the_machines_figures_and_back_and_no_other_signal_ends_anything(
    start_daemon: StartDaemon, sandbox: MakeSandbox
) -> None:
    daemon = start_daemon("kernel", keep=True)
    box = sandbox(memory=256 * MIB, views=daemon.mountpoint)
    host = Path("/proc/meminfo").read_text().splitlines()[0]
    mine = "MemTotal:         262144 kB"
    heeded = {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP, signal.SIGUSR2}

    def shows(line: str) -> None:
        wait_for(lambda: box.run(["head", "-n", "1", "/proc/meminfo"]).stdout.strip() == line)

    (server,) = psutil.Process(daemon.process.pid).children()
    for number in signal.valid_signals() - heeded:
        daemon.process.send_signal(number)
        server.send_signal(number)
    shows(mine)
    assert server.is_running()
    daemon.process.send_signal(signal.SIGUSR2)
    shows(host)
    server.kill()
    wait_for(lambda: daemon.log.read_text().count("INFO: serving") == 2)
    shows(host)
    daemon.process.send_signal(signal.SIGUSR2)
    shows(mine)
    assert daemon.stop() == 0
