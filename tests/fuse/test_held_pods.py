"""One node's pods where the node's systemd holds the session: whatever ends one, the next goes on with its mount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest

from lxcfs_py.engine import node_keeper
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, STOP, mountpoints
from tests.fuse.test_pods import Node
from tests.kept import reading, wait_for
from tests.unit.test_node_keeper import Systemd

MIB = 1 << 20
ROLLOVERS = 3
ATTACHES = '[attach]\nauto = true\ncgroups = ["/lxcfs-py-try-*"]\n[fuse]\nengine = "kernel"\n'

POD = """
import sys
from lxcfs_py import isolated
from lxcfs_py.engine import node_keeper
node_keeper.BUS = sys.argv.pop(1)
from lxcfs_py.cli import main
sys.exit(main())
"""


class HeldNode(Node):
    """A node with a systemd that knows one unit, and pods that speak with it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.bus = str(directory / "bus")
        self.systemd: Any = Systemd(self.bus)
        self.config = directory / "lxcfs.toml"
        self.config.write_text('[fuse]\nengine = "kernel"\n')

    def start(self, mountpoint: Any = None) -> Any:
        """A pod that serves."""
        log = self.directory / f"log{len(self.pods)}"
        command = [sys.executable, "-c", POD, self.bus, "run", "--keep", "--stay", "--config", str(self.config)]
        with log.open("wb") as output:
            pod = psutil.Popen([*command, str(self.views)], cwd=ROOT, stdin=subprocess.DEVNULL, stderr=output)
        setattr(pod, "log", log)  # noqa: B010 - as Node has it
        self.pods.append(pod)
        wait_for(lambda: "INFO: serving" in log.read_text())
        return pod

    def stop(self, pod: Any) -> None:
        """End it as its deletion does."""
        pod.send_signal(signal.SIGTERM)
        assert pod.wait(STOP) == 0

    def roll_over(self, times: int) -> None:
        """Replace the pod that serves by the next one, so many times, as a rollout does."""
        for _ in range(times):
            before = self.pods[-1]
            self.start()
            self.stop(before)

    def end(self) -> None:
        """Leave nothing of it behind."""
        super().end()
        self.systemd.end()
        self.systemd.listener.close()

    def holds(self) -> bool:
        return self.systemd.unit is not None

    def is_mounted(self) -> bool:
        return str(self.views) in mountpoints()


@pytest.fixture
def node(require: Callable[[object, str], None], tmp_path: Path) -> Iterator[HeldNode]:
    require(os.geteuid() == 0, "root")
    node = HeldNode(tmp_path)
    yield node
    node.end()


def test_a_pod_that_is_killed_or_deleted_leaves_its_mount_to_the_next(
    node: HeldNode, sandbox: Callable[..., Sandbox]
) -> None:
    node.kill(node.start())  # before anybody has files of it
    assert node.holds()
    pod = node.start()
    with reading(sandbox(memory=256 * MIB, cpus=1, views=node.views)):
        node.kill(pod)  # SIGKILL of all of it, as `kubectl delete pod --force`
        assert node.holds()
        pod = node.start()
        node.stop(pod)  # as `kubectl delete pod`, where the pod has taken back what is held
        assert node.is_mounted()
        first = node.start()
        second = node.start()  # a rollout
        node.stop(first)
        node.stop(second)
        assert node.is_mounted()
        pod = node.start()
    assert node.holds()
    node.stop(pod)


def test_a_new_pod_that_never_answers_gives_the_mount_back_when_it_is_deleted(
    node: HeldNode, sandbox: Callable[..., Sandbox]
) -> None:
    old = node.start()
    with reading(sandbox(memory=256 * MIB, cpus=1, views=node.views)):
        new = node.start()
        wait_for(lambda: not node.has_server(old))
        for process in (new, *new.children()):
            process.suspend()
        node.kill(new)  # a rollout that is undone
        wait_for(lambda: "ing it again" in old.log.read_text())  # serving, or starting, where nobody has served yet
        wait_for(lambda: old.log.read_text().count("INFO: serving") == 2)
    node.stop(old)


def test_rollovers_of_pods_that_attach_are_noticed_by_nobody(node: HeldNode, sandbox: Callable[..., Sandbox]) -> None:
    node.config.write_text(ATTACHES)
    node.start()
    with reading(sandbox(memory=256 * MIB, cpus=1, views=node.views)):
        node.roll_over(ROLLOVERS)
    assert node.holds()
    node.stop(node.pods[-1])


def test_removal_lets_the_nodes_systemd_hold_nothing(
    node: HeldNode, sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = node.start()
    box = sandbox(memory=64 * MIB, views=node.views)
    node.kill(pod)
    node.config.write_text(f'mountpoint = "{node.views}"\n')
    done = subprocess.run(
        [sys.executable, "-c", POD, node.bus, "remove", "--config", str(node.config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not node.holds()
    assert not node.is_mounted()
    assert not node.views.exists()
    assert int(box.run(["head", "-n", "1", "/proc/meminfo"]).stdout.split()[1]) > 65536
    assert node_keeper.UNIT not in done.stdout
