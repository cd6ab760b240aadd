"""A runtime that knows 1,000 containers when the NRI plugin comes: the plugin takes them all, and stays small."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

import psutil
import pytest

from lxcfs_py.attach import nri
from lxcfs_py.config import Config
from lxcfs_py.runtimes.nri import wire
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, STOP, Daemon
from tests.kept import wait_for

CONTAINERS, PART = 1000, 200
MIB = 1 << 20
START = (
    "import json, sys; from lxcfs_py.attach import nri; "
    "nri.Process(nri.Settings(*json.loads(sys.stdin.buffer.readline())), sys.argv[1]).run()"
)


class Runtime(NamedTuple):
    """The runtime's side of a plugin's connection."""

    connection: socket.socket
    plugin: psutil.Popen

    def ask(self, method: str, message: bytes, stream: int) -> wire.Fields:
        request = wire.field(1, "nri.pkg.api.v1alpha1.Plugin") + wire.field(2, method) + wire.field(3, message)
        content = struct.pack(">IIBB", len(request), stream, 1, 0) + request
        pieces = [content[start : start + 4096] for start in range(0, len(content), 4096)]
        self.connection.sendall(b"".join(struct.pack(">II", 1, len(piece)) + piece for piece in pieces))
        return wire.message(self.receive(), 2)

    def receive(self) -> wire.Fields:
        received = b""
        while len(received) < 10 or len(received) < 10 + struct.unpack_from(">I", received)[0]:
            _, length = struct.unpack(">II", self.connection.recv(8, socket.MSG_WAITALL))
            received += self.connection.recv(length, socket.MSG_WAITALL)
        return wire.read(received[10:])


@pytest.fixture
def served(start_daemon: Callable[..., Daemon]) -> Daemon:
    return start_daemon("kernel")


@pytest.fixture
def runtime(served: Daemon, tmp_path: Path) -> Iterator[Runtime]:
    path = str(tmp_path / "nri.sock")
    settings = nri.Settings(str(served.mountpoint), Config().files.enabled, "all", "info")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(STOP)
        command = [sys.executable, "-c", START, path]
        plugin = psutil.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        plugin.stdin.write(json.dumps(settings).encode() + b"\n")
        plugin.stdin.flush()
        connection, _ = listener.accept()
        connection.settimeout(STOP)
        with connection:
            yield Runtime(connection, plugin)
        plugin.stdin.close()
        plugin.wait(STOP)


def described(number: int, pid: int) -> bytes:
    """Return a container of some 3 KiB, as those of a real node are."""
    pairs = [(f"example.com/annotation-{key}", "x" * 40) for key in range(15)]
    mounts = [(f"/etc/{key}", "bind", f"/var/lib/kubelet/pods/{number:036}/volumes/{key}") for key in range(12)]
    return (
        wire.field(1, f"{number:064x}")
        + wire.field(2, f"pod-{number}")
        + wire.field(3, f"container-{number}")
        + wire.field(4, 3)
        + b"".join(wire.item(6, wire.field(1, key) + wire.field(2, value)) for key, value in pairs)
        + b"".join(wire.item(8, f"VARIABLE_{key}=value") for key in range(25))
        + b"".join(wire.item(9, b"".join(map(wire.field, (1, 2, 3), mount))) for mount in mounts)
        + wire.field(11, wire.item(1, wire.field(1, "pid")))
        + wire.field(12, pid)
    )


@pytest.mark.slow  # and not where coverage takes memory, too
def test_a_thousand_containers_are_taken_in_and_the_plugin_stays_small(
    runtime: Runtime, served: Daemon, sandbox: Callable[..., Sandbox]
) -> None:
    with_files = sandbox(views=served.mountpoint)
    without = [sandbox() for _ in range(3)]
    inits = [with_files.init] * (CONTAINERS - len(without)) + [box.init for box in without]
    runtime.receive()  # its registration
    began = time.monotonic()
    runtime.ask("Configure", wire.field(2, "containerd") + wire.field(3, "2.1.9"), 1)
    for start in range(0, CONTAINERS, PART):
        numbers = range(start, start + PART)
        pods = b"".join(wire.item(1, wire.field(1, f"pod-{number}") + wire.field(4, "shop")) for number in numbers)
        containers = b"".join(wire.item(2, described(number, inits[number])) for number in numbers)
        more = start + PART < CONTAINERS
        answer = runtime.ask("Synchronize", pods + containers + wire.field(3, int(more)), 3 + 2 * start)
        assert wire.whole(answer, 2) == more
    synchronized, spent = time.monotonic(), runtime.plugin.cpu_times()
    for box in without:
        wait_for(lambda box=box: "fuse.lxcfs" in Path(f"/proc/{box.init}/mounts").read_text())
    attached = time.monotonic()
    memory = runtime.plugin.memory_info().rss
    print(
        f"{CONTAINERS} containers: synchronized in {synchronized - began:.2f} s (the plugin's start and all this took "
        f"{spent.user + spent.system:.2f} s of CPU time), all have the files after "
        f"{attached - began:.2f} s, {memory / 1e6:.1f} MB, load {os.getloadavg()[0]:.1f}"
    )
    assert memory < 30e6
