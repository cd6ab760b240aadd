import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from lxcfs_py import lxcfs
from lxcfs_py.config import Config, Cpu, Fuse, Loadavg, Log, Memory
from lxcfs_py.daemon import service
from tests.conftest import ROOT

PLAIN = Config(cpu=Cpu(mode="cpuset"), loadavg=Loadavg(enabled=False))
"""What the C program does without flags."""


@pytest.fixture(autouse=True)
def _signals_stay_the_tests(monkeypatch):
    """Daemons that are processes of their own ignore them."""
    monkeypatch.setattr(lxcfs.signals, "ignore_all_but", lambda *_: None)


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Runs lxcfs with flags in the foreground; the configuration that the service got."""

    def run(*flags):
        got = []

        def serve(config, ready):
            ready()
            got.append(config)
            return 7

        monkeypatch.setattr(service, "serve", serve)
        assert lxcfs.main(["-f", "-p", str(tmp_path / "pid"), *flags]) == 7
        return got[0]

    return run


@pytest.mark.parametrize(
    ("flags", "config"),
    [
        ("", PLAIN),
        ("-l", Config(cpu=Cpu(mode="cpuset"))),
        ("--enable-loadavg", Config(cpu=Cpu(mode="cpuset"))),
        ("--enable-cfs -l", Config()),
        ("-lu --enable-cfs", Config(memory=Memory(swap=False))),
        ("-l --disable-swap --enable-cfs", Config(memory=Memory(swap=False))),
        ("-ld --enable-cfs", Config(log=Log(level="debug"))),
        ("-l --debug --enable-cfs", Config(log=Log(level="debug"))),
        ("-sl --enable-cfs", Config(fuse=Fuse(threads=1))),
        ("--enable-pidfd", PLAIN),
        ("-z --disable-zswap --enable-psi-poll --enable-cgroup", PLAIN),
        ("-zluf --enable-cfs --enable-cgroup", Config(memory=Memory(swap=False))),
        ("--foreground", PLAIN),
        ("-o allow_other", PLAIN),
        ("-oallow_other,nonempty,ro,default_permissions,entry_timeout=0.5 -o fsname=lxcfs", PLAIN),
    ],
)
def test_flags_set_what_the_keys_of_the_file_set(served, flags, config):
    assert served(*flags.split(), "/var/lib/lxcfs") == config


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("context=system_u:object_r:container_file_t:s0", "context=system_u:object_r:container_file_t:s0"),
        ('allow_other,context="a_u:b_r:c_t:s0:c1,c2",nonempty', 'context="a_u:b_r:c_t:s0:c1,c2"'),
        ("fscontext=a:b:c,ro,rootcontext=d:e:f", "fscontext=a:b:c,rootcontext=d:e:f"),
    ],
)
def test_what_selinux_is_to_make_of_the_mount_is_passed_on(served, given, taken):
    assert served("-o", given, "/var/lib/lxcfs").fuse.options == taken
    assert served("-o", "ro", "-o", given, "/var/lib/lxcfs").fuse.options == taken


def test_the_mountpoint_may_stand_before_the_flags(served):
    assert served("/srv/views", "-l").mountpoint == "/srv/views"


def test_a_relative_mountpoint_is_below_the_directory_of_the_caller(served, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert served("views").mountpoint == f"{tmp_path}/views"


def test_what_libfuse_takes_is_taken_without_a_word(served, caplog):
    options = (
        "umask=022,uid=0,gid=0,use_ino,auto_cache,noforget,hard_remove,max_background=12,congestion_threshold=9,clone_fd,"
        "max_idle_threads=10,max_threads=10,splice_read,no_splice_write,intr,allow_root,debug,attr_timeout=1"
    )
    assert served("-o", options, "/var/lib/lxcfs") == PLAIN
    assert not caplog.text


def test_an_unknown_mount_option_is_a_warning(served, caplog):
    assert served("-o", "allow_other,bogus=1", "/var/lib/lxcfs") == PLAIN
    assert caplog.messages == [
        'the mount option "bogus=1" is accepted and has no effect: neither libfuse nor mount(8) knows it'
    ]


@pytest.mark.parametrize(
    ("mountpoint", "said"),
    [
        ("", "an empty path is no mountpoint: name a directory"),
        ("/", "/ is the root directory: name a directory other than that"),
        ("/tmp/..", "/tmp/.. is the root directory: name a directory other than that"),
        ("/sys/x", "/sys/x is in /sys, where nothing may be covered: name a directory elsewhere"),
    ],
)
def test_what_can_be_no_mountpoint_is_refused(capsys, mountpoint, said):
    with pytest.raises(SystemExit) as caught:
        lxcfs.main(["-f", mountpoint])
    assert caught.value.code == 2
    assert f"lxcfs: error: argument MOUNTPOINT: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", ""], "argument -p/--pidfile: an empty path is no pidfile: name a file"),
        (["--runtime-dir", ""], "argument --runtime-dir: an empty path is no directory: name one"),
    ],
    ids=["pidfile", "directory"],
)
def test_an_empty_path_is_refused(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(service, "serve", pytest.fail)
    with pytest.raises(SystemExit) as caught:
        lxcfs.main(["-f", *arguments, "/mnt"])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_full_disk_is_one_sentence(argument):
    command = [sys.executable, "-c", "import sys\nfrom lxcfs_py import lxcfs\nsys.exit(lxcfs.main())", argument]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "lxcfs: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("arguments", [[], ["/a", "/b"], ["--cgroup", "/a"]])
def test_a_wrong_command_line_is_refused(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        lxcfs.main(arguments)
    assert caught.value.code == 2
    assert "lxcfs: error: " in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "text"), [("-v", "lxcfs-py "), ("--version", "lxcfs-py "), ("-h", "usage: lxcfs ")])
def test_version_and_help_need_no_mountpoint(capsys, flag, text):
    with pytest.raises(SystemExit) as caught:
        lxcfs.main([flag])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(text)


def test_the_pidfile_has_the_process_id_while_it_serves(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(service, "serve", lambda *_: seen.append((tmp_path / "lxcfs.pid").read_text()) or 0)
    assert lxcfs.main(["-f", "--runtime-dir", str(tmp_path), "/mnt"]) == 0
    assert seen == [f"{os.getpid()}\n"]
    assert not (tmp_path / "lxcfs.pid").exists()


def test_a_pidfile_that_nobody_holds_is_replaced(monkeypatch, tmp_path):
    pidfile = tmp_path / "lxcfs.pid"
    pidfile.write_text("1234567890\n")  # longer than a process id
    seen = []
    monkeypatch.setattr(service, "serve", lambda *_: seen.append(pidfile.read_text()) or 0)
    assert lxcfs.main(["-f", "-p", str(pidfile), "/mnt"]) == 0
    assert seen == [f"{os.getpid()}\n"]


def test_a_pidfile_that_a_living_process_holds_is_refused_with_its_id(monkeypatch, tmp_path, capsys):
    pidfile = tmp_path / "lxcfs.pid"
    pidfile.write_text("4711\n")
    monkeypatch.setattr(service, "serve", lambda *_: pytest.fail("served"))
    with pidfile.open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert lxcfs.main(["-f", f"--pidfile={pidfile}", "/mnt"]) == 1
    assert capsys.readouterr().err == f"lxcfs: process 4711 runs already and holds the pidfile {pidfile}\n"
    assert pidfile.read_text() == "4711\n"


def test_a_pidfile_that_its_holder_has_just_removed_is_taken_anew(monkeypatch, tmp_path):
    pidfile = tmp_path / "lxcfs.pid"
    flock = fcntl.flock

    def remove_before_the_first_lock(file, operation):
        monkeypatch.setattr(fcntl, "flock", flock)
        pidfile.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_before_the_first_lock)
    seen = []
    monkeypatch.setattr(service, "serve", lambda *_: seen.append(pidfile.read_text()) or 0)
    assert lxcfs.main(["-f", "-p", str(pidfile), "/mnt"]) == 0
    assert seen == [f"{os.getpid()}\n"]


def test_a_pidfile_that_cannot_be_written_is_an_error_with_the_kernels_words(tmp_path, capsys):
    assert lxcfs.main(["-f", "-p", str(tmp_path / "none" / "pid"), "/mnt"]) == 1
    assert capsys.readouterr().err == (
        f"lxcfs: the pidfile {tmp_path}/none/pid cannot be written: No such file or directory\n"
    )


def test_a_pidfile_that_is_no_regular_file_is_an_error_that_names_it(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    for path in (str(tmp_path / "fifo"), "/dev/full"):
        assert lxcfs.main(["-f", "-p", path, "/mnt"]) == 1
        assert capsys.readouterr().err == f"lxcfs: the pidfile {path} cannot be written: it is no regular file\n"


def test_a_pidfile_on_a_full_disk_is_an_error_that_names_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(os, "write", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert lxcfs.main(["-f", "-p", str(tmp_path / "pid"), "/mnt"]) == 1
    assert capsys.readouterr().err == (
        f"lxcfs: the pidfile {tmp_path}/pid cannot be written: No space left on device\n"
    )


def test_the_pidfile_is_removed_when_the_service_does_not_start(monkeypatch, tmp_path, capsys):
    def serve(config, ready):
        raise service.MountError(f"{config.mountpoint} is no directory")

    monkeypatch.setattr(service, "serve", serve)
    assert lxcfs.main(["-f", "-p", str(tmp_path / "pid"), "/mnt/x"]) == 1
    assert capsys.readouterr().err == "lxcfs: /mnt/x is no directory\n"
    assert not (tmp_path / "pid").exists()


PROGRAM = """
import os, signal, sys, time
from lxcfs_py import lxcfs
from lxcfs_py.daemon import service

