"""What came of attaching to containers as they start: what a process of the daemon's tells it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import Any, Callable

import pytest

from lxcfs_py import isolated
from lxcfs_py.attach import attach, results
from lxcfs_py.attach.attach import Outcome
from lxcfs_py.config import Attach, Config, Nri
from lxcfs_py.daemon import attaching, degraded


@pytest.mark.parametrize(
    ("outcomes", "result"),
    [
        (["attached", "kept"], "attached"),
        (["replaced"], "attached"),
        (["kept", "absent", "other"], "kept"),
        (["attached", "refused"], "refused"),
    ],
)
def test_what_came_of_a_container_follows_from_its_files(outcomes: list[str], result: str) -> None:
    assert results.of(Outcome("proc/stat", each) for each in outcomes) == result


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (attach.LeftAloneError("no"), "left alone"),
        (attach.SilentError("no"), "silent"),
        (attach.AttachError("no"), "failed"),
    ],
)
def test_what_came_of_it_follows_from_the_error(error: attach.AttachError, result: str) -> None:
    assert results.of_error(error) == result


def test_the_daemon_counts_what_its_process_and_those_that_it_forked_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told = """
import os, sys
from lxcfs_py.attach import results
for n in range(20):
    if not os.fork():
        results.tell(results.REFUSED if n % 2 else results.ATTACHED)
        os._exit(0)
os.write(1, b"whatever else\\n")
sys.stdin.read()
"""
    monkeypatch.setattr(isolated, "command", lambda module: [sys.executable, "-c", told])
    supervisor = attaching.Supervisor()
    supervisor.apply(Config(attach=Attach(auto=True), nri=Nri(enabled="off")))
    deadline = time.monotonic() + 20
    while sum(supervisor.attachments.values()) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    supervisor.stop()
    counted = {key: count for key, count in supervisor.attachments.items() if count}
    assert counted == {("auto", "attached"): 10, ("auto", "refused"): 10}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started, each of which waits for its end; nothing is degraded."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(isolated, "command", lambda module: [sys.executable, "-c", "import sys; sys.stdin.read()"])
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(attaching, "_PAUSE_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(degraded, "_states", {})
    return started


def without_a_thread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no thread of this name be had, once."""
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == name:
            monkeypatch.setattr(threading.Thread, "start", start)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_where_no_thread_can_be_had_for_a_process_the_next_reload_starts_it(
    monkeypatch: pytest.MonkeyPatch, ends: list[subprocess.Popen[bytes]]
) -> None:
    wanted = Config(attach=Attach(auto=True), nri=Nri(enabled="off"))
    supervisor = attaching.Supervisor()
    without_a_thread("supervisor", monkeypatch)
    supervisor.apply(wanted)
    assert "no process attaches to new containers: can't start new thread" in degraded.states()["auto"]
    supervisor.apply(replace(wanted, attach=Attach()))
    assert degraded.states() == {}, "nobody wants it any more"
    without_a_thread("supervisor", monkeypatch)
    supervisor.apply(wanted)
    assert degraded.states()
    supervisor.apply(wanted)
    wait_for(lambda: ends)
    assert degraded.states() == {}
    supervisor.stop()


def test_a_process_that_nobody_could_listen_to_is_ended_and_the_next_one_is_started(
    monkeypatch: pytest.MonkeyPatch, ends: list[subprocess.Popen[bytes]]
) -> None:
    supervisor = attaching.Supervisor()
    without_a_thread("results", monkeypatch)
    supervisor.apply(Config(attach=Attach(auto=True), nri=Nri(enabled="off")))
    wait_for(lambda: len(ends) == 2)
    assert ends[0].poll() is not None
    supervisor.stop()
    assert len(ends) == 2


def test_whoever_tells_a_daemon_that_has_ended_ends_quietly() -> None:
    telling = "import sys; from lxcfs_py.attach import results; sys.stdin.read(); results.tell(results.KEPT)"
    process = subprocess.Popen(
        [sys.executable, "-c", telling], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")
