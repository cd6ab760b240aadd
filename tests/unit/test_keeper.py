"""The keeper, with servers that are a few lines: what they say to it, and how they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lxcfs_py.engine import session
from lxcfs_py.engine.keeper import _Keeper, _listening
from lxcfs_py.linux import runtime_directory

ROOT = Path(__file__).parents[2]

KEEPER = """
import os, signal, sys
from pathlib import Path
from lxcfs_py.engine import keeper, session
from lxcfs_py.linux import runtime_directory
runtime_directory.PATH = sys.argv[1]
keeper.node_keeper.BUS = sys.argv[1] + "/no-bus"
{change}
sys.exit(keeper.keep([sys.executable, "-c", sys.argv[2]], stay={stay}))
"""

SERVER = """
import os, pathlib, signal, socket, sys, time
lives = pathlib.Path(os.environ["LIVES"])
lives.write_text(lives.read_text() + "I")
life = len(lives.read_text())
def say(message, *descriptors):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(notify, [message.encode()], descriptors)
"""


@pytest.fixture
def keep(tmp_path):
    """keep(server, change, stay): a keeper of that server, whose modules `change` has changed."""
    run = tmp_path / "run"
    lives = tmp_path / "lives"
    lives.touch()
    started = []

    def start(server, change="", stay=False):
        script = KEEPER.format(change=change, stay=stay)
        command = [sys.executable, "-c", script, str(run), SERVER + server]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env={"LIVES": str(lives)}, text=True, stderr=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its server
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


MOUNTED = """
import fcntl, pty, subprocess
from lxcfs_py.engine import session
if life == 1:
    other, fuse = pty.openpty()
    memory = session.new_memory("/srv/views")
    say("FDSTORE=1\\nFDNAME=lxcfs", fuse, memory)
    # The kernel's end of it.
    subprocess.Popen(["sleep", "30"], pass_fds=[other], stderr=subprocess.DEVNULL)
else:
    assert os.environ["LISTEN_FDNAMES"] == "lxcfs:lxcfs"
    fuse, memory = 3, 4
"""

# Another server, that has the session and lives for a while.
HANDS_OVER = (
    MOUNTED
    + """
if life == 1:
    subprocess.Popen(
        [sys.executable, "-c", "import fcntl, time; fcntl.lockf(3, fcntl.LOCK_EX); time.sleep(float('%s'))"],
        preexec_fn=lambda: os.dup2(memory, 3),
        pass_fds=[3],
    )
    {said}
    lives.write_text("over")
    os.kill(os.getpid(), signal.SIGKILL)
lives.write_text("again")
time.sleep(30)
"""
)
SAYS = ('say("X_HANDED_OVER=1")', 'say("FDSTOREREMOVE=1\\nFDNAME=lxcfs")')


@pytest.mark.parametrize("said", SAYS, ids=["this version", "version 0.1"])
def test_a_server_that_is_killed_after_handing_over_has_ended_in_order(keep, said):
    assert keep(HANDS_OVER.replace("{said}", said) % 30).wait(20) == 0


def test_a_keeper_that_is_to_stay_serves_again_when_nobody_does_any_more(keep, tmp_path):
    keeper = keep(HANDS_OVER.replace("{said}", SAYS[0]) % 1.5, stay=True)
    wait_for(lambda: (tmp_path / "lives").read_text() == "over")
    with pytest.raises(subprocess.TimeoutExpired):
        keeper.wait(0.5)
    wait_for(lambda: (tmp_path / "lives").read_text() == "again")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 0


def test_a_keeper_that_is_told_to_stop_leaves_the_mount_to_whoever_else_serves_it(keep, tmp_path):
    said = """while not session.is_served(memory): time.sleep(0.01)
    lives.write_text("over")
    time.sleep(30)"""
    unmounts = 'keeper.mountpoint.unmount_all = lambda _: Path(os.environ["LIVES"]).write_text("unmounted")'
    keeper = keep(HANDS_OVER.replace("{said}", said) % 30, unmounts)
    wait_for(lambda: (tmp_path / "lives").read_text() == "over")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 0
    assert (tmp_path / "lives").read_text() == "over"


def test_a_session_whose_new_server_dies_before_it_has_it_is_served_again(keep, tmp_path):
    server = (
        MOUNTED
        + """