caller = os.getpid()

def serve(config, ready):
    {}

service.serve = serve
sys.exit(lxcfs.main(sys.argv[1:]))
"""

UNTIL_SIGTERM = """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print("starting", flush=True)
    time.sleep(0.5)
    os.mkdir(config.mountpoint)
    ready()
    print("nobody reads this", flush=True)
    signal.sigwait([signal.SIGTERM])
    return 0
"""


@pytest.fixture
def in_background(tmp_path):
    """Runs lxcfs in the background, in tmp_path, with a service of the lines given; its end there stops the daemon."""

    def run(serve, *flags):
        command = [sys.executable, "-c", PROGRAM.format(serve), "-p", "pid", *flags, "views"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    yield run
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_caller_returns_when_the_daemon_is_ready_and_no_sooner(in_background, tmp_path):
    # capture_output waits for the end of both outputs: the daemon has let go of them too.
    done = in_background(UNTIL_SIGTERM)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "starting\n"
    assert (tmp_path / "views").exists()


def test_a_daemon_has_its_own_session_no_terminal_and_no_directory(in_background, tmp_path):
    in_background(UNTIL_SIGTERM)
    pid = int((tmp_path / "pid").read_text())
    process = Path(f"/proc/{pid}")
    assert os.getsid(pid) not in (os.getsid(0), pid)
    assert (process / "cwd").readlink() == Path("/")
    assert [(process / "fd" / str(fd)).readlink() for fd in range(3)] == [Path("/dev/null")] * 3


def test_closed_streams_are_no_reason_to_fail(tmp_path):
    program = PROGRAM.format("print('starting', file=sys.stderr); print(ready, file=sys.stdout)")
    command = [sys.executable, "-c", program, "-f", "-p", "pid", "views"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *command], cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 0


def test_a_stopped_daemon_removes_its_pidfile(in_background, tmp_path):
    in_background(UNTIL_SIGTERM)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
    until(lambda: not (tmp_path / "pid").exists())


def test_no_other_signal_ends_the_daemon(in_background, tmp_path):
    in_background("signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); ready(); time.sleep(60)")
    pid = int((tmp_path / "pid").read_text())
    for number in signal.valid_signals() - {signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGSTOP}:
        os.kill(pid, number)
        time.sleep(0.005)
        os.kill(pid, 0)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not (tmp_path / "pid").exists())


def test_a_second_daemon_is_refused_with_the_first_ones_id(in_background, tmp_path):
    in_background(UNTIL_SIGTERM)
    first = (tmp_path / "pid").read_text().strip()
    second = in_background(UNTIL_SIGTERM)
    assert second.returncode == 1
    assert second.stderr.startswith(f"lxcfs: process {first} runs already and holds the pidfile {tmp_path}/pid\n")
    assert (tmp_path / "pid").read_text().strip() == first


def test_the_caller_hears_why_a_daemon_has_not_started(in_background, tmp_path):
    done = in_background("raise service.MountError(f'{config.mountpoint} is no directory')")
    assert done.returncode == 1
    assert done.stderr == (
        f"lxcfs: {tmp_path}/views is no directory\nlxcfs: the daemon ended before its mount was ready\n"
    )
    assert not (tmp_path / "pid").exists()


def test_the_caller_hears_of_a_daemon_that_was_killed_before_it_was_ready(in_background):
    done = in_background("os.kill(os.getpid(), signal.SIGKILL)")
    assert (done.returncode, done.stderr) == (1, "lxcfs: the daemon ended before its mount was ready\n")


CALLER_DIES = """
    os.kill(caller, signal.SIGKILL)
    while open(f"/proc/{caller}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    ready()
    open(config.mountpoint, "w").close()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.sigwait([signal.SIGTERM])
"""


def test_a_daemon_whose_caller_is_gone_serves_and_lets_go_of_its_files(in_background, tmp_path):
    assert in_background(CALLER_DIES).returncode == -signal.SIGKILL
    until((tmp_path / "views").exists)
    standard = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/fd")
    assert [(standard / str(fd)).readlink() for fd in range(3)] == [Path("/dev/null")] * 3


@pytest.mark.usefixtures("in_background")
def test_a_caller_without_standard_files_hears_that_the_daemon_is_ready(tmp_path):
    # The pipe between the two then has the numbers of the standard files.
    command = [
        "sh",
        "-c",
        '"$0" -c "$1" -p pid views <&- >&- 2>&-',
        sys.executable,
        PROGRAM.format("ready(); time.sleep(60)"),
    ]
    assert subprocess.run(command, cwd=tmp_path, timeout=60, check=False).returncode == 0
    assert (tmp_path / "pid").exists()
