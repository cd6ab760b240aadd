"""Pods on Debian's containerd, with systemd's cgroups of version 2: 1.7 (Debian 13) with NRI switched on, 2.1 (14).

Nothing is done but `apt install ./lxcfs-py.deb`: the service finds the runtime's NRI.
"""

from __future__ import annotations

import contextlib
import json
import shlex

import pytest

from lxcfs_py.attach import nri
from tests.kubernetes import cri
from tests.vm.debian import ROOT

SUITES = ("trixie", "forky")
SECONDS = 2400  # for pods on an emulated CPU
PACKAGES = (
    *("apparmor", "busybox-static", "containerd", "runc"),
    *("python3-grpcio", "python3-psutil", "python3-sdnotify"),
)
CONFIG = f"""
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{cri.IMAGE}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins."io.containerd.nri.v1.nri"]
disable = false
"""
PREPARE = """
set -e
mkdir -p /etc/containerd && cp /root/containerd.toml /etc/containerd/config.toml
systemctl restart containerd
ctr --namespace k8s.io images import /root/image.tar >/dev/null
apt-get install --yes /root/lxcfs-py.deb >/root/installed 2>&1
"""
# Its first acts are to read.
SEES = "head -n 1 /proc/meminfo; grep -c ^processor /proc/cpuinfo; grep -c ^cpu[0-9] /proc/stat"
ITSELF = f"MemTotal: {256 * 1024:14} kB\n1\n1\n"
REGISTERED = "journalctl --unit lxcfs-py --output cat | grep -c 'registered with containerd'"


@pytest.fixture(scope="module")
def machines(boot, debs, tmp_path_factory):
    """machines(suite) has the package installed, and a containerd with the image; it boots when it is asked for."""
    booted = {}

    def machine(suite):
        if suite not in booted:
            booted[suite] = boot(suite, packages=PACKAGES, memory=6144)
            directory = tmp_path_factory.mktemp(suite)
            booted[suite].run("cp /usr/bin/busybox /root/busybox; mkdir -p /root/tests/kubernetes /root/tests/vm")
            booted[suite].get("/root/busybox", directory / "busybox")
            (directory / "image.tar").write_bytes(cri.image(directory / "busybox"))
            (directory / "containerd.toml").write_text(CONFIG)
            for name in ("image.tar", "containerd.toml"):
                booted[suite].put(directory / name, f"/root/{name}")
            booted[suite].put(debs.old, "/root/lxcfs-py.deb")
            booted[suite].put(ROOT / "tests/kubernetes/cri.py", "/root/tests/kubernetes/")
            booted[suite].put(ROOT / "tests/vm/pods.py", "/root/tests/vm/")
            booted[suite].run(PREPARE, timeout=600)
            wait_until_registered(booted[suite], 1)
        return booted[suite]

    return machine


@pytest.fixture
def node(suite, machines):
    return machines(suite)


def wait_until_registered(machine, times):
    machine.run(f"until [ $({REGISTERED}) -ge {times} ]; do sleep 0.5; done")


def registered(machine):
    return int(machine.run(REGISTERED, check=False).stdout)


def pods(machine, *wishes, script=SEES, meanwhile=":"):
    """What the script prints in a pod for each wish, of which there are all at once."""
    command = f"cd /root && python3 -m tests.vm.pods {shlex.quote(script)} {shlex.join(wishes)} >/root/pods &"
    machine.run(f"{command} {meanwhile}; wait $!", timeout=SECONDS)
    return json.loads(machine.run("cat /root/pods").stdout)


@pytest.mark.timeout(SECONDS)
def test_fifty_pods_see_themselves_from_their_first_instruction_unless_they_opt_out(node):
    host = node.run(SEES).stdout
    wishes = ["all"] * 40 + ["none"] * 5 + ["shared"] * 5
    assert pods(node, *wishes) == [ITSELF] * 40 + [host] * 5 + [ITSELF] * 5


def test_what_runc_does_not_mount_is_attached_within_the_services_confines(node):
    (mounts,) = pods(node, "all", script="sleep 5; grep fuse.lxcfs /proc/mounts")
    assert "/proc/pressure/cpu" in mounts
    assert "/proc/vmstat" in mounts


@contextlib.contextmanager
def served_anew(node):
    """What is done meanwhile ends with a plugin that registers once more, and serves."""
    before = registered(node)
    yield
    wait_until_registered(node, before + 1)
    assert pods(node, "all") == [ITSELF]


def test_it_registers_again_with_a_runtime_that_is_restarted(node):
    with served_anew(node):
        node.run("systemctl restart containerd")


@pytest.mark.parametrize("command", ["restart", "kill --signal KILL"])
def test_pods_see_themselves_after_the_service_was_restarted_or_killed(node, command):
    with served_anew(node):
        node.run(f"systemctl {command} lxcfs-py")


def test_pods_start_while_the_service_is_stopped(node):
    with served_anew(node):
        node.run("systemctl stop lxcfs-py")
        try:
            assert pods(node, "all") == [node.run(SEES).stdout]
        finally:
            node.run("systemctl start lxcfs-py")


def test_a_container_is_called_by_its_pod(node):
    command = "cd /root && timeout 60 python3 -m tests.vm.pods 'sleep 20' all"
    node.run(f"({command}) >/dev/null 2>&1 &")
    named = 'lxcfs-py status --json | grep -o \'"name": "shop/pod-[0-9a-f]*/container-0"\''
    assert "shop/pod-" in node.run(f"until {named}; do sleep 1; done").stdout
    told = json.loads(node.run("lxcfs-py status --json").stdout)["containers"]
    states = {each["name"].count("/"): (each["engine"], bool(each["left_alone"])) for each in told}
    assert states == {1: ("containerd", True), 2: ("containerd", False)}
    node.run("wait; sleep 20")


def test_neither_log_has_an_error(node):
    assert nri.SOCKET in node.run("ss --listening --unix").stdout.replace("/run/nri", "/var/run/nri")
    assert " ERROR: " not in node.run("journalctl --unit lxcfs-py --output cat").stdout
    errors = node.run("journalctl --unit containerd --output cat | grep level=error | grep lxcfs", check=False).stdout
    assert not [line for line in errors.splitlines() if "ttrpc: closed" not in line]


# The runtime's own log says of these that the plugin went.


@pytest.mark.parametrize("what", ["restart", "kill --signal KILL", "stop"])
def test_every_pod_starts_whatever_becomes_of_the_service_meanwhile(node, what):
    host = node.run(SEES).stdout
    with served_anew(node):
        try:
            seen = pods(node, *["all"] * 4, meanwhile=f"sleep 3; systemctl {what} lxcfs-py")
        finally:
            node.run("systemctl start lxcfs-py")
        assert set(seen) <= {ITSELF, host}


def test_pods_start_where_the_plugin_hangs(node):
    with served_anew(node):
        node.run("pkill -STOP -f lxcfs_py.attach.nri")
        try:
            assert pods(node, "all", "all") == [node.run(SEES).stdout] * 2
        finally:
            node.run("pkill -CONT -f lxcfs_py.attach.nri")
