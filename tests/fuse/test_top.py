"""lxcfs-py top, once and in a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest

from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon

MIB = 1 << 20


def test_one_look_says_what_each_container_sees_and_uses(
    start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox], tmp_path: Path
) -> None:
    daemon = start_daemon("kernel")
    config = tmp_path / "top.toml"
    config.write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    box, bare = sandbox(memory=256 * MIB, cpus=1.5, views=daemon.mountpoint), sandbox(memory=128 * MIB)
    box.popen(["sh", "-c", "while cat /proc/uptime; do :; done"], stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "lxcfs_py", "top", "--config", str(config)]
    done = subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    rows = {row["pid"]: row for row in json.loads(done.stdout)}
    busy, idle = rows[box.init], rows[bare.init]
    assert (busy["memory_total"], busy["cpus"], busy["files"]) == (256 * MIB, 1.5, "live")
    assert (idle["memory_total"], idle["files"]) == (128 * MIB, "none")
    assert busy["cpu"] > idle["cpu"]
    assert busy["reads"] > 0


@pytest.mark.parametrize(("width", "keys", "columns"), [(80, "sort:cmliprn", 8), (200, "c:cpu m:memory", 13)])
def test_in_a_terminal_it_draws_sorts_and_ends(
    width: int,
    keys: str,
    columns: int,
    start_daemon: Callable[..., Daemon],
    sandbox: Callable[..., Sandbox],
    tmp_path: Path,
    require: Callable[[object, str], None],
) -> None:
    require(shutil.which("tmux"), "tmux")
    daemon = start_daemon("kernel")
    config = tmp_path / "top.toml"
    config.write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    box = sandbox(views=daemon.mountpoint)

    def tmux(*arguments: str) -> str:
        command = ["tmux", "-S", str(tmp_path / "tmux"), *arguments]
        # readline, which pytest has, puts the size of its own terminal into the environment, past os.environ or not.
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, env=environment)
        return done.stdout

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in tmux("capture-pane", "-p"):
            assert time.monotonic() < deadline, tmux("capture-pane", "-p")
            time.sleep(0.2)

    tmux("new-session", "-d", "-x", str(width), "-y", "10", f"{sys.executable} -m lxcfs_py top --config {config}")
    try:
        wait_for(keys)
        title, header, *rows = tmux("capture-pane", "-p").splitlines()
        assert "containers, by cpu" in title
        assert title.endswith("/:filter q:quit")
        assert len(re.split(r"[ /]+", header)) == columns
        name = box.cgroup("memory").name
        (row,) = (row for row in rows if row.partition(" ")[0].endswith(name[-9:]))
        assert row.endswith(" live")
        assert len(row) < width
        tmux("send-keys", "m")
        wait_for("containers, by memory")
        tmux("send-keys", "/", "n", "o", "n", "e", "x")
        wait_for("0 containers")
        tmux("send-keys", "Enter", "q")
        deadline = time.monotonic() + 30
        while tmux("list-sessions"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        tmux("kill-server")
