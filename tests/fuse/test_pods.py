"""One node's pods, one after the other: `run --keep --stay`. Who reads waits where nobody serves, and sees no error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.conftest import ROOT, STOP, mountpoints, unmount_below
from tests.kept import wait_for


class Node:
    """A mountpoint, and the pods that serve it."""

    def __init__(self, directory):
        self.directory = directory
        self.views = directory / "views"
        self.views.mkdir()
        self.pods = []

    def start(self, mountpoint=None):
        """A pod that serves, or that has ended."""
        log = self.directory / f"log{len(self.pods)}"
        command = [sys.executable, "-m", "lxcfs_py", "run", "--keep", "--stay", str(mountpoint or self.views)]
        with log.open("wb") as output:
            pod = psutil.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=output)
        pod.log = log
        self.pods.append(pod)
        wait_for(lambda: "serving" in log.read_text() or pod.poll() is not None)
        return pod

    def kill(self, pod):
        """End all of a pod at once, as an out-of-memory kill does."""
        processes = [pod, *pod.children(recursive=True)]
        for process in processes:
            process.kill()
        pod.wait(STOP)

    @contextlib.contextmanager
    def reader(self):
        """Somebody who reads all the time while the block runs, and sees no error."""
        reads, errors, stop = [], [], threading.Event()

        def read():
            while not stop.is_set():
                try:
                    reads.append((self.views / "proc/uptime").read_text())
                except OSError as error:
                    errors.append(error)
                time.sleep(0.005)

        thread = threading.Thread(target=read)
        thread.start()
        try:
            yield
            before = len(reads)
            wait_for(lambda: len(reads) > before + 2 or errors)
        finally:
            stop.set()
            thread.join(30)
        assert not errors
        assert reads


@pytest.fixture
def node(require, tmp_path):
    require(os.geteuid() == 0, "root")
    node = Node(tmp_path)
    yield node
    for pod in node.pods:
        if pod.poll() is None:
            node.kill(pod)
    unmount_below(node.views)


@pytest.mark.parametrize("how", ["told to stop", "killed"])
def test_a_pod_that_has_taken_over_and_ends_hands_back_to_the_one_before(node, how):
    first = node.start()
    with node.reader():
        second = node.start()
        wait_for(lambda: not first.children())
        if how == "killed":
            node.kill(second)
        else:
            second.send_signal(signal.SIGTERM)
            assert second.wait(STOP) == 0
        wait_for(lambda: "serving it again" in first.log.read_text())
        assert first.children()
    first.send_signal(signal.SIGTERM)
    assert first.wait(STOP) == 0
    assert str(node.views) not in mountpoints(), "the last one unmounts"


def test_pods_that_replace_each_other_leave_the_mount_to_the_last_one(node):
    first = node.start()
    with node.reader():
        second = node.start()
        first.send_signal(signal.SIGTERM)
        assert first.wait(STOP) == 0
        third = node.start()
        second.send_signal(signal.SIGTERM)
        assert second.wait(STOP) == 0
        assert str(node.views) in mountpoints()
    third.send_signal(signal.SIGTERM)
    assert third.wait(STOP) == 0
    assert str(node.views) not in mountpoints()


def test_a_mount_that_somebody_took_away_is_not_served_again(node):
    first = node.start()
    second = node.start()
    unmount_below(node.views)
    wait_for(lambda: not second.children())
    second.send_signal(signal.SIGTERM)
    assert second.wait(STOP) == 0
    time.sleep(4)
    assert "serving it again" not in first.log.read_text()
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(STOP) == 0
