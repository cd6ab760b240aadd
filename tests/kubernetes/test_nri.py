"""Pods on containerd, made as a kubelet makes them: each sees itself, by NRI, without a word in its definition."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from lxcfs_py.attach import nri, running
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.runtimes.names import Names
from tests import cached
from tests.conftest import ROOT, STOP, unmount_below
from tests.kept import wait_for
from tests.kubernetes import cri
from tests.vm.machine import apt_options, command_output, locked, mirror

# Written in version 2, which containerd 1.7 and 2 read.
CONFIG = """
version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.nri.v1.nri"]
disable = false
"""
SEES = "set -- $(head -n 1 /proc/meminfo); echo $2; grep -c ^processor /proc/cpuinfo"
ITSELF = "262144\n1\n"


class Node:
    """A directory with a containerd of its own, and a daemon."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.config = directory / "lxcfs.toml"
        (directory / "lib").mkdir()
        self.config.write_text(f'mountpoint = "{directory}/lib/lxcfs"\n')
        (directory / "containerd.toml").write_text(CONFIG.format(directory=directory, image=cri.IMAGE))

    def start_runtime(self) -> None:
        """Start containerd; return when it answers."""
        with (self.directory / "containerd.log").open("ab") as log:
            command = ["containerd", "--config", str(self.directory / "containerd.toml")]
            self.containerd = subprocess.Popen(command, stdout=log, stderr=log)
        address = self.directory / "containerd.sock"
        self.ctr = ["ctr", "--address", str(address), "--namespace", "k8s.io"]
        wait_for(lambda: address.exists() and not self.attempt("version"))
        self.cri = cri.Runtime(address, self.directory / "logs")

    def stop_runtime(self) -> None:
        self.containerd.terminate()
        self.containerd.wait(STOP)

    def attempt(self, *arguments: str) -> int:
        return subprocess.run([*self.ctr, *arguments], capture_output=True, timeout=60).returncode

    def start_daemon(self, *options: str, registers: bool = True) -> None:
        """Start the daemon; return when the runtime knows it, or where it has no NRI when it serves."""
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "lxcfs_py", "run", *options, "--config", str(self.config)]
            self.daemon = psutil.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=log)
        if registers:
            self.wait_until_registered(1)
        else:
            wait_for(lambda: "serving " in self.log.read_text())

    def replace_daemon(self) -> None:
        """Let another one take over, as a rollout does."""
        before = self.daemon
        self.start_daemon("--keep")
        before.wait(STOP)

    def stop_daemon(self) -> None:
        if self.daemon.poll() is None:
            self.daemon.terminate()
            self.daemon.wait(STOP)

    def plugin(self) -> psutil.Process:
        (found,) = [child for child in self.daemon.children() if nri.__name__ in child.cmdline()]
        return found

    def kill_server(self) -> None:
        """Kill what a keeper started, which starts another one."""
        registered = self.log.read_text().count("registered with containerd")
        self.daemon.children()[0].kill()
        self.wait_until_registered(registered + 1)

    def wait_until_registered(self, times: int) -> None:
        wait_for(lambda: self.log.read_text().count("registered with containerd") >= times)

    def run(self, script: str, **pod: Any) -> str:
        """What a script prints in a pod of its own."""
        made = self.cri.pod(**pod)
        try:
            return made.run(script)
        finally:
            made.remove()


# Debian 12's containerd knows no NRI; that of Debian 14 runs there too.
SUITE = "forky"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")


def has_nri() -> bool:
    version = subprocess.run(["containerd", "--version"], capture_output=True, text=True).stdout
    found = re.search(r" v?(\d+)\.(\d+)\.", version)
    return found is not None and tuple(map(int, found.groups())) >= (1, 7)


