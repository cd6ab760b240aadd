"""One node's pods, one after the other: `run --keep --stay`. Who reads waits where nobody serves, and sees no error."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from lxcfs_py.linux import runtime_directory, syscalls
from tests.conftest import ROOT, STOP, Daemon, mountpoints, unmount_below
from tests.kept import reading, wait_for


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

    def has_server(self, pod):
        """Tell whether a pod's keeper has a server, as far as that holds still."""
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended while psutil looked
            return bool(pod.children())
        return True

    def kill(self, pod):
        """End all of a pod at once, as an out-of-memory kill does."""
        processes = [pod, *pod.children(recursive=True)]
        for process in processes:
            process.kill()
        pod.wait(STOP)

    def end(self):
        """Leave nothing of it behind."""
        for pod in self.pods:
            if pod.poll() is None:
                self.kill(pod)
        unmount_below(self.views)

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
    node.end()


@pytest.mark.parametrize("how", ["told to stop", "killed"])
def test_a_pod_that_has_taken_over_and_ends_hands_back_to_the_one_before(node, how):
    first = node.start()
    with node.reader():
        second = node.start()
        wait_for(lambda: not node.has_server(first))
        if how == "killed":
            node.kill(second)
        else:
            second.send_signal(signal.SIGTERM)
            assert second.wait(STOP) == 0, second.log.read_text()
        wait_for(lambda: "ing it again" in first.log.read_text())  # serving, or starting, where nobody has served yet
        wait_for(lambda: node.has_server(first))
    first.send_signal(signal.SIGTERM)
    assert first.wait(STOP) == 0, first.log.read_text()
    assert str(node.views) not in mountpoints(), "the last one unmounts"


def test_pods_that_replace_each_other_leave_the_mount_to_the_last_one(node):
    first = node.start()
    with node.reader():
        second = node.start()
        first.send_signal(signal.SIGTERM)
        assert first.wait(STOP) == 0, first.log.read_text()
        third = node.start()
        second.send_signal(signal.SIGTERM)
        assert second.wait(STOP) == 0, second.log.read_text()
        assert str(node.views) in mountpoints()
    third.send_signal(signal.SIGTERM)
    assert third.wait(STOP) == 0
    assert str(node.views) not in mountpoints()


def test_a_mount_that_somebody_ended_is_not_served_again(node):
    first = node.start()
    second = node.start()
    syscalls.umount(str(node.views), syscalls.MNT_FORCE | syscalls.MNT_DETACH)
    wait_for(lambda: not node.has_server(second))
    second.send_signal(signal.SIGTERM)
    assert second.wait(STOP) == 0, second.log.read_text()
    time.sleep(4)
    assert str(node.views) not in mountpoints()
    assert "serving it again" not in first.log.read_text()
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert first.wait(STOP) == 0, first.log.read_text()


def lxcfs_py(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lxcfs_py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_removal_leaves_neither_mount_nor_file_and_the_pod_waits_for_its_end(node, sandbox):
    pod = node.start()
    config = node.directory / "lxcfs.toml"
    config.write_text(f'mountpoint = "{node.views}"\n')
    container = sandbox(memory=64 << 20, views=node.views)
    assert container.run(["head", "-n", "1", "/proc/meminfo"]).stdout.split()[1] == "65536"
    done = lxcfs_py("remove", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert not node.views.exists()
    assert int(container.run(["head", "-n", "1", "/proc/meminfo"]).stdout.split()[1]) > 65536
    wait_for(lambda: not node.has_server(pod))
    assert pod.poll() is None, "a pod whose container ends is started again"
    assert runtime_directory.files_of(str(node.views)) == []
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(STOP) == 0, pod.log.read_text()
    assert lxcfs_py("remove", "--config", str(config)).returncode == 0, "there is nothing to remove"


def test_another_mountpoint_than_the_one_that_is_served_is_refused(node):
    node.start()
    other = node.start(node.directory / "other")
    assert other.wait(STOP) == 1
    assert f"containers of this node have their files of {node.views}" in other.log.read_text()
    assert "Traceback" not in other.log.read_text()
    assert node.start().poll() is None


def test_a_probe_of_this_pod_is_not_answered_by_another_ones_server(node):
    node.start()
    probe = ("status", "--probe", "--mountpoint", str(node.views))
    assert lxcfs_py(*probe).returncode == 0
    assert lxcfs_py(*probe, "--here").returncode == 0
    directory = next(path for path in cgroups() if path.is_dir()) / f"pod-{os.getpid()}"
    directory.mkdir()
    try:
        script = f"echo $$ >{directory}/cgroup.procs; exec {sys.executable} -m lxcfs_py {' '.join(probe)} --here"
        done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    finally:
        directory.rmdir()
    assert (done.returncode, "in another container" in done.stdout) == (1, True)


def cgroups():
    """Where a cgroup can be made: version 2, or version 1's hierarchy for pids."""
    yield from map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", "/sys/fs/cgroup"))


def test_a_keeper_that_is_to_stay_waits_to_be_told_when_another_has_taken_over(start_daemon, sandbox):
    first = start_daemon("kernel", keep=True)
    with contextlib.ExitStack() as stack:

        def start(name, *options):
            daemon = Daemon([*first.command, *options], first.mountpoint, first.log.with_name(name))
            stack.callback(lambda: daemon.process.poll() is None and daemon.stop())
            return daemon

        with reading(sandbox(memory=256 << 20, views=first.mountpoint)):
            second = start("second", "--stay")
            assert first.process.wait(20) == 0, "one that is not to stay ends"
            wait_for(lambda: "resumed" in second.log.read_text())
            third = start("third")
            wait_for(lambda: f"takes {first.mountpoint} over" in second.log.read_text())
            wait_for(lambda: not psutil.Process(second.process.pid).children())
            time.sleep(0.5)
            assert second.process.poll() is None
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(20) == 0
            assert str(first.mountpoint) in mountpoints()
        assert third.stop() == 0
        assert str(first.mountpoint) not in mountpoints()
