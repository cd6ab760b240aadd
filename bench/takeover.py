"""What a reader notices of a takeover: the longest read from the new server's start to the old one's end."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from bench.contenders import lxcfs_py, running

TAKEOVERS = 10
_PATIENCE = 30
_AFTERWARDS = 0.1
"""Seconds for which reads are timed after the old server has ended."""


def measure() -> list[float]:
    """Return the longest read during each takeover, in ms. OSError when the old server does not leave."""
    with running(lxcfs_py("kernel")) as server:
        assert server.process is not None
        newest = server.process
        longest = []
        try:
            for _ in range(TAKEOVERS):
                before = newest
                newest = subprocess.Popen(before.args, stderr=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
                longest.append(_longest_read(server.mount / "proc/uptime", before) * 1000)
        finally:
            if newest is not server.process:
                newest.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    newest.wait(_PATIENCE)
        return longest


def _longest_read(path: Path, leaving: subprocess.Popen[bytes]) -> float:
    longest = 0.0
    given_up = time.monotonic() + _PATIENCE
    end = given_up
    while time.monotonic() < end:
        started = time.perf_counter()
        path.read_bytes()
        longest = max(longest, time.perf_counter() - started)
        if end == given_up and leaving.poll() is not None:
            end = time.monotonic() + _AFTERWARDS
    if end == given_up:
        raise OSError(f"process {leaving.pid} does not leave")
    return longest
