"""Whatever a container does to its own calls, those of others are answered, and rightly."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.runtimes import seccomp_profile
from tests.calls import MEMORY, calling
from tests.conftest import ROOT
from tests.fuse.test_syscalls import filtered
from tests.kept import wait_for

BEGIN = """
import ctypes, errno, mmap, os, random, signal, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
WHERE = 0x10000000000
def map_it(): return libc.mmap(WHERE, 4096, 3, 0x32, -1, 0)
def call():
    libc.sysinfo(ctypes.c_void_p(WHERE))
    libc.syscall(204, 0, 4096, ctypes.c_void_p(WHERE))
def loop():
    while True: call()
def threads(count, target):
    threading.stack_size(65536)
    go = threading.Event()  # a thread that starts beside many that call has to wait for them
    for _ in range(count): threading.Thread(target=lambda: go.wait() and target(), daemon=True).start()
    go.set()
map_it()
"""

ENDING = """
children = []
def child():
    pid = os.fork()
    if pid: return pid
    threads(3, loop)
    loop()
print("begun", flush=True)
while True:
    children = [child() for _ in range(10)]
    time.sleep(random.uniform(0, 0.02))
    for pid in children: os.kill(pid, signal.SIGKILL)
    for pid in children: os.waitpid(pid, 0)
"""

EXECUTING = """
if len(sys.argv) < 2: print("begun", flush=True)
threads(4, loop)
time.sleep(random.uniform(0, 0.01))
os.execv(sys.executable, [sys.executable, "-c", os.environ["PROGRAM"], "again"])
"""

UNMAPPING = """
threads(4, loop)
print("begun", flush=True)
while True:
    libc.munmap(WHERE, 4096)
    map_it()
"""

MANY = """
threads(2000, loop)
print("begun", flush=True)
time.sleep(1000)
"""

LOCKING = """
size = 256 << 20
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
large = libc.mmap(None, size, 3, 0x22, -1, 0)
libc.madvise(large, size, 15)  # MADV_NOHUGEPAGE
ctypes.memset(large, 1, size)
def lock():
    while True:
        for access in (1, 3): libc.mprotect(large, size, access)  # which locks all mappings for some milliseconds
threads(2, lock)
threads(4, loop)
print("begun", flush=True)
time.sleep(1000)
"""

WRONG = """
libc.syscall.restype = ctypes.c_long
def wrong():
    while True:
        address, size = random.getrandbits(64), random.getrandbits(random.choice((4, 12, 64)))
        libc.syscall(99, ctypes.c_ulong(address))
        libc.syscall(204, ctypes.c_ulong(random.getrandbits(64)), ctypes.c_ulong(size), ctypes.c_ulong(address))
threads(4, wrong)
print("begun", flush=True)
time.sleep(1000)
"""


@contextlib.contextmanager
def neighbour(daemon, sandbox, tmp_path, seconds=1.5):
    """A container whose calls must all be answered; they go on for so long after the `with` block."""
    box = sandbox(memory=MEMORY, cpus=1, views=daemon.mountpoint)
    with calling([box], seccomp_profile.socket_of(str(daemon.mountpoint)), tmp_path / "enough") as calls:
        yield
        time.sleep(seconds)
    print(calls)
    assert calls.pairs > 20


@pytest.mark.parametrize(
    "program",
    [ENDING, EXECUTING, UNMAPPING, LOCKING, MANY, WRONG],
    ids=["threads that end", "exec", "unmapping", "locked mappings", "2000 threads", "nonsense"],
)
def test_what_a_container_does_to_its_calls_is_not_felt_by_others(start_daemon, sandbox, tmp_path, program):
    daemon = start_daemon()
    box = sandbox(views=daemon.mountpoint)
    environment = {**os.environ, "PROGRAM": BEGIN + program}
    with neighbour(daemon, sandbox, tmp_path):
        hostile = box.popen(
            filtered(daemon, sys.executable, "-c", BEGIN + program), stdout=subprocess.PIPE, env=environment
        )
        assert hostile.stdout.readline() == b"begun\n"
    assert hostile.poll() is None
    assert "cannot be attended to" not in daemon.log.read_text()


HELD_BACK = """
with open(sys.argv[1], "rb") as file:
    where = libc.mmap(None, 4096, 3, 2, file.fileno(), 0)
assert where not in (None, 2**64 - 1)
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))  # without SA_RESTART
print("begun", flush=True)
sys.stdin.readline()
libc.sysinfo(ctypes.c_void_p(where))  # EFAULT, as the file has no whole page
print("interrupted" if ctypes.get_errno() == errno.EINTR else "answered", flush=True)
"""


@contextlib.contextmanager
def calls_into_a_file_of(other, daemon, box, count):
    """Programs in a sandbox whose answers are to be written into the file of a server that stands still."""
    file = os.open(other.mountpoint / "proc/uptime", os.O_RDONLY)
    hostile = []
    try:
        for _ in range(count):
            command = filtered(daemon, sys.executable, "-c", BEGIN + HELD_BACK, f"/proc/self/fd/{file}")
            hostile.append(
                box.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[file], bufsize=0)
            )
            assert hostile[-1].stdout.readline() == b"begun\n"
        other.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: stands_still(other.process.pid))
        yield hostile
    finally:
        other.process.send_signal(signal.SIGCONT)
        os.close(file)


def stands_still(pid):
    """Tell whether all threads of a process are stopped: until the first one heeds the signal, the others run on."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(") ")[2][0] == "T" for task in tasks)


