"""Programs that ask the kernel get what the files say, also while servers die."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.runtimes import seccomp_profile
from tests.calls import MEMORY, calling
from tests.conftest import ROOT
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


ERRORS = """
import ctypes, errno, mmap, os, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
mask = ctypes.create_string_buffer(1 << 16)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_ulong, arguments))
    print(number, *arguments[:2 * (number == 204)], errno.errorcode[ctypes.get_errno()] if result < 0 else result)
def affinity(pid, size, address=None): call(204, pid, size, address or ctypes.addressof(mask))
for size in (0, 1, 4, 7, 8, 9, 12, 16, 64, 127, 128, 1 << 16, 1 << 20, 1 << 31, (1 << 32) + 8):
    affinity(0, size)
for pid in (1, os.getpid(), os.getppid(), 2**22 + 1, 2**31 - 1, 2**32 - 1, 2**32, 2**64 - 1, 2**31):
    affinity(pid if pid != os.getpid() else 0, 128)
two = libc.mmap(None, 8192, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
libc.munmap(ctypes.c_void_p(two + 4096), 4096)
only = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
none = libc.mmap(None, 4096, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
end = two + 4096
for address in (0, 8, two, end - 112, end - 111, end - 1, end, only, none, 2**47 - 1, 2**63, 2**64 - 1):
    call(99, address)
    call(204, 0, 128, address)
threads, enough = [], threading.Event()
def wait():
    threads.append(threading.get_native_id())
    enough.wait()
thread = threading.Thread(target=wait)
thread.start()
while not threads: pass
assert libc.syscall(204, threads[0], 128, mask) > 0
enough.set()
thread.join()
while os.path.exists(f"/proc/self/task/{threads[0]}"): pass
ctypes.set_errno(0)
print(libc.syscall(204, threads[0], 128, mask), errno.errorcode[ctypes.get_errno()])
"""


def test_errors_are_the_kernels(start_daemon, sandbox):
    daemon = start_daemon()
    box = sandbox(views=daemon.mountpoint, cpus=1)
    kernels = box.run([sys.executable, "-c", ERRORS])
    answered = box.run(filtered(daemon, sys.executable, "-c", ERRORS))
    assert not kernels.stderr + answered.stderr
    assert answered.stdout.splitlines() == kernels.stdout.splitlines()
    for error in ("EFAULT", "EINVAL", "ESRCH"):
        assert error in answered.stdout


AGREES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
info = ctypes.create_string_buffer(128)
assert libc.sysinfo(info) == 0
at = os.environ["FILES"]
uptime = float(open(at + "/proc/uptime").read().split()[0])
total = int(open(at + "/proc/meminfo").read().split()[1]) << 10
online = open(at + "/sys/devices/system/cpu/online").read().strip()
assert abs(int.from_bytes(info[0:8], "little") - uptime) < 2, (info[0:8], uptime)
assert int.from_bytes(info[32:40], "little") == total, total
assert len(os.sched_getaffinity(0)) == 1 and online.isdigit()
print(total >> 20, round(uptime) if uptime > 600 else "young")
"""


def test_with_a_clock_of_its_own_a_container_is_told_what_its_files_say(start_daemon, sandbox):
    daemon = start_daemon()
    box = sandbox(memory=64 << 20, cpus=1, views=daemon.mountpoint, own_clock=True)
    answer = box.run(filtered(daemon, sys.executable, "-c", AGREES), env={**os.environ, "FILES": ""})
    assert answer.stdout == "64 young\n", answer.stderr


def test_a_container_within_a_container_is_told_what_its_files_say(start_daemon, sandbox):
    daemon = start_daemon()
    box = sandbox(memory=64 << 20, cpus=1, views=daemon.mountpoint)
    nested = ["unshare", "--pid", "--fork", "--mount", "--cgroup", sys.executable, "-c", AGREES]
    answer = box.run(filtered(daemon, *nested), env={**os.environ, "FILES": ""})
    assert answer.stdout == "64 young\n", answer.stderr


def test_a_container_in_the_hosts_pid_namespace_is_told_what_its_files_say(start_daemon, sandbox):
    daemon = start_daemon()
    box = sandbox(memory=64 << 20, cpus=1)
    command = ["unshare", "--mount", *filtered(daemon, sys.executable, "-c", AGREES)]
    environment = {**os.environ, "FILES": str(daemon.mountpoint)}
    answer = subprocess.run(command, preexec_fn=box._join, env=environment, capture_output=True, text=True)
    assert answer.stdout == "64 young\n", answer.stderr


def test_two_containers_in_one_pid_namespace_are_told_each_their_own(start_daemon, sandbox):
    daemon = start_daemon()
    first, second = (sandbox(memory=size << 20, cpus=1) for size in (64, 96))
    for box, size in ((first, 64), (second, 96)):
        program = filtered(daemon, sys.executable, "-c", AGREES)
        answer = subprocess.run(
            ["nsenter", "--target", str(first.init), "--pid", *program],
            preexec_fn=box._join,
            env={**os.environ, "FILES": str(daemon.mountpoint)},
            capture_output=True,
            text=True,
        )
        assert answer.stdout.split()[0] == str(size), answer.stderr


@pytest.mark.parametrize(("containers", "kills"), [(8, 4), pytest.param(8, 40, marks=pytest.mark.slow)])
def test_no_call_fails_while_servers_die(start_daemon, sandbox, tmp_path, containers, kills):
    """`make soak` has it with 200."""
    daemon = start_daemon(keep=True)
    boxes = [sandbox(memory=MEMORY, cpus=1, views=daemon.mountpoint) for _ in range(containers)]
    with calling(boxes, seccomp_profile.socket_of(str(daemon.mountpoint)), tmp_path / "enough") as calls:
        for served in range(1, kills + 1):
            wait_for(lambda served=served: daemon.log.read_text().count("INFO: serving") >= served)
            time.sleep(0.1)
            (server,) = psutil.Process(daemon.process.pid).children()
            server.kill()
            server.wait(10)
    print(calls)


@pytest.mark.slow
def test_containers_start_and_call_while_one_server_takes_over_from_another(start_daemon, sandbox, tmp_path):
    daemon = start_daemon()
    box = sandbox(memory=MEMORY, cpus=1, views=daemon.mountpoint)
    many = sandbox(memory=8 * MEMORY, cpus=1, views=daemon.mountpoint)  # room for all that start at once
    agent = seccomp_profile.socket_of(str(daemon.mountpoint))
    ask = filtered(daemon, sys.executable, "-c", "import os; print(os.sysconf('SC_PHYS_PAGES'), os.cpu_count())")
    with calling([box], agent, tmp_path / "enough") as calls:
        for _ in range(3):
            before = daemon.process
            daemon.process = subprocess.Popen(daemon.command, cwd=ROOT, stderr=daemon.log.open("ab"))
            started = [many.popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(10)]
            while before.poll() is None:
                started.append(many.popen(ask, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
                time.sleep(0.05)
            said = [each.communicate(timeout=60) for each in started]
            assert {out for out, _ in said} == {b"%d 1\n" % (8 * MEMORY // 4096)}, said
    assert calls.pairs > 20
