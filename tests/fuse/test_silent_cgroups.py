"""Whoever keeps the kernel's lock of a cgroup's directory has nobody wait but those within it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.cgroup.layout import find
from lxcfs_py.runtimes.sandbox import SandboxError
from tests.fuse.test_hostile_calls import stands_still
from tests.kept import wait_for

HOLD = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
held_back, *directories = map(int, sys.argv[1:])
listing = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
for directory in directories:  # getdents64(2) keeps the lock; mkdir(2) beside it has all wait who want to share it
    if not os.fork():
        where = ctypes.c_void_p(libc.mmap(None, 4096, 3, 2, held_back, 0))
        os.read(0, 1)
        libc.syscall(listing, directory, where, 4096)
        os._exit(0)
    if not os.fork():
        os.read(0, 1)
        time.sleep(0.3)
        os.mkdir(f"/proc/self/fd/{directory}/made")
        os._exit(0)
print("begun", flush=True)
while True:
    os.wait()
"""

READ = """
import os, sys
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[1:]:
    with open("/proc/" + name) as file:
        assert file.read()
print("read", flush=True)
"""

VICTIM = """
import sys, time
longest, reads = 0, 0
until = time.monotonic() + float(sys.argv[1])
while time.monotonic() < until:
    for name in ("meminfo", "stat", "loadavg", "uptime", "cpuinfo"):
        began = time.monotonic()
        with open("/proc/" + name) as file:
            assert file.read()
        longest = max(longest, time.monotonic() - began)
        reads += 1
print(reads, longest)
"""

FILES = ("meminfo", "stat", "loadavg", "diskstats", "swaps", "cpuinfo", "vmstat")


def cgroups(box):
    """The directories that a sandbox has for its cgroup."""
    directories = set()
    for name in find().hierarchies:
        with contextlib.suppress(SandboxError):
            directories.add(str(box.cgroup(name)))
    return directories


@contextlib.contextmanager
def held(other, box, directories):
    """Keep the kernel's locks of directories, from within a sandbox, by the memory of another mount's file."""
    with contextlib.ExitStack() as opened:
        descriptors = [os.open(other.mountpoint / "proc/uptime", os.O_RDONLY)]
        opened.callback(os.close, descriptors[0])
        for directory in sorted(directories):
            descriptors.append(os.open(directory, os.O_RDONLY))
            opened.callback(os.close, descriptors[-1])
        command = [sys.executable, "-c", HOLD, *map(str, descriptors)]
        holder = box.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors, bufsize=0)
        opened.callback(holder.kill)
        assert holder.stdout.readline() == b"begun\n"
        other.process.send_signal(signal.SIGSTOP)
        opened.callback(other.process.send_signal, signal.SIGCONT)
        wait_for(lambda: stands_still(other.process.pid))
        holder.stdin.write(b"." * 2 * len(directories))
        time.sleep(1)
        yield


def program(box, script, *arguments):
    """A Python program in a sandbox, which says when it is ready."""
    command = [sys.executable, "-c", script, *arguments]
    process = box.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture
def hostile(start_daemon, sandbox):
    """A daemon, and a container that has never read, holds its cgroup and then reads seven files at once."""
    with contextlib.ExitStack() as stack:

        @contextlib.contextmanager
        def begin(daemon):
            other, box = start_daemon(), sandbox(views=daemon.mountpoint)
            readers = [program(box, READ, name) for name in FILES]
            with held(other, box, cgroups(box)):
                for each in readers:
                    each.stdin.write(b"go\n")
                yield readers

        yield lambda daemon: stack.enter_context(begin(daemon))


@pytest.mark.slow
def test_who_holds_his_cgroup_has_no_other_container_wait_long(start_daemon, sandbox, hostile):
    daemon = start_daemon()
    victim = sandbox(views=daemon.mountpoint)
    readers = hostile(daemon)
    told = victim.popen([sys.executable, "-c", VICTIM, "3"], stdout=subprocess.PIPE)
    output, _ = told.communicate(timeout=60)
    reads, longest = output.split()
    print(reads, longest)
    assert int(reads) > 100
    assert float(longest) < 10, "else somebody waits until the lock is let go of"
    late = sandbox(memory=64 << 20, views=daemon.mountpoint)
    assert "MemTotal:          65536 kB" in late.run(["cat", "/proc/meminfo"]).stdout, "who comes anew is found"
    assert [each.stdout.readline() for each in readers] == [b"read\n"] * len(FILES), "he has not waited, either"
    assert "do not answer" in daemon.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["show", "meminfo"], ["explain", "meminfo"], ["top", "--once"]], ids=" ".join)
def test_commands_do_not_wait_for_who_holds_his_cgroup(start_daemon, sandbox, command):
    daemon, other = start_daemon(), start_daemon()
    box = sandbox(views=daemon.mountpoint)
    pid = [] if command[0] == "top" else ["--pid", str(box.init)]
    whole = [sys.executable, "-m", "lxcfs_py", *command, *pid, "--config", str(daemon.config)]
    with held(other, box, cgroups(box)):
        told = subprocess.run(whole, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0
    assert ("do not answer" in told.stderr) == bool(pid)


@pytest.mark.slow
def test_who_holds_his_cgroup_keeps_no_server_from_ending(start_daemon, sandbox, hostile):
    daemon = start_daemon(keep=True)
    victim = sandbox(memory=64 << 20, views=daemon.mountpoint)
    hostile(daemon)
    (server,) = psutil.Process(daemon.process.pid).children()
    server.kill()
    psutil.wait_procs([server], timeout=20)
    assert not server.is_running()
    assert "MemTotal:          65536 kB" in victim.run(["cat", "/proc/meminfo"]).stdout
    assert daemon.stop() == 0


def test_what_looks_at_cgroups_ends_with_its_server_and_has_nothing_of_it(start_daemon, sandbox):
    daemon = start_daemon()
    box = sandbox(views=daemon.mountpoint)
    assert box.run(["cat", "/proc/loadavg"]).stdout
    (parent,) = [each for each in psutil.Process(daemon.process.pid).children() if each.children()]
    aside = [parent, *parent.children()]
    for each in aside:
        links = [os.readlink(link) for link in Path(f"/proc/{each.pid}/fd").iterdir()]
        assert not [name for name in links if "fuse" in name or "memfd" in name or name.startswith("/tmp")]
    daemon.process.kill()
    _, alive = psutil.wait_procs(aside, timeout=20)
    assert not alive


def test_who_holds_a_directory_of_the_machines_sysfs_has_nobody_wait_who_lists_it_here(start_daemon, sandbox):
    """A sysfs is shared by all in one network namespace: with --network=host, by a container and the machine."""
    daemon, other = start_daemon(), start_daemon()
    victim = sandbox(views=daemon.mountpoint)
    listing = ["ls", "/sys/devices/system/cpu"]
    names = victim.run(listing).stdout
    with held(other, sandbox(), ["/sys/devices/system/cpu"]):
        told = victim.popen(listing, stdout=subprocess.PIPE, text=True)
        assert told.communicate(timeout=60)[0] == names
