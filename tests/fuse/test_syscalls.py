"""Programs that ask the kernel get what the files say, also while servers die."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.runtimes import seccomp_profile
from tests.kept import wait_for

FILTERED = Path(__file__).parent.parent / "filtered.py"

ASK = """
import os
memory = {line.split(":")[0]: int(line.split()[1]) for line in open("/proc/meminfo")}
assert os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") == memory["MemTotal"] << 10, memory
load = [float(word) for word in open("/proc/loadavg").read().split()[:3]]
assert all(abs(a - b) < 0.02 for a, b in zip(os.getloadavg(), load)), (os.getloadavg(), load)
online = open("/sys/devices/system/cpu/online").read().strip()
assert len(os.sched_getaffinity(0)) == 1, os.sched_getaffinity(0)
assert os.sched_getaffinity(0) == os.sched_getaffinity(os.getpid()) == {int(online)}
print("agreed")
"""

LOOP = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None, use_errno=True)
info = ctypes.create_string_buffer(128)
longest = calls = 0
print("begun", flush=True)
while not os.path.exists(sys.argv[1]):
    began = time.monotonic()
    assert libc.sysinfo(info) == 0, os.strerror(ctypes.get_errno())
    assert int.from_bytes(info[32:40], "little") == 64 << 20, info[32:40]
    assert len(os.sched_getaffinity(0)) == 1
    longest, calls = max(longest, time.monotonic() - began), calls + 1
print(calls, "calls, the longest took", round(longest * 1000), "ms")
"""


def filtered(daemon, *command):
    return [sys.executable, str(FILTERED), seccomp_profile.socket_of(str(daemon.mountpoint)), *command]


def test_what_the_kernel_says_is_what_the_files_say(start_daemon, sandbox):
    daemon = start_daemon()
    box = sandbox(memory=64 << 20, cpus=1, views=daemon.mountpoint)
    answer = box.run(filtered(daemon, sys.executable, "-c", ASK))
    assert answer.stdout == "agreed\n", answer.stderr


def test_two_containers_get_each_their_own(start_daemon, sandbox):
    daemon = start_daemon()
    pages = {
        memory: sandbox(memory=memory << 20, views=daemon.mountpoint).run(filtered(daemon, "getconf", "_PHYS_PAGES"))
        for memory in (64, 96)
    }
    assert {memory: int(answer.stdout) * 4096 >> 20 for memory, answer in pages.items()} == {64: 64, 96: 96}


def test_errors_are_the_kernels(start_daemon, sandbox):
    daemon = start_daemon()
    program = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
mask = ctypes.create_string_buffer(128)
def said(result): return errno.errorcode[ctypes.get_errno()] if result < 0 else result
print(said(libc.sysinfo(ctypes.c_void_p(8))), said(libc.sched_getaffinity(0, 1, mask)),
      said(libc.sched_getaffinity(999999, 128, mask)))
"""
    answer = sandbox(views=daemon.mountpoint).run(filtered(daemon, sys.executable, "-c", program))
    assert answer.stdout == "EFAULT EINVAL ESRCH\n", answer.stderr


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_no_call_fails_while_servers_die(start_daemon, sandbox, tmp_path, kills):
    daemon = start_daemon(keep=True)
    flag = tmp_path / "enough"
    box = sandbox(memory=64 << 20, cpus=1, views=daemon.mountpoint)
    loops = [
        box.popen(
            filtered(daemon, sys.executable, "-c", LOOP, str(flag)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        assert [loop.stdout.readline() for loop in loops] == [b"begun\n"] * 2
        for served in range(1, kills + 1):
            wait_for(lambda served=served: daemon.log.read_text().count("INFO: serving") >= served)
            time.sleep(0.1)
            (server,) = psutil.Process(daemon.process.pid).children()
            server.kill()
            server.wait(10)
    finally:
        flag.touch()
        said = [loop.communicate(timeout=60) for loop in loops]
    assert [loop.returncode for loop in loops] == [0, 0], said
    for out, _ in said:
        print(out.decode(), end="")
        assert int(out.split()[0]) > 0