def writes(process):
    """Tell whether a process waits in pwrite(2), by its number on x86-64 or arm64."""
    return Path(f"/proc/{process.pid}/syscall").read_text().split()[0] in ("18", "68")


def let_call(hostile):
    """Let each make its call, and be at it."""
    for each in hostile:
        each.stdin.write(b"go\n")
    time.sleep(0.5)


def test_memory_that_can_be_waited_for_holds_up_nobody_else(start_daemon, sandbox, tmp_path):
    daemon, other = start_daemon(), start_daemon()
    box = sandbox(views=daemon.mountpoint)
    with calls_into_a_file_of(other, daemon, box, 3) as hostile:
        with neighbour(daemon, sandbox, tmp_path):
            let_call(hostile)
            os.kill(hostile[0].pid, signal.SIGKILL)
        other.process.send_signal(signal.SIGCONT)
        assert [each.stdout.readline() for each in hostile[1:]] == [b"answered\n"] * 2


def test_no_thread_of_a_server_waits_for_memory(start_daemon, sandbox):
    """Else others would wait with it each time that a container gives its memory slowly."""
    daemon, other = start_daemon(), start_daemon()
    with calls_into_a_file_of(other, daemon, sandbox(views=daemon.mountpoint), 1) as hostile:
        let_call(hostile)
        server = psutil.Process(daemon.process.pid)
        wait_for(lambda: any(writes(each) for each in server.children(True)))
        tasks = Path(f"/proc/{server.pid}/task").iterdir()
        calls = [(task / "syscall").read_text().split()[0] for task in tasks]
        assert not {"45", "207"} & {*calls}, "none is in recvfrom(2), by its number on x86-64 or arm64"


def test_a_signal_interrupts_no_call_that_was_taken(start_daemon, sandbox):
    daemon, other = start_daemon(), start_daemon()
    with calls_into_a_file_of(other, daemon, sandbox(views=daemon.mountpoint), 1) as (program,):
        let_call([program])
        wait_for(lambda: any(writes(each) for each in psutil.Process(daemon.process.pid).children(True)))
        for _ in range(3):
            os.kill(program.pid, signal.SIGUSR1)
            time.sleep(0.05)
        other.process.send_signal(signal.SIGCONT)
        assert program.communicate(timeout=20)[0] == b"heard\nanswered\n"


def test_memory_that_can_be_waited_for_keeps_no_server_from_ending(start_daemon, sandbox, tmp_path):
    daemon, other = start_daemon(keep=True), start_daemon()
    box = sandbox(views=daemon.mountpoint)
    with calls_into_a_file_of(other, daemon, box, 2) as hostile:
        with neighbour(daemon, sandbox, tmp_path):
            let_call(hostile)
            (server,) = psutil.Process(daemon.process.pid).children()
            server.kill()
            psutil.wait_procs([server], timeout=20)
            assert not server.is_running()
        assert daemon.stop() == 0


def test_garbage_and_strangers_on_the_socket_change_nothing(start_daemon, sandbox, tmp_path):
    daemon = start_daemon()
    path = seccomp_profile.socket_of(str(daemon.mountpoint))
    with neighbour(daemon, sandbox, tmp_path), tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
        for garbage in (b"", b"\0" * 100, b"{" * 70000, b'{"state": {"id": 7}}'):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(path)
                connection.sendall(garbage)
                with contextlib.suppress(OSError):
                    socket.send_fds(connection, [garbage or b"x"], [file.fileno(), 0, connection.fileno()])
        for garbage in (b"x", b"\0" * 136, b"\xff" * 136, os.urandom(200), b"\0" * 5000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
                connection.connect(seccomp_profile.lxc_socket_of(str(daemon.mountpoint)))
                with contextlib.suppress(OSError):
                    socket.send_fds(connection, [garbage], [file.fileno(), file.fileno()])
                    connection.send(garbage)
        for _ in range(300):  # who connects and says nothing
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.connect(path)
        late = sandbox(memory=MEMORY, views=daemon.mountpoint)
        assert late.run(filtered(daemon, "getconf", "_PHYS_PAGES")).stdout == f"{MEMORY // 4096}\n"
        python = os.path.realpath(sys.executable)  # which anybody may run, wherever this tree stands
        stranger = [python, "-c", f"import socket; socket.socket(socket.AF_UNIX).connect({path!r})"]
        refused = subprocess.run(stranger, user=12345, capture_output=True, text=True, cwd="/")
        assert "PermissionError" in refused.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.sendall(json.dumps({"state": {}}).encode())
    assert "a listener was refused: it is none" in daemon.log.read_text()


def test_a_listener_of_a_process_in_no_container_is_answered_as_the_kernel_does(start_daemon):
    daemon = start_daemon()
    program = "import os; print(sorted(os.sched_getaffinity(0)), os.sysconf('SC_PHYS_PAGES'))"
    outside = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    handed = subprocess.run(filtered(daemon, sys.executable, "-c", program), capture_output=True, text=True, cwd=ROOT)
    assert handed.stdout == outside.stdout, handed.stderr
