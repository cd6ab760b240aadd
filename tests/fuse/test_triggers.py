"""Triggers of pressure stall information, in a container whose cgroup has pressure files (cgroup v2)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.runtimes.sandbox import SandboxError
from tests.kept import Kept, wait_for

# As Documentation/accounting/psi.rst has it, in Python: a trigger, then poll(2) until it has fired so many times.
# Says each time what poll gave, and what the kernel refuses.
MONITOR = """
import os, select, sys
path, text, times, way = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
try:
    file = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    os.write(file, text.encode() + b"\\0")
except OSError as error:
    sys.exit(f"refused {error.errno}")
poll = select.epoll() if way == "epoll" else select.poll()
poll.register(file, select.POLLPRI)
print("armed", flush=True)
for _ in range(times):
    if way == "select":
        select.select([], [], [file])
        print(select.POLLPRI, flush=True)
    else:
        print(*[event for _, event in poll.poll()], flush=True)
"""

BUSY = "for i in 1 2 3 4; do (while :; do :; done) & done; wait"
WAYS = ("poll", "select", "epoll")


@pytest.fixture
def box(require, start_daemon, sandbox):
    """A sandbox of one CPU that has pressure figures of its own, with the views of a daemon."""
    require(Path("/proc/pressure/cpu").exists(), "a kernel that counts pressure (psi=1)")
    daemon = start_daemon("kernel")
    box = sandbox(cpuset="0", views=daemon.mountpoint)
    try:
        pressure = box.cgroup("") / "cpu.pressure"
    except SandboxError:
        pressure = None
    require(pressure and pressure.exists(), "cgroup v2, also beside v1")
    box.daemon = daemon
    return box


@contextlib.contextmanager
def monitor(box, path="/proc/pressure/cpu", text="some 1000000 2000000", times=1, way="poll"):
    command = [sys.executable, "-c", MONITOR, path, text, str(times), way]
    process = box.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def load(box):
    """Four loops on one CPU: each waits for it most of the time."""
    busy = box.popen(["sh", "-c", BUSY], start_new_session=True)
    try:
        yield
    finally:
        for process in (*psutil.Process(busy.pid).children(recursive=True), busy):
            process.kill()
        busy.wait(10)


class Waiting:
    """A monitor that goes on, and what it has said."""

    def __init__(self, box, process) -> None:
        self.stalls = box.cgroup("") / "cpu.pressure"
        self.output = process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.said: list[str] = []
        wait_for(lambda: "armed" in self.hear())

    def hear(self) -> list[str]:
        """All that it has said by now."""
        with contextlib.suppress(BlockingIOError):
            self.said += os.read(self.output, 4096).decode().split()
        return self.said

    def stays_asleep(self) -> None:
        """Fails where it is woken within a window, though its container has not stalled."""
        time.sleep(2.5)
        stalled = int(self.stalls.read_text().split("total=")[1].split()[0])
        assert self.hear() == ["armed"] or stalled >= 1_000_000  # of microseconds, on a busy machine

    def is_woken(self) -> None:
        before = len(self.hear())
        wait_for(lambda: len(self.hear()) > before)
        assert set(self.said) == {"armed", str(select.POLLPRI)}, "and told of no error"


@pytest.mark.parametrize("way", [way if way == "poll" else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_who_waits_is_woken_when_the_container_stalls_and_not_before(box, way: str) -> None:
    with monitor(box, times=1000, way=way) as process:
        waiting = Waiting(box, process)
        waiting.stays_asleep()
        with load(box):
            waiting.is_woken()
            waiting.is_woken()


def test_a_trigger_outlives_the_server(box) -> None:
    kept = Kept(box.daemon)
    try:
        with monitor(box, times=1000) as process:
            waiting = Waiting(box, process)
            kept.kill()
            kept.start()
            kept.wait_until_it_serves()
            waiting.stays_asleep()
            with load(box):
                waiting.is_woken()
    finally:
        kept.close()


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("some 150000 100000", "cpu"),  # a threshold above the window
        ("some 0 2000000", "memory"),
        ("some 150000 400000", "io"),
        ("some 150000 20000000", "io"),
        ("any 150000 2000000", "memory"),
        ("", "memory"),
    ],
)
def test_what_the_kernel_refuses_is_refused(box, text: str, path: str) -> None:
    with monitor(box, f"/proc/pressure/{path}", text) as refused:
        assert refused.communicate(timeout=20)[1] == f"refused {errno.EINVAL}\n"


def test_without_the_capability_a_window_is_a_multiple_of_two_seconds(box) -> None:
    def unprivileged(text: str) -> str:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--reuid=1", "--regid=1", "--clear-groups"]
        done = box.run([*command, sys.executable, "-c", MONITOR, "/proc/pressure/cpu", text, "0", "poll"])
        return str(done.stdout + done.stderr)

    assert unprivileged("some 150000 1000000") == f"refused {errno.EINVAL}\n"
    assert unprivileged("some 150000 2000000") == "armed\n"


FILES = """
import errno, fcntl, json, os, signal
path = "/proc/pressure/cpu"
said = {"mode": oct(os.stat(path).st_mode & 0o777)}
def attempt(name, do):
    try:
        do()
        said[name] = 0
    except OSError as error:
        said[name] = error.errno