if life == 1:
    say("X_HANDED_OVER=1")
    sys.exit(0)
time.sleep(30)
"""
    )
    keep(server, "session.PATIENCE = 0.3")
    wait_for(lambda: (tmp_path / "lives").read_text() == "II")


@pytest.mark.slow
def test_starts_never_end_while_there_is_a_session_and_get_further_apart(keep, tmp_path):
    server = (
        MOUNTED
        + """
lives.with_name(f"start-{life}").write_text(str(time.monotonic()))
sys.exit(3)
"""
    )
    keep(server, "keeper.PAUSES = 0.01, 1.0")
    wait_for(lambda: (tmp_path / "start-12").exists() and (tmp_path / "start-12").read_text())
    starts = [float((tmp_path / f"start-{life}").read_text()) for life in range(2, 13)]
    assert starts[-1] - starts[-2] > starts[2] - starts[1]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGALRM, signal.SIGQUIT, signal.SIGPIPE, signal.SIGRTMIN])
def test_no_other_signal_ends_a_keeper_or_reaches_its_server(keep, tmp_path, number):
    heeds = 'signal.signal(signal.SIGUSR2, lambda *_: lives.write_text("told"))'
    keeper = keep(f'{heeds}; say("READY=1"); lives.write_text("ready"); time.sleep(30)')
    wait_for(lambda: (tmp_path / "lives").read_text() == "ready")
    keeper.send_signal(number)
    keeper.send_signal(signal.SIGUSR2)
    wait_for(lambda: (tmp_path / "lives").read_text() == "told")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 0


def test_a_keeper_works_where_its_directory_cannot_be_used(keep, tmp_path):
    (tmp_path / "run").touch()  # no directory
    keeper = keep(MOUNTED + 'say("READY=1"); time.sleep(30 if life > 1 else 0.1); sys.exit(3)')
    wait_for(lambda: (tmp_path / "lives").read_text() == "II")
    keeper.send_signal(signal.SIGTERM)
    _, said = keeper.communicate(timeout=20)
    assert "the keeper's socket is elsewhere" in said
    assert "Traceback" not in said


def test_a_keeper_removes_the_sockets_of_those_that_were_killed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lives:
        lives.bind(str(tmp_path / "keeper-lives"))
        for name in ("keeper-killed", "keeper-just-made", "another"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
                killed.bind(str(tmp_path / name))
        (tmp_path / "keeper-file").touch()
        for path in tmp_path.iterdir():
            if path.name != "keeper-just-made":
                os.utime(path, (0, 0))
        with _listening() as notified:
            own = Path(notified.getsockname()).name
            left = {path.name for path in tmp_path.iterdir()}
    assert left == {own, "keeper-lives", "keeper-just-made", "keeper-file", "another"}
    assert own.startswith("keeper-")
    assert own not in os.listdir(tmp_path)


def test_a_signal_that_comes_when_the_server_has_just_been_reaped_is_kept_in_mind():
    ended = subprocess.Popen(["true"])
    ended.wait()
    keeper = _Keeper([], None, None, False, "")
    keeper._server = ended.pid
    keeper._pass_on(signal.SIGTERM, None)
    assert keeper._told_to_stop


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_that_comes_before_the_next_server_is_ready_reaches_it_then(keep, tmp_path, number):
    server = (
        MOUNTED
        + """
if life == 1:
    say("READY=1")
    os.kill(os.getpid(), signal.SIGKILL)
while not lives.with_name("sent").exists():
    time.sleep(0.01)
