"""The keeper, with servers that are a few lines: what they say to it, and how they end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lxcfs_py.engine.keeper import _Keeper

ROOT = Path(__file__).parents[2]

KEEPER = """
import os, signal, sys
from pathlib import Path
from lxcfs_py.engine import keeper, session
session.RUN = Path(sys.argv[1])
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


HANDS_OVER = """
say("FDSTORE=1", os.open("/dev/null", os.O_RDWR), os.memfd_create("session"))
say("FDSTOREREMOVE=1")
lives.write_text("over")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_server_that_is_killed_after_handing_over_has_ended_in_order(keep):
    assert keep(HANDS_OVER).wait(20) == 0


def test_a_keeper_that_is_to_stay_stays_however_the_server_went_that_handed_over(keep, tmp_path):
    keeper = keep(HANDS_OVER, stay=True)
    wait_for(lambda: (tmp_path / "lives").read_text() == "over")
    with pytest.raises(subprocess.TimeoutExpired):
        keeper.wait(0.5)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(20) == 0


def test_a_signal_that_comes_when_the_server_has_just_been_reaped_is_kept_in_mind():
    ended = subprocess.Popen(["true"])
    ended.wait()
    keeper = _Keeper([], None, False)
    keeper._server = ended.pid
    keeper._pass_on(signal.SIGTERM, None)
    assert keeper._told_to_stop


SIGNALLED = """
fork, tell = os.fork, lambda: os.kill(os.getpid(), signal.SIGTERM)
def told():
    {}
os.fork = told
"""


@pytest.mark.parametrize(
    "change",
    [
        "tell(); return fork()",
        "child = fork(); child and tell(); return child",
        "child = fork(); child or tell(); return child",
    ],
    ids=["before the fork", "before it is known who the server is", "before the server's program"],
)
def test_a_signal_to_stop_while_a_server_is_started_is_not_lost(keep, change):
    assert keep("time.sleep(30)", SIGNALLED.format(change)).wait(20) == 128 + signal.SIGTERM


def test_who_is_told_to_stop_between_two_servers_starts_no_other(keep, tmp_path):
    change = """
def warning(*_):
    os.kill(os.getpid(), signal.SIGTERM)
keeper.log.warning = warning
"""
    assert keep('say("FDSTORE=1", 0); time.sleep(0.1); sys.exit(3)', change).wait(20) == 0
    assert (tmp_path / "lives").read_text() == "I"


def test_a_successor_that_hangs_before_it_serves_is_killed(keep, tmp_path):
    server = """
if life == 1:
    say("FDSTORE=1", 0)
    sys.exit(3)
if life == 2:
    time.sleep(30)
"""
    assert keep(server, "keeper.START = 1.0; keeper.WATCHDOG = 0.4").wait(20) == 0
    assert (tmp_path / "lives").read_text() == "III"


def test_a_server_that_gives_no_sign_of_life_any_more_is_killed(keep, tmp_path):
    server = """
if life == 1:
    say("FDSTORE=1", 0)
    say("READY=1")
    time.sleep(30)
"""
    assert keep(server, "keeper.WATCHDOG = 0.4").wait(20) == 0
    assert (tmp_path / "lives").read_text() == "II"


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
