"""LXC's containers hand their calls to the daemon by their monitors (lxc.seccomp.notify.proxy)."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.cgroup import layout
from lxcfs_py.config import Config
from lxcfs_py.runtimes import bind_snippets, seccomp_profile
from tests.calls import LOOP
from tests.conftest import ROOT
from tests.kept import wait_for

CONFIGURATION = """
lxc.uts.name = box
lxc.rootfs.path = dir:{tree}
lxc.net.0.type = empty
lxc.apparmor.profile = unconfined
lxc.mount.auto = proc:rw sys:rw
lxc.init.cmd = /usr/bin/sleep infinity
lxc.mount.entry = /usr usr none bind,ro 0 0
lxc.mount.entry = {shared} tmp none bind 0 0
"""

LIMITS = {
    1: "lxc.cgroup.memory.limit_in_bytes = 64M\nlxc.cgroup.cpu.cfs_quota_us = 100000\n",
    2: "lxc.cgroup2.memory.max = 64M\nlxc.cgroup2.cpu.max = 100000 100000\n",
}

ASK = """
import ctypes, json, os
info = ctypes.create_string_buffer(128)
assert ctypes.CDLL(None).sysinfo(info) == 0
total = int(open("/proc/meminfo").read().split()[1]) << 10
age = float(open("/proc/uptime").read().split()[0])
online = open("/sys/devices/system/cpu/online").read().strip()
print(json.dumps([int.from_bytes(info[32:40], "little"), total, int.from_bytes(info[:8], "little"), age,
                  sorted(os.sched_getaffinity(0)), online]))
"""


class Box:
    """An LXC container that runs."""

    def __init__(self, name: str, directory: Path, mountpoint: Path) -> None:
        self.name = name
        tree = directory / "tree"
        for each in ("dev", "etc", "proc", "sys", "tmp", "usr"):
            (tree / each).mkdir(parents=True)
        for link in ("bin", "lib", "lib64", "sbin"):
            (tree / link).symlink_to(f"usr/{link}")
        self.shared = directory / "shared"
        self.shared.mkdir()
        policy = directory / "policy"
        policy.write_text(seccomp_profile.profile(ROOT / "packaging/seccomp/lxc"))
        config = dataclasses.replace(Config(), mountpoint=str(mountpoint))
        snippet = bind_snippets.snippet("lxc", config, syscalls=True)
        version = layout.find().hierarchies["memory"].version
        text = CONFIGURATION.format(tree=tree, shared=self.shared) + LIMITS[version]
        text += snippet.replace(seccomp_profile.INSTALLED_FOR_LXC, str(policy))
        (directory / "config").write_text(text)
        self._log = directory / "log"
        self._run("lxc-start", "--rcfile", str(directory / "config"), "--logfile", str(self._log), "-l", "INFO")

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run([program, "--name", self.name, *arguments], capture_output=True, text=True, timeout=60)
        log = self._log.read_text() if self._log.exists() else ""
        assert done.returncode == 0, done.stdout + done.stderr + log[-3000:]
        return done.stdout

    def popen(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["lxc-attach", "--name", self.name, "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str) -> str:
        return self._run("lxc-attach", "--", *command)

    def stop(self) -> None:
        self._run("lxc-stop", "--kill")


@pytest.fixture
def box(require, tmp_path, request):
    """Start one with the files of a daemon."""
    require(shutil.which("lxc-start"), "lxc")
    started = []

    def start(daemon, name="box") -> Box:
        directory = tmp_path / name
        directory.mkdir()
        made = Box(f"lxcfs-py-test-{name}", directory, daemon.mountpoint)
        started.append(made)
        return made

    yield start
    for each in started:
        each.stop()


def test_a_container_of_lxcs_is_told_what_its_files_say(start_daemon, box):
    container = box(start_daemon())
    memory, total, uptime, age, cpus, online = json.loads(container.run("/usr/bin/python3", "-c", ASK))
    assert memory == total == 64 << 20
    assert abs(uptime - age) < 2
    assert len(cpus) == 1
    assert str(cpus[0]) == online


def test_no_call_of_lxcs_containers_fails_while_servers_die(start_daemon, box):
    daemon = start_daemon(keep=True)
    boxes = [box(daemon, name) for name in ("one", "two")]
    loops = [each.popen("/usr/bin/python3", "-c", LOOP, "/tmp/enough") for each in boxes for _ in range(2)]
    try:
        assert [loop.stdout.readline() for loop in loops] == ["begun\n"] * len(loops)
        for served in range(1, 11):
            wait_for(lambda served=served: daemon.log.read_text().count("INFO: serving") >= served)
            time.sleep(0.05)
            (server,) = psutil.Process(daemon.process.pid).children()
            server.kill()
            server.wait(10)
    finally:
        for each in boxes:
            (each.shared / "enough").touch()
        said = [loop.communicate(timeout=60) for loop in loops]
    assert [loop.returncode for loop in loops] == [0] * len(loops), said
    for out, _ in said:
        print(out, end="")
