"""Whatever way a program reads by, it gets its own container's text, or an error after which programs read on."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from bench.floor import Constant
from lxcfs_py.engine import kernel
from lxcfs_py.linux import syscalls
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon

MIB = 1 << 20
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
WAYS = [sys.executable, str(ROOT / "tests/fuse/ways.py")]
ONLINE = "/sys/devices/system/cpu/online"

LENGTHS = {
    "/proc/loadavg": 300,
    "/proc/meminfo": 4095,
    "/proc/stat": 4096,
    "/proc/cpuinfo": 4097,
    "/proc/swaps": 8192,
    "/proc/uptime": 70_000,  # more than a pipe holds
}


@pytest.fixture(scope="module", params=["kernel", "fusepy"])
def engine(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def served(engine: str, start_shared_daemon: Callable[..., Daemon]) -> Path:
    return start_shared_daemon(engine).mountpoint


@pytest.mark.parametrize("seconds", ["3", pytest.param("60", marks=pytest.mark.slow)])
def test_two_containers_read_one_file_in_all_ways_and_none_sees_the_others_text(
    seconds: str, engine: str, served: Path, sandbox: Callable[..., Sandbox]
) -> None:
    # libfuse 2 does not ask for what keeps the kernel from repeating a short read: protocol.ASYNC_DIO.
    options = {**PIPES, "env": {**os.environ, "LEAVE_OUT": "io_uring"} if engine == "fusepy" else None}
    small = sandbox(memory=256 * MIB, cpus=1, views=served)
    large = sandbox(memory=512 * MIB, cpus=2, views=served)
    running = [
        small.popen([*WAYS, seconds, "/proc/meminfo", "MemTotal:         262144 kB", ONLINE, "0"], **options),
        large.popen([*WAYS, seconds, "/proc/meminfo", "MemTotal:         524288 kB", ONLINE, "0-1"], **options),
    ]
    for process in running:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert engine == "fusepy" or "io_uring, /proc/meminfo: text" in output
        assert "read 4096, /proc/meminfo: text" in output


def test_a_file_has_a_size_so_that_programs_that_splice_it_try(served: Path) -> None:
    for name in ("proc/meminfo", "proc/stat", "sys/devices/system/cpu/online"):
        assert (served / name).stat().st_size == 4096


class Lines(Constant):
    """Texts that are shorter or longer than the size of a file that nobody has read, or just as long."""

    def render(self, caller: int, path: str) -> bytes:
        length = LENGTHS[path]
        return b"".join(b"line %d\n" % n for n in range(length))[: length - 1] + b"\n"

    def lengths(self) -> dict[str, int]:
        return {"/proc/meminfo": 1500, "/proc/cpuinfo": LENGTHS["/proc/cpuinfo"]}


@pytest.fixture
def lines(require: Callable[[object, str], None], tmp_path: Path) -> Iterator[Path]:
    require(os.geteuid() == 0, "root")
    require(os.path.exists("/dev/fuse"), "/dev/fuse")
    server = multiprocessing.get_context("fork").Process(target=kernel.serve, args=(Lines(), str(tmp_path)))
    server.start()
    try:
        while not os.path.ismount(tmp_path):
            server.join(0.01)
            assert server.is_alive()
        yield tmp_path
    finally:
        syscalls.umount(str(tmp_path), syscalls.MNT_DETACH)
        server.join(5)
        server.kill()


@pytest.mark.slow
def test_texts_longer_and_shorter_than_their_size_are_read_whole_in_all_ways(lines: Path) -> None:
    files = [word for path in LENGTHS for word in (f"{lines}{path}", "line 1")]
    done = subprocess.run([*WAYS, "0", *files], **PIPES, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [path for path in LENGTHS if LENGTHS[path] > 1])
@pytest.mark.parametrize("program", ["tail", "busybox tail"])
def test_the_last_lines_of_a_text_are_its_last(
    lines: Path, program: str, name: str, require: Callable[[object, str], None]
) -> None:
    command = program.split()
    require(shutil.which(command[0]), command[0])
    path = f"{lines}{name}"
    done = subprocess.run([*command, "-n", "20", path], capture_output=True, text=True, check=True)
    whole = Path(path).read_text()
    assert done.stdout.splitlines() == whole.splitlines()[-20:]
    done = subprocess.run([*command, "-c", "50", path], capture_output=True, text=True, check=True)
    assert done.stdout == whole[-50:]


def test_the_first_who_asks_is_told_a_size_that_his_text_has_room_in(lines: Path) -> None:
    """As the machine's own is about as long: Node.js reads no more than it is told."""
    assert (lines / "proc/cpuinfo").stat().st_size > LENGTHS["/proc/cpuinfo"]
    assert (lines / "proc/meminfo").stat().st_size == 4096


def test_there_is_no_end_that_could_be_gone_to_where_the_kernels_own_file_has_none(served: Path) -> None:
    for path in (served / "proc/meminfo", Path("/proc/meminfo")):
        with path.open("rb", buffering=0) as file:
            file.read(10)
            for whence in (os.SEEK_END, os.SEEK_DATA):
                with pytest.raises(OSError, match="Invalid argument"):
                    file.seek(0, whence)
            assert file.tell() == 10
    for path in (Path(f"{served}{ONLINE}"), Path(ONLINE)):
        with path.open("rb", buffering=0) as file:
            assert file.seek(0, os.SEEK_END) == 4096
