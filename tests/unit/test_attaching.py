"""What came of attaching to containers as they start: what a process of the daemon's tells it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from lxcfs_py import isolated
from lxcfs_py.attach import attach, results
from lxcfs_py.attach.attach import Outcome
from lxcfs_py.config import Attach, Config, Nri
from lxcfs_py.daemon import attaching


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