files = [os.open(path, os.O_RDWR) for _ in range(17)]
for number, file in enumerate(files):
    attempt(f"trigger {number}", lambda: os.write(file, b"some 150000 2000000\\0"))
attempt("second", lambda: os.write(files[0], b"some 150000 2000000\\0"))
for file in files:
    os.close(file)
attempt("after all are closed", lambda: os.write(os.open(path, os.O_RDWR), b"some 150000 2000000\\0"))
attempt("truncating", lambda: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)))
attempt("chmod", lambda: os.chmod(path, 0o600))
attempt("another file", lambda: os.open("/proc/meminfo", os.O_RDWR))
reader = os.open(path, os.O_RDWR)
said["text"] = os.read(reader, 4).decode()
print(json.dumps(said))
"""


def test_it_is_a_file_as_the_kernels_and_takes_sixteen_triggers_of_a_container(box) -> None:
    said = json.loads(box.run([sys.executable, "-c", FILES]).stdout)
    assert [said[f"trigger {number}"] for number in range(17)] == [0] * 16 + [errno.ENOSPC]
    del said["another file"], said["chmod"]
    assert {key: value for key, value in said.items() if not key.startswith("trigger ")} == {
        "mode": "0o666",
        "second": errno.EBUSY,
        "after all are closed": 0,
        "truncating": 0,
        "text": "some",
    }


POSITIONS = """
import json, os
said = []
path = "/proc/pressure/cpu"
for text in ("some 150000 2000000", "some\\t150000\\t2000000", "some150000 2000000", "some 00000150000 2000000"):
    file = os.open(path, os.O_RDWR)
    os.write(file, text.encode() + b"\\0")
    parts = [os.read(file, 12), os.read(file, 4)]
    os.lseek(file, 0, os.SEEK_SET)
    parts += [os.read(file, 5), os.read(file, 6), os.pread(file, 5, 0)]
    said.append([part.decode() for part in parts])
    os.close(file)
file = os.open(path, os.O_RDWR)
first = os.read(file, 5)
os.write(file, b"full 150000 2000000\\0")
said.append([first.decode(), os.read(file, 6).decode()])
file = os.open(path, os.O_RDWR | os.O_APPEND)
os.write(file, b"full 150000 2000000\\0")
said.append([os.read(file, 5).decode(), os.read(file, 6).decode()])
print(json.dumps(said))
"""


def test_who_writes_one_reads_on_where_he_was(box) -> None:
    *from_the_beginning, from_the_middle, appended = json.loads(box.run([sys.executable, "-c", POSITIONS]).stdout)
    assert len(from_the_beginning) == 4
    for first, second, *again in from_the_beginning:
        assert re.match(r"some avg10=[\d.]+ ?a?", first + second)
        assert again == ["some ", "avg10=", "some "]
    assert from_the_middle == appended == ["some ", "avg10="]


def test_root_takes_no_lease_of_it_for_whose_end_others_would_wait(box) -> None:
    take = "import fcntl; fcntl.fcntl(open('/proc/pressure/cpu'), fcntl.F_SETLEASE, fcntl.F_WRLCK)"
    done = box.run(["setpriv", "--bounding-set=-lease", "--inh-caps=-lease", sys.executable, "-c", take])
    assert "PermissionError" in done.stderr
