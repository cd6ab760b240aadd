"""The DaemonSet's pod on a node with systemd: whatever ends it, who reads waits, and the next pod goes on.

Docker runs the pods, with what the kubelet would give them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jeepney
import pytest

from tests.vm import debian
from tests.vm.machine import Machine, missing

ROLLOVERS = 20
READERS = ("one", "two", "three")
# As kubernetes/base/daemonset.yaml has it; the programs are the node's own.
POD = """
docker run --detach --name {name} --pid host --network none --privileged --read-only \
    --volume /usr:/usr:ro --volume /var/lib:/var/lib:rshared --volume /run/lxcfs-py:/run/lxcfs-py \
    --volume /run/dbus:/run/dbus --volume /sys/fs/cgroup:/sys/fs/cgroup:ro --volume /root/lxcfs.toml:/etc/lxcfs.toml \
    box lxcfs-py {command}
"""
# As kubernetes/remove/pod/daemonset.yaml has it.
REMOVE = """
docker run --rm --pid host --network none --privileged --read-only --volume /usr:/usr:ro \
    --volume /var/lib:/var/lib:rshared --volume /run:/run --volume /sys/fs/cgroup:/sys/fs/cgroup:ro \
    --volume /root/lxcfs.toml:/etc/lxcfs.toml box lxcfs-py remove
"""
SERVES = "until docker logs {name} 2>&1 | grep --quiet 'serving [0-9]'; do sleep 0.1; done"


class Node:
    """A machine whose pods are started and ended."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def run(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, which may take its time: its CPU is emulated, and three containers read."""
        return self.machine.run(command, check=check, timeout=600)

    def start(self, name: str) -> None:
        """Start a pod; return when it serves."""
        self.run(POD.format(name=name, command="run --keep --stay"))
        self.run(SERVES.format(name=name))

    def log(self, name: str) -> str:
        done = self.run(f"docker logs {name} 2>&1", check=False)
        return done.stdout

    def mount(self) -> str:
        """The line of the mount in the node's mountinfo: another mount has another one."""
        return debian.mount(self.machine)

    @contextlib.contextmanager
    def readers(self) -> Iterator[None]:
        """Three containers that read all the time while the block runs: no read fails."""
        for name in READERS:
            self.run(
                f"docker run --detach --name {name} --memory 256m --cpus 1 --network none --volume /usr:/usr:ro "
                "--volume /root/tests:/root/tests:ro "
                f"$(lxcfs-py mounts docker) box {debian.READER}"
            )
        yield
        for name in READERS:
            self.run(f"docker stop --time 300 {name}")
            seen = json.loads(self.run(f"docker logs {name}").stdout)
            print(name, seen)
            assert not seen["failed"], seen
            assert seen["reads"] > 20, seen
            self.run(f"docker rm {name}")


@pytest.fixture(scope="module")
def booted(require, tmp_path_factory) -> Iterator[Machine]:
    require(not missing(), ", ".join(missing()))
    require(not debian.missing(), ", ".join(debian.missing()))
    deb = debian.build(tmp_path_factory.mktemp("deb"))
    with contextlib.ExitStack() as stack:
        machine = debian.boot(stack, "trixie")
        machine.put(deb, "/root/lxcfs-py.deb")
        machine.run("apt-get install --yes /root/lxcfs-py.deb >/dev/null 2>&1", timeout=900)
        machine.run("systemctl disable --now lxcfs-py && cp /etc/lxcfs.toml /root/ && mkdir --parents /run/lxcfs-py")
        machine.put(Path(jeepney.__file__).parent, "/usr/lib/python3/dist-packages/")
        yield machine


@pytest.fixture
def node(booted: Machine) -> Iterator[Node]:
    booted.run("cp /etc/lxcfs.toml /root/")
    yield Node(booted)
    booted.run("docker ps --all --quiet | xargs --no-run-if-empty docker rm --force >/dev/null", timeout=600)
    booted.run("systemctl stop lxcfs-py-session", check=False)
    booted.run("umount --lazy --force /var/lib/lxcfs", check=False)


def roll_over(node: Node, times: int) -> None:
    """Replace a pod by the next one so many times, as a rollout does; `pod-0` serves at first."""
    for number in range(1, times + 1):
        node.start(f"pod-{number}")
        node.run(f"docker stop --time 30 pod-{number - 1} && docker rm pod-{number - 1}")


def test_a_pod_that_is_killed_removed_and_replaced_leaves_its_mount_to_the_next(node):
    node.start("first")
    mount = node.mount()
    assert mount
    with node.readers():
        node.run("docker kill first")  # SIGKILL for the keeper; the rest of the container goes with it
        node.run("docker rm --force first")
        assert node.mount() == mount
        node.start("second")
        node.run("docker rm --force second")  # as `kubectl delete pod --force`
        node.start("third")
        node.run("docker stop --time 30 third && docker rm third")  # as `kubectl delete pod`
        assert node.mount() == mount
        node.start("fourth")
        node.start("fifth")  # a rollout
        node.run("docker stop --time 30 fourth && docker rm fourth")
        assert node.mount() == mount
    assert "resumed" in node.log("fifth")


def test_a_new_pod_that_never_answers_gives_the_mount_back_when_it_is_deleted(node):
    node.start("old")
    mount = node.mount()
    with node.readers():
        node.start("new")
        node.run("docker pause new && sleep 20")
        node.run("docker rm --force new")  # a rollout that is undone
        node.run("until docker logs old 2>&1 | grep --quiet 'serving it again'; do sleep 0.1; done")
        assert node.mount() == mount


@pytest.mark.timeout(2400)  # a rollover takes a minute on an emulated CPU that three readers use, too
def test_rollovers_with_attach_auto_are_noticed_by_nobody(node):
    node.run("sed --in-place 's/^auto = false/auto = true/' /root/lxcfs.toml && grep '^auto = true' /root/lxcfs.toml")
    node.start("pod-0")
    mount = node.mount()
    with node.readers():
        roll_over(node, ROLLOVERS)
    assert node.mount() == mount


def test_removal_leaves_nothing_on_the_node(node):
    node.start("last")
    node.run(
        "docker run --detach --name user --memory 256m --network none --volume /usr:/usr:ro $(lxcfs-py mounts docker) "
        "box sleep infinity"
    )
    see = "docker exec user head --lines 1 /proc/meminfo"
    assert node.run(see).stdout.split()[1] == "262144"
    node.run("docker rm --force last")  # its session is held by the node's systemd
    assert node.run("systemctl is-active lxcfs-py-session").stdout == "active\n"
    said = node.run(REMOVE).stdout
    assert "nothing is left" in said
    assert not node.mount()
    assert node.run(see).stdout == node.run("head --lines 1 /proc/meminfo").stdout
    assert node.run("systemctl is-active lxcfs-py-session", check=False).stdout == "inactive\n"
    assert node.run("ls -d /run/lxcfs-py /var/lib/lxcfs /run/systemd/transient/lxcfs*", check=False).stdout == ""
    assert node.run("grep --count lxcfs /proc/*/mountinfo | grep --invert-match ':0$'", check=False).stdout == ""