for number in (signal.SIGHUP, signal.SIGUSR2):
    signal.signal(number, lambda came, _: lives.write_text(str(came)))
say("READY=1")
time.sleep(30)
"""
    )
    keeper = keep(server)
    wait_for(lambda: (tmp_path / "lives").read_text() == "II")
    keeper.send_signal(number)
    time.sleep(0.3)
    (tmp_path / "sent").touch()
    wait_for(lambda: (tmp_path / "lives").read_text() == str(int(number)))


def test_two_signals_of_which_each_takes_back_the_other_are_none():
    keeper = _Keeper([], None, None, False, "")
    for number in (signal.SIGUSR2, signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
        keeper._pass_on(number, None)
    assert keeper._noted == {signal.SIGHUP}


SIGNALLED = """
fork, tell = os.fork, lambda: os.kill(os.getpid(), signal.SIGTERM)
def told():
    {}
os.fork = told
"""


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("tell(); return fork()", 0),
        ("child = fork(); child and tell(); return child", 0),
        ("child = fork(); child or tell(); return child", 128 + signal.SIGTERM),  # it alone is told
    ],
    ids=["before the fork", "before it is known who the server is", "before the server's program"],
)
def test_a_signal_to_stop_while_a_server_is_started_is_not_lost(keep, change, status):
    assert keep("time.sleep(30)", SIGNALLED.format(change)).wait(20) == status


def test_who_is_told_to_stop_between_two_servers_starts_no_other(keep, tmp_path):
    change = """
def warning(*_):
    os.kill(os.getpid(), signal.SIGTERM)
keeper.log.warning = warning
"""
    assert keep(MOUNTED + "time.sleep(0.1); sys.exit(3)", change).wait(20) == 0
    assert (tmp_path / "lives").read_text() == "I"


def test_a_successor_that_hangs_before_it_serves_is_killed(keep, tmp_path):
    server = (
        MOUNTED
        + """
if life == 1:
    sys.exit(3)
if life == 2:
    time.sleep(30)
"""
    )
    assert keep(server, "keeper.START = 2.0; keeper.WATCHDOG = 0.4").wait(20) == 0
    assert (tmp_path / "lives").read_text() == "III"


def test_a_server_that_gives_no_sign_of_life_any_more_is_killed(keep, tmp_path):
    server = (
        MOUNTED
        + """
if life == 1:
    say("READY=1")
    time.sleep(30)
"""
    )
    assert keep(server, "keeper.WATCHDOG = 0.4").wait(20) == 0
    assert (tmp_path / "lives").read_text() == "II"


HEARD = """
take = keeper._Keeper._take
def tell(self, message, descriptors):
    print("heard", message.decode(), file=sys.stderr, flush=True)
    take(self, message, descriptors)
keeper._Keeper._take = tell
"""


@pytest.mark.parametrize(
    "goes", ["os.unlink(address)", "os.rename(os.path.dirname(address), lives.with_name('away'))"], ids=["it", "above"]
)
def test_a_server_is_heard_where_the_keepers_address_is_gone(keep, goes):
    server = f"""
from lxcfs_py.linux.notify import notify
address = os.environ["NOTIFY_SOCKET"]
{goes}
notify("STATUS=from afar")
notify("FDSTORE=1\\nFDNAME=other", [0])
"""
    keeper = keep(server, HEARD)
    assert keeper.wait(20) == 0
    said = keeper.stderr.read()
    assert "heard STATUS=from afar\n" in said
    assert "heard FDSTORE=1\nFDNAME=other\n" in said


def test_a_server_that_does_not_heed_that_it_is_to_stop_is_killed(keep, tmp_path):
    server = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say("READY=1")
lives.write_text("deaf")
time.sleep(60)
"""
    keeper = keep(MOUNTED + server, "keeper.STOP = 0.3; keeper.WATCHDOG = 3600.0")
    wait_for(lambda: (tmp_path / "lives").read_text() == "deaf")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 128 + signal.SIGKILL


