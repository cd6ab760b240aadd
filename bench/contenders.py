"""Who takes part, and how each is started and stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from lxcfs_py.linux import runtime_directory, syscalls

ENGINES = ("fusepy", "kernel")
LXCFS = "/usr/bin/lxcfs"
FLOOR_OF_LIBFUSE = "floor, libfuse in C"
_PATIENCE = 15.0
"""Seconds for a server to start, and as many to stop."""


@dataclass(frozen=True)
class Contender:
    """A server by its command line, in which {mount}, {config} and {pidfile} stand for what it is given.

    One without a command is the kernel. One that is not `aware` shows every container the same text. `engine` is which
    of lxcfs-py's it runs on.
    """

    name: str
    command: tuple[str, ...] = ()
    config: str = ""
    aware: bool = True
    engine: str = ""


KERNEL = Contender("kernel's own file", aware=False)


def c_program() -> Contender:
    """Return the C program. OSError where it is not installed."""
    with open(LXCFS, "rb") as file:
        if file.read(4) != b"\x7fELF":
            raise OSError(f"{LXCFS} is not the C program: apt-get install lxcfs")
    version = subprocess.run([LXCFS, "--version"], capture_output=True, text=True, timeout=10, check=True).stderr
    name = "lxcfs " + version.strip().strip('"')
    return Contender(name, (LXCFS, "-f", "-l", "--enable-cfs", "-p", "{pidfile}", "{mount}"))


def lxcfs_py(engine: str) -> Contender:
    """Return lxcfs-py with an engine; everything that the C program's flags turn on is on here too."""
    return Contender(
        f"lxcfs-py, {engine}",
        (sys.executable, "-m", "lxcfs_py", "run", "--config", "{config}", "{mount}"),
        f'[cpu]\nmode = "quota"\n[loadavg]\nenabled = true\n[fuse]\nengine = "{engine}"\n',
        engine=engine,
    )


def floor(engine: str) -> Contender:
    """Return a constant text served by an engine: what lxcfs-py would cost if its views cost nothing."""
    command = (sys.executable, "-m", "bench.floor", engine, "{mount}")
    return Contender(f"floor, {engine}", command, aware=False, engine=engine)


@contextlib.contextmanager
def floor_of_libfuse() -> Iterator[Contender]:
    """Build a constant text served by libfuse 3, in C, for as long as this lasts. CalledProcessError, OSError."""
    with tempfile.TemporaryDirectory(prefix="lxcfs-bench-") as room:
        flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "fuse3"], text=True)
        program = f"{room}/floor"
        source = str(Path(__file__).with_name("floor.c"))
        subprocess.run(["cc", "-O2", "-o", program, source, *flags.split()], check=True)
        yield Contender(FLOOR_OF_LIBFUSE, (program, "-f", "-o", "allow_other", "{mount}"), aware=False)


@dataclass(frozen=True)
class Server:
    """A contender that runs. The kernel has no process and no mount."""

    contender: Contender
    process: Optional[subprocess.Popen[bytes]] = None
    mount: Path = Path("/")
    proc: Path = Path("/proc")
    """The mount's proc, bound elsewhere: a sandbox sees no mount as a whole."""
    start: float = 0
    """Seconds from its start to the first answer."""

    @property
    def name(self) -> str:
        """The contender's name."""
        return self.contender.name

    def pin(self, cpus: set[int]) -> None:
        """Keep all its threads on these CPUs; a thread that it starts later inherits that."""
        if self.process:
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), cpus)

    def runs_on_libfuse(self) -> bool:
        """Tell whether it has libfuse loaded."""
        return self.process is not None and "/libfuse" in Path(f"/proc/{self.process.pid}/maps").read_text()

    def cpu(self) -> int:
        """Return the CPU time in ns of all its threads, also those that have ended (clock_getcpuclockid(3))."""
        return time.clock_gettime_ns(~self.process.pid << 3 | 2) if self.process else 0

    def memory(self) -> dict[str, int]:
        """Return VmRSS and Pss in kB."""
        if not self.process:
            return {}
        figures = {}
        for name, key in (("status", "VmRSS"), ("smaps_rollup", "Pss")):
            for line in Path(f"/proc/{self.process.pid}/{name}").read_text().splitlines():
                if line.startswith(key + ":"):
                    figures[key] = int(line.split()[1])
        return figures


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[Server]:
    """Run a contender on a directory of its own; on the way out nothing of it is left. OSError when it fails."""
    if not contender.command:
        yield Server(contender)
        return
    room = Path(tempfile.mkdtemp(prefix="lxcfs-bench-"))
    mount, proc, config, log = room / "mount", room / "proc", room / "config.toml", room / "log"
    mount.mkdir()
    proc.mkdir()
    config.write_text(contender.config)
    words = [word.format(mount=mount, config=config, pidfile=room / "pid") for word in contender.command]
    try:
        with log.open("wb") as stderr:
            begun = time.perf_counter()
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=Path(__file__).parent.parent
            )
        try:
            answered = _first_answer(process, mount / "proc/uptime")
            if answered is None:
                raise OSError(f"{' '.join(words)} does not answer: {log.read_text(errors='replace')[-2000:].strip()}")
            syscalls.mount(str(mount / "proc"), str(proc), flags=syscalls.MS_BIND)
            yield Server(contender, process, mount, proc, answered - begun)
        finally:
            _stop(process)
    finally:
        _clear_away(room, mount, proc)


def _first_answer(process: subprocess.Popen[bytes], path: Path) -> Optional[float]:
    """Return when `path` was first read, None when the server ended or took too long."""
    answered: list[float] = []
    given_up = threading.Event()

    def probe() -> None:
        while not given_up.is_set():
            with contextlib.suppress(OSError):
                if path.read_bytes():
                    answered.append(time.perf_counter())
                    return
            time.sleep(0.001)

    # In a thread, as a server that mounts and then hangs holds its reader for ever.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    deadline = time.monotonic() + _PATIENCE
    while thread.is_alive() and process.poll() is None and time.monotonic() < deadline:
        thread.join(0.05)
    given_up.set()
    return answered[0] if answered else None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _clear_away(room: Path, mount: Path, proc: Path) -> None:
    for path in (proc, mount):
        with contextlib.suppress(OSError):  # a server unmounts by itself, unless it was killed
            syscalls.umount(str(path), syscalls.MNT_DETACH)
        path.rmdir()  # before the rest: it fails on a mount, and nothing below a mount may ever be removed
    shutil.rmtree(room)
    kept = runtime_directory.writable_path_of(str(mount), "*")  # what the next server of this mount would want
    if kept:
        for path in Path(kept).parent.glob(Path(kept).name):
            path.unlink()
