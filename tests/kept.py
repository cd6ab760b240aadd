"""A daemon whose mount is kept by the test: it may die, and be replaced; and who reads meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from lxcfs_py.engine import session
from lxcfs_py.runtimes.sandbox import Sandbox
from lxcfs_py.views import VIEWS
from tests.conftest import ROOT, Daemon

FILES = [f"/{name}" for name in VIEWS if Path("/", name).exists()]


class Kept:
    """A daemon whose descriptors this process keeps, as systemd would, and gives to each server that it starts."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.server = daemon.process
        self.wait_until_it_serves()  # before, it answers, and nobody can take it over
        kept = session.take_over(str(daemon.mountpoint))  # and never claimed: the daemon serves on
        assert kept is not None
        assert kept.predecessor is not None
        kept.predecessor.close()
        self.descriptors = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (kept.fuse, kept.memory)]

    def start(self, config: str = "") -> None:
        """Start a server, that takes up what the one before left."""

        def give() -> None:
            for target, fd in enumerate(self.descriptors, 3):
                os.dup2(fd, target)
            os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="lxcfs:lxcfs")

        if config:
            self.daemon.config.write_text(config)
        with self.daemon.log.open("wb") as log:
            self.server = self.daemon.process = subprocess.Popen(
                self.daemon.command, cwd=ROOT, stderr=log, preexec_fn=give, pass_fds=(3, 4)
            )

    def kill(self) -> None:
        """End the server, at whatever it does."""
        self.server.kill()
        self.server.wait(10)

    def wait_until_it_serves(self) -> None:
        """Return when the server answers, the one that was started last."""
        wait_for(lambda: "INFO: serving" in self.daemon.log.read_text())

    def close(self) -> None:
        """Stop the daemon, and keep nothing."""
        if self.server.poll() is not None:
            self.start()
            self.wait_until_it_serves()
        self.daemon.stop()
        for fd in self.descriptors:
            os.close(fd)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


class Readers:
    """Eight readers of all files in a sandbox."""

    def __init__(self, box: Sandbox) -> None:
        command = [sys.executable, str(ROOT / "tests/fuse/readers.py"), *FILES]
        self.process = box.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "reading\n"

    def finish(self) -> None:
        """Stop them. Fails if a read failed, or gave a text that was not whole."""
        output, _ = self.process.communicate("\n", timeout=60)
        *faults, summary = output.splitlines()
        reads, failed, longest = summary.split()
        self.reads, self.longest = int(reads), float(longest)
        print(f"{reads} reads, {failed} of them failed, the longest took {longest} s")
        assert not faults, faults
        assert self.reads > 8
        assert failed == "0"


@contextlib.contextmanager
def reading(box: Sandbox) -> Iterator[Readers]:
    """Eight readers of all files in a sandbox while the block runs; then they know how many reads there were."""
    readers = Readers(box)
    yield readers
    readers.finish()