@pytest.mark.slow
def test_one_that_says_that_it_stops_may_take_longer(keep, tmp_path):
    server = """
def stop(*_):
    say("STOPPING=1")
    time.sleep(5)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
say("READY=1")
lives.write_text("serves")
time.sleep(60)
"""
    keeper = keep(MOUNTED + server, "keeper.STOP = 3.0")
    wait_for(lambda: (tmp_path / "lives").read_text() == "serves")
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 0


def test_keepers_that_have_the_same_process_id_share_a_directory(keep, tmp_path):
    server = """
lives.with_name(os.environ["NAME"]).write_text(os.environ["NOTIFY_SOCKET"])
time.sleep(30)
"""
    addresses = [tmp_path / name for name in ("one", "other")]
    keepers = [keep(server, f"os.getpid = lambda: 1; os.environ['NAME'] = '{each.name}'") for each in addresses]
    wait_for(lambda: all(each.exists() and each.read_text() for each in addresses))
    assert {Path(each.read_text()) for each in addresses} == set((tmp_path / "run").iterdir())
    assert len(set((tmp_path / "run").iterdir())) == 2
    for keeper in keepers:
        keeper.send_signal(signal.SIGTERM)
        keeper.wait(20)
    assert not list((tmp_path / "run").iterdir())


NO_FORK = """
fork, failures = os.fork, iter([False, True, True])
def fork_or_fail():
    if next(failures, False):
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fork_or_fail
"""

DEAF = """
take, failures = keeper._Keeper._take, iter([False, True])
def take_or_fail(self, message, descriptors):
    if next(failures, False):
        raise MemoryError
    take(self, message, descriptors)
keeper._Keeper._take = take_or_fail
"""


@pytest.mark.parametrize(
    ("change", "said"), [(NO_FORK, "no server can be started"), (DEAF, "could not be done")], ids=["no fork", "deaf"]
)
def test_a_keeper_goes_on_whatever_it_cannot_do(keep, tmp_path, change, said):
    server = (
        MOUNTED
        + """
if life == 1:
    say("STATUS=x")
    time.sleep(0.3)
    sys.exit(3)
"""
    )
    keeper = keep(server, change)
    assert keeper.wait(20) == 0
    assert said in keeper.stderr.read()
    assert (tmp_path / "lives").read_text() == "II"


def test_a_pod_that_has_taken_back_what_the_node_holds_leaves_it_there_when_it_is_told_to_stop(keep, tmp_path):
    held = """
import pty
memory = session.new_memory("/srv/views")
keeper.node_keeper.take_back = lambda: [pty.openpty()[1], memory]
keeper.session.is_over = lambda fuse: False
keeper.mountpoint.unmount_all = lambda path: print("unmounted", path, file=sys.stderr, flush=True)
"""
    server = """
assert os.environ["LISTEN_FDNAMES"] == "lxcfs:lxcfs"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
say("READY=1")
time.sleep(30)
"""
    keeper = keep(server, held, stay=True)
    wait_for(lambda: (tmp_path / "lives").read_text() == "I")
    time.sleep(0.3)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 0
    assert "unmounted" not in keeper.stderr.read()


def test_of_two_memory_files_that_which_is_served_says_whether_a_successor_has_come_to_serve(monkeypatch):
    """After one could not be used, there are two."""
    old, new = os.memfd_create("old"), os.memfd_create("new")
    os.truncate(new, 4096)
    kept = object.__new__(_Keeper)
    kept._kept = {"lxcfs": [old, new]}
    monkeypatch.setattr(session, "is_served", lambda memory: memory == new)
    try:
        assert kept._has_come_to_serve()
        os.pwrite(new, b"\1", 4096 - 4)
        assert not kept._has_come_to_serve()
    finally:
        os.close(old)
        os.close(new)
