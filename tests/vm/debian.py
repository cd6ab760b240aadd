"""Debian machines with the package installed: what the tests of the package and its service share."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from tests.vm.machine import Machine

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent

SUITES = {
    "bookworm": ("docker.io",),
    "trixie": ("docker.io", "docker-cli"),
    "forky": ("docker.io", "docker-cli", "rust-coreutils"),  # Debian 14; the last are uutils
}
PACKAGES = ("apparmor", "busybox-static", "lxc", "python3-apt")  # the last is what Ansible needs to look at packages
DOWNLOADS = ("lxcfs", "python3-psutil", "python3-sdnotify")
FUSEPY = {"bookworm": "python3-fusepy", "trixie": "python3-fusepy"}  # Debian 14 has none

READER = "python3 /root/tests/reader.py"

# All programs of a container are the machine's own: an image for Docker that is made in a second.
PREPARE = """
set -e
mkdir -p /root/image && cd /root/image
mkdir -p usr etc tmp proc sys dev var
for link in bin sbin lib lib64; do ln -s usr/$link $link; done
tar -c . | docker import - box >/dev/null
install -m 755 /root/tests/lxc-tree /usr/share/lxc/templates/lxc-tree
"""

# Whatever a test has left, the next one finds the older package with its own configuration, serving, and no container.
RESET = """
docker ps --all --quiet | xargs --no-run-if-empty docker rm --force >/dev/null
for name in $(lxc-ls); do lxc-destroy --force --name $name; done
if [ -d /etc/systemd/system/lxcfs-py.service.d ]; then
    rm -r /etc/systemd/system/lxcfs-py.service.d
    systemctl daemon-reload
    systemctl restart lxcfs-py
fi
if [ "$(dpkg-query --show --showformat='${db:Status-Status} ${Version}' lxcfs-py)" != "installed %(version)s" ]; then
    dpkg --install /root/lxcfs-py.deb >/dev/null 2>&1
fi
if ! cmp --quiet /root/lxcfs.toml /etc/lxcfs.toml; then
    cp /root/lxcfs.toml /etc/
    ! systemctl is-active --quiet lxcfs-py || systemctl reload lxcfs-py
fi
if ! systemctl is-active --quiet lxcfs-py; then
    systemctl reset-failed lxcfs-py
    systemctl start lxcfs-py
fi
"""


@dataclass(frozen=True)
class Debs:
    """The package, as built from this tree, and the same as a newer version."""

    old: Path
    new: Path


def build(directory: Path, revision: str = "") -> Path:
    """Build the package; return its path."""
    output = directory / f"deb{revision}"
    command = [ROOT / "packaging/deb/build", output]
    built = subprocess.run(
        command, env={**os.environ, "DEB_REVISION": revision}, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (deb,) = output.glob("*.deb")
    return deb


def build_once(directory: Path, revision: str = "") -> Path:
    """Return the package that build() has made in the directory, or makes now."""
    built = next((directory / f"deb{revision}").glob("*.deb"), None)
    return built or build(directory, revision)


def missing() -> list[str]:
    """What this machine lacks to build the package."""
    packages = {"git": "git", "dh": "debhelper", "pybuild": "dh-python"}
    return [package for command, package in packages.items() if not shutil.which(command)]


def image_of(suite: str) -> dict[str, Any]:
    """What the image of such a machine is made from, beside the suite."""
    downloads = (*DOWNLOADS, FUSEPY[suite]) if suite in FUSEPY else DOWNLOADS
    return {"packages": (*SUITES[suite], *PACKAGES), "downloads": downloads}


def boot(stack: contextlib.ExitStack, suite: str) -> Machine:
    """A machine with Docker and LXC; /root/tests has what runs in containers."""
    machine = stack.enter_context(Machine(suite, **image_of(suite)))
    machine.run("mkdir /root/tests")
    for name in ("reader.py", "burner.py", "lxc-tree"):
        machine.put(HERE / name, "/root/tests/")
    machine.run(PREPARE)
    return machine


def start(stack: contextlib.ExitStack, suite: str, debs: Debs) -> Machine:
    """A machine on which an operator has just said `apt install ./lxcfs-py.deb`; apt said /root/installed."""
    machine = boot(stack, suite)
    machine.put(debs.old, "/root/lxcfs-py.deb")
    machine.put(debs.new, "/root/newer.deb")
    machine.run("apt-get install --yes /root/lxcfs-py.deb >/root/installed 2>&1", timeout=300)
    machine.run("systemctl is-active lxcfs-py >/root/active; cp /etc/lxcfs.toml /root/")
    return machine


def reset(machine: Machine, debs: Debs) -> None:
    machine.run(RESET % {"version": debs.old.name.split("_")[1]}, timeout=300)


def concurrently(pool: Executor, function: Callable[[Any], Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Call function(value) for all values at once; the results by name. AssertionError says which ones failed."""
    calls = {name: pool.submit(function, value) for name, value in over.items()}
    failed = {name: error for name, call in calls.items() if (error := call.exception()) is not None}
    if failed:
        said = "\n".join(f"{name}: {error}" for name, error in failed.items())
        raise AssertionError(said) from next(iter(failed.values()))
    return {name: call.result() for name, call in calls.items()}


def start_container(machine: Machine, command: str = "sleep infinity", options: str = "") -> None:
    """A Docker container, box, of 256 MiB and one CPU, with the views and /root/tests."""
    limits = "--memory 256m --cpus 1 --network none --volume /usr:/usr:ro --volume /root/tests:/root/tests:ro"
    machine.run(f"docker run --detach --name box {limits} {options} $(lxcfs-py mounts docker) box {command}")


@contextlib.contextmanager
def container(machine: Machine, command: str = "sleep infinity", options: str = "") -> Iterator[str]:
    """Such a container meanwhile; gives what runs a command in it."""
    start_container(machine, command, options)
    try:
        yield "docker exec box"
    finally:
        machine.run("docker rm --force box", check=False)


def stop_reader(machine: Machine, reads: int) -> None:
    """Stop the container with the reader: no read has failed, and there were at least so many."""
    machine.run("docker stop --time 60 box")
    seen = json.loads(machine.run("docker logs box").stdout)
    print(f"{machine.image.disk.parent.name}: {seen}", flush=True)
    assert not seen["failed"], seen
    assert seen["reads"] >= reads, seen


@contextlib.contextmanager
def under_load(machine: Machine, reads: int, readers: int = 1) -> Iterator[None]:
    """A container reads its files meanwhile: no read fails, and there are at least so many."""
    with container(machine, f"{READER} {readers}"):
        yield
        stop_reader(machine, reads)


def main_pid(machine: Machine) -> str:
    return machine.run("systemctl show --property MainPID --value lxcfs-py").stdout.strip()


def mount(machine: Machine, mountpoint: str = "/var/lib/lxcfs") -> str:
    """The line of the mount in mountinfo; another mount has another one."""
    return machine.run(f"grep ' {mountpoint} ' /proc/self/mountinfo", check=False).stdout


def configure(machine: Machine, *edits: tuple[str, str]) -> None:
    """Replace lines of the shipped configuration."""
    script = "; ".join(f"s|^{old}$|{new}|" for old, new in edits)
    machine.run(f"sed --in-place '{script}' /etc/lxcfs.toml && ! cmp --quiet /root/lxcfs.toml /etc/lxcfs.toml")
