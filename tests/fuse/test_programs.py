"""The part of tests/programs that needs no image: programs that every machine for tests has, in small containers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import unmount_below
from tests.programs import observed
from tests.programs.judged import judge
from tests.programs.observed import CONTAINERS, LOAD, Sayings
from tests.programs.table import Seen, rows

SUITE = "bookworm"
NAMES = (
    *("free-memory", "top-memory", "vmstat-s-memory", "uptime-load", "uptime-age", "lscpu-cpus", "taskset-cpus"),
    *("getconf-cpus", "getconf-memory", "busybox-uptime-load", "mpstat-cpus", "python-cpus", "python-load"),
)
ROWS = [row for row in rows(SUITE) if row.name in NAMES]


@pytest.fixture(scope="module")
def said(start_shared_daemon, tmp_path_factory) -> Iterator[dict[str, Sayings]]:
    daemon = start_shared_daemon()
    directory = tmp_path_factory.mktemp("programs")
    observed.write_scripts(directory, ROWS)
    host = directory / "host"
    host.mkdir()
    machine = Seen(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), os.cpu_count() or 1, 0, 0)
    agent = [sys.executable, str(directory / "filtered.py"), seccomp_profile.socket_of(str(daemon.mountpoint))]
    ways = {"files": ([], ROWS), "agent": (agent, [row for row in ROWS if row.asks(SUITE).is_a_call])}

    def run(name: str, way: str) -> tuple[str, dict[str, observed.Said]]:
        prefix, asked = ways[way]
        limits = CONTAINERS[name]
        with Sandbox(memory=limits.memory, cpus=limits.cpus, views=Path(daemon.mountpoint)) as box:
            command = [*prefix, "env", f"HOST={host}", "bash", str(directory / "run.sh"), *(row.name for row in asked)]
            return name, dict(observed.sections(box.run(command, check=True).stdout, limits, machine))

    with contextlib.ExitStack() as stack:
        stack.callback(unmount_below, host)
        for name in ("uptime", "loadavg"):
            (host / name).touch()
            syscalls.mount(f"/proc/{name}", str(host / name), flags=syscalls.MS_BIND)
        command = [sys.executable, directory / "waiting.py", str(LOAD), directory / "pipe"]
        waiting = subprocess.Popen(command, start_new_session=True)
        stack.callback(waiting.wait)
        stack.callback(os.killpg, waiting.pid, signal.SIGKILL)
        with ThreadPoolExecutor() as pool:
            yield {way: dict(pool.map(lambda name, way=way: run(name, way), CONTAINERS)) for way in ways}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_program_says_what_the_table_has(row, said, require):
    require((os.cpu_count() or 1) >= 2, "two CPUs")
    judge(row, SUITE, {**said, "clock": {}})