def is_listening(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(path) == 0


def newer_containerd() -> Path:
    """The directory of a containerd that knows NRI, from the cache or fetched now."""
    directory = cached.directory() / f"containerd-{SUITE}"
    with locked(directory.with_suffix(".lock")):
        if not directory.exists():
            with tempfile.TemporaryDirectory(dir=directory.parent) as building:
                options = [f"--aptopt={line}" for line in apt_options()]
                command = ["mmdebstrap", "--quiet", "--variant=extract", "--include=containerd", *options]
                command_output([*command, SUITE, f"{building}/root", mirror()], timeout=600)
                (Path(building) / "bin").mkdir()
                for program in PROGRAMS:
                    shutil.copy(f"{building}/root/usr/bin/{program}", f"{building}/bin/")
                (Path(building) / "bin").rename(directory)
    return directory


@pytest.fixture(scope="module")
def runtime(require) -> Iterator[Node]:
    require(os.geteuid() == 0, "root")
    require(all(map(shutil.which, ("containerd", "ctr", "runc"))), "containerd, ctr, runc: apt-get install containerd")
    busybox = shutil.which("busybox")
    require(busybox, "busybox: apt-get install busybox-static")
    with pytest.MonkeyPatch.context() as patch:
        if not has_nri():
            require(shutil.which("mmdebstrap"), "containerd 1.7 or later, or mmdebstrap to fetch it")
            patch.setenv("PATH", f"{newer_containerd()}:{os.environ['PATH']}")
        yield from a_runtime(require, str(busybox))


def a_runtime(require, busybox: str) -> Iterator[Node]:
    require(not is_listening(nri.SOCKET), f"that no other runtime is at {nri.SOCKET}")
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-node-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", name], check=True)
        stack.callback(unmount_below, directory)
        subprocess.run(["mount", "--make-rshared", name], check=True)
        node = Node(directory)
        node.start_runtime()
        stack.callback(lambda: node.stop_runtime())
        (directory / "image.tar").write_bytes(cri.image(Path(busybox)))
        assert node.attempt("images", "import", str(directory / "image.tar")) == 0
        yield node


@pytest.fixture
def node(runtime: Node) -> Iterator[Node]:
    runtime.start_daemon()
    yield runtime
    runtime.stop_daemon()


@pytest.fixture
def machines(runtime: Node) -> str:
    """What a pod sees without a daemon."""
    return runtime.run(SEES)


def test_a_pod_sees_itself_from_its_first_instruction_on(machines, node):
    assert machines != ITSELF
    assert node.run(SEES) == ITSELF
    assert node.run(SEES, shared_pids=True) == ITSELF


def test_what_runc_mounts_nothing_over_is_attached_as_the_container_starts(node):
    assert " fuse.lxcfs " in node.run("sleep 1; grep /proc/pressure/cpu /proc/mounts")


def test_a_pod_says_what_it_gets(machines, node):
    memory, cpus = machines.split()
    assert node.run(SEES, views="none") == machines
    assert node.run(SEES, views="meminfo") == f"262144\n{cpus}\n"
    assert node.run(SEES, views="cpuinfo, stat") == f"{memory}\n1\n"
    assert node.run(SEES, namespace="kube-system") == machines
    assert node.run(SEES, namespace="kube-system", views="all") == ITSELF
    assert node.run("echo $GOMAXPROCS", environment="GOMAXPROCS") == "1\n"


def test_a_pod_whose_runtime_shows_no_seccomp_policy_keeps_it_and_sees_itself(node):
    """Debian's containerd, up to 2.1, does not show it: a policy that is not known is not replaced."""
    assert node.run(f"{SEES}; grep ^Seccomp: /proc/self/status", syscalls="true") == f"{ITSELF}Seccomp:\t2\n"
    assert "its system calls are not answered: the runtime shows no seccomp policy of it" in node.log.read_text()


def test_what_a_container_mounts_itself_is_left_alone(node):
    (node.directory / "meminfo").write_text("its own\n")
    pod = node.cri.pod()
    try:
        mounts = {"/proc/meminfo": str(node.directory / "meminfo")}
        assert pod.run("cat /proc/meminfo; grep -c ^processor /proc/cpuinfo", mounts=mounts) == "its own\n1\n"
    finally:
        pod.remove()


def test_a_pod_starts_where_the_machines_mounts_are_private(runtime: Node) -> None:
    """As they are without systemd: a runtime that is asked for a mount that follows them starts no container."""
    subprocess.run(["mount", "--make-rprivate", runtime.directory], check=True)
    try:
        runtime.start_daemon()
        assert runtime.run(SEES) == ITSELF
    finally:
        runtime.stop_daemon()
        subprocess.run(["mount", "--make-rshared", runtime.directory], check=True)


def test_fifty_pods_that_start_at_once_see_themselves_unless_they_opted_out(machines, node):
    views = ["none" if number % 5 == 0 else "all" for number in range(50)]
    with ThreadPoolExecutor(50) as pool:
        seen = list(pool.map(lambda wish: node.run(SEES, views=wish), views))
    assert seen == [machines if wish == "none" else ITSELF for wish in views], node.log.read_text()


@pytest.mark.parametrize("trouble", ["replaced", "killed", "stopped"])
def test_every_pod_starts_whatever_becomes_of_the_daemon_meanwhile(machines, runtime, trouble):
    runtime.start_daemon("--keep")
    ended = threading.Event()

    def make_trouble() -> int:
        times = 0
        while not ended.is_set():
            if trouble == "stopped":
                runtime.stop_daemon()
                runtime.start_daemon("--keep")
            else:
                runtime.replace_daemon() if trouble == "replaced" else runtime.kill_server()
            times += 1
            ended.wait(1)
        return times

    try:
        with ThreadPoolExecutor(9) as pool:
            times = pool.submit(make_trouble)
            try:
                seen = Counter(pool.map(lambda _: runtime.run(SEES), range(40)))
            finally:
                ended.set()
            assert times.result() > 1
        assert runtime.run(SEES) == ITSELF
    finally:
        runtime.stop_daemon()
    print(trouble, times.result(), seen)
    assert set(seen) <= {ITSELF, machines}


def test_a_container_that_ran_before_the_daemon_came_gets_the_files(runtime):
    pod = runtime.cri.pod()
    with ThreadPoolExecutor() as pool:
        seen = pool.submit(pod.run, f"until grep -q fuse.lxcfs /proc/mounts; do sleep 0.1; done; sleep 1; {SEES}")
        runtime.start_daemon()
        try:
            assert seen.result(60) == ITSELF
        finally:
            runtime.stop_daemon()
            pod.remove()


def test_a_container_that_has_files_of_a_daemon_that_was_stopped_gets_them_of_the_next(runtime: Node) -> None:
    mark = runtime.directory / "mark"
    mark.mkdir()
    runtime.start_daemon()
    pod = runtime.cri.pod()
    loses, has = (f"{word} cat /proc/meminfo >&2; do sleep 0.1; done" for word in ("while", "until"))
    script = f"exec 2>/dev/null; touch /mark/begun; {loses}; touch /mark/lost; {has}; sleep 1; {SEES}"
    try:
        with ThreadPoolExecutor() as pool:
            seen = pool.submit(pod.run, script, mounts={"/mark": str(mark)})
            wait_for((mark / "begun").exists)
            runtime.stop_daemon()
            wait_for((mark / "lost").exists)
            runtime.start_daemon()
            assert seen.result(60) == ITSELF
    finally:
        pod.remove()
        runtime.stop_daemon()


def test_pods_start_whatever_becomes_of_the_plugin_and_of_the_daemon(machines, node):
    node.plugin().suspend()
    assert node.run(SEES) == machines, "the runtime gives it up"
    node.plugin().resume()
    node.wait_until_registered(2)
    assert node.run(SEES) == ITSELF
    node.plugin().kill()
    node.wait_until_registered(3)
    assert node.run(SEES) == ITSELF
    node.daemon.kill()
    node.daemon.wait(STOP)
    wait_for(lambda: node.run(SEES) == machines)


def test_it_registers_with_the_runtime_that_comes_back(node):
    node.stop_runtime()
    node.start_runtime()
    node.wait_until_registered(2)
    assert node.run(SEES) == ITSELF


def test_a_pod_is_called_by_its_namespace_and_name_and_its_pause_container_left_alone(
    node: Node, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/containerd").symlink_to(node.directory / "state")
    pod = node.cri.pod(namespace="accounts")
    try:
        inits = (container.pid for container in running.containers(running.processes()))
        found = (Names(str(tmp_path)).of(running.cgroup(pid)) for pid in inits)
        (pause,) = [each for each in found if each and each.name.startswith("accounts/")]
    finally:
        pod.remove()
    assert re.fullmatch(r"accounts/pod-[0-9a-f]{8}", pause.name)
    assert (pause.engine, pause.opt_out()) == ("containerd", "it is a pod's pause container")


def test_a_pod_with_the_localhost_profile_is_told_what_its_files_say(node):
    socket_path = seccomp_profile.socket_of(f"{node.directory}/lib/lxcfs")
    profile = node.directory / "profile.json"
    profile.write_text(seccomp_profile.profile(ROOT / "packaging/seccomp/containers.json", socket_path, oci=True))
    pod = node.cri.pod()
    try:
        script = "free -b | grep Mem:; nproc; cat /proc/uptime; uptime; mount -t tmpfs none /tmp 2>&1"
        free, nproc, age, uptime, mount = pod.run(script, seccomp=profile).splitlines()
        assert free.split()[1] == str(256 << 20)
        assert nproc == "1"
        assert float(age.split()[0]) < 60
        assert " up 0 min" in uptime or " up 1 min" in uptime
        assert "Operation not permitted" in mount or "permission denied" in mount, "all else is as in the base"
    finally:
        pod.remove()


READS = "set -- $(seq 80); for _; do head -n 1 /proc/meminfo || echo failed; sleep 0.1; done"
MOUNTED_AT_MEMINFO = f"{SEES}; grep -c ' /proc/meminfo ' /proc/mounts"


def test_an_upgrade_from_the_webhook_to_nri_in_the_order_of_the_document(machines, runtime):
    """0.1.0 had no NRI: its pods have the files by volumes, as the webhook wrote them, and read on."""
    volumes = {f"/{name}": f"{runtime.directory}/lib/lxcfs/{name}" for name in ("proc/meminfo", "proc/cpuinfo")}
    new = runtime.config.read_text()
    runtime.config.write_text(f'{new}[nri]\nenabled = "never"\n')
    runtime.start_daemon("--keep", registers=False)
    old, by_webhook = runtime.cri.pod(), runtime.cri.pod()
    try:
        with ThreadPoolExecutor() as pool:
            reads = pool.submit(old.run, READS, mounts=volumes)
            assert runtime.run(SEES) == machines, "the webhook was not asked about it"
            runtime.config.write_text(new)
            runtime.replace_daemon()  # the DaemonSet, first
            assert by_webhook.run(MOUNTED_AT_MEMINFO, mounts=volumes) == f"{ITSELF}1\n", "each file once"
            assert runtime.run(SEES) == ITSELF, "then the webhook may go"
            assert set(reads.result(60).splitlines()) == {"MemTotal:         262144 kB"}
    finally:
        old.remove()
        by_webhook.remove()
        runtime.stop_daemon()
        runtime.config.write_text(new)


GONE = ("ttrpc: closed", "context deadline exceeded", "failed sending message on channel")


def test_the_runtimes_own_log_has_no_error_of_ours(runtime: Node) -> None:
    """But that a plugin has gone or is slow, as it was made to be above."""
    lines = (runtime.directory / "containerd.log").read_text().splitlines()
    errors = [line for line in lines if "level=error" in line and "lxcfs" in line]
    assert not [line for line in errors if not any(gone in line for gone in GONE)]
