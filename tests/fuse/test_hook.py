"""The OCI hook at a root that a container's image has arranged, as a runtime would call it before pivot_root(2)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lxcfs_py.attach import attach
from lxcfs_py.config import Config
from tests.conftest import ROOT

PROC = "mkdir proc sys && mount -t proc none proc && mount -t sysfs none sys"


@pytest.fixture(scope="session")
def served(start_shared_daemon):
    return start_shared_daemon("kernel")


@pytest.fixture
def hook(served, tmp_path, require):
    """hook(arrange, after): the output of the hook and of `after`, in a mount namespace with the root of `arrange`."""
    require(os.geteuid() == 0, "root")
    (tmp_path / "rootfs").mkdir()
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{served.mountpoint}"\n')
    oci = f"{sys.executable} -m lxcfs_py hook --config {tmp_path}/lxcfs.toml"

    def run(arrange, after, command=oci):
        state = json.dumps({"ociVersion": "1.0.2", "id": "a", "status": "creating", "bundle": str(tmp_path)})
        script = f"cd {tmp_path}/rootfs && {arrange} && (cd {ROOT} && {command}) && {after}"
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            input=state,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def mounted_here():
    """What is mounted on the machine where a hook that is led astray would mount."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in table if line.split()[4].startswith(("/proc", "/sys", "/etc", "/usr"))]


def test_the_files_are_bound_below_the_root(hook, tmp_path):
    seen = hook(PROC, "grep fuse.lxcfs /proc/self/mountinfo | grep -o '[^ ]* [^ ]*/rootfs/[^ ]*'")
    assert seen.stderr == ""
    bound = dict(line.split() for line in seen.stdout.splitlines())
    expected = [name for name in Config().files.enabled if os.path.exists(f"/{name}")]
    assert bound == {f"/{name}": f"{tmp_path}/rootfs/{name}" for name in expected}


@pytest.mark.parametrize("written", ['mountpoint = "{}"', "mountpoint = '{}'", """'mountpoint'="{}" # "/no" """])
def test_lxcs_hook_binds_the_same_files_however_the_configuration_is_written(served, hook, tmp_path, written):
    (tmp_path / "lxcfs.toml").write_text(f"{written.format(served.mountpoint)}\n")
    program = tmp_path / "lxcfs-py"
    program.write_text(f'cd {ROOT}; exec {sys.executable} -m lxcfs_py "$@" --config {tmp_path}/lxcfs.toml\n')
    script = (ROOT / "packaging/lxc/lxc.mount.hook").read_text()
    (tmp_path / "hook").write_text(script.replace("/usr/bin/lxcfs-py", f"sh {program}"))
    lxc = f"LXC_ROOTFS_MOUNT={tmp_path}/rootfs sh {tmp_path}/hook"
    seen = hook(PROC, "grep -c 'rootfs/.* - fuse.lxcfs' /proc/self/mountinfo", command=lxc)
    assert seen.stderr == ""
    assert int(seen.stdout) == len([name for name in Config().files.enabled if os.path.exists(f"/{name}")])


def test_nothing_is_bound_in_a_container_that_gets_a_whole_mount(hook, served):
    """It is a server's own, which must not wait for itself."""
    arrange = f"{PROC} && mkdir views && mount --bind {served.mountpoint} views"
    seen = hook(arrange, "grep -c 'rootfs/proc/.* - fuse.lxcfs' /proc/self/mountinfo || true")
    assert seen.stdout == "0\n"
    assert "starts with the machine's files: a whole mount of lxcfs stands in the container" in seen.stderr


def test_the_files_of_a_server_that_has_ended_are_not_bound(start_daemon, tmp_path):
    daemon = start_daemon("kernel")
    (daemon.mountpoint / "proc/meminfo").read_text()  # the kernel knows the name from now on
    daemon.process.kill()
    daemon.process.wait(10)
    with pytest.raises(attach.AttachError, match=f"the mount at {daemon.mountpoint} has ended: start the daemon again"):
        attach.bind(str(tmp_path), str(daemon.mountpoint), ["proc/meminfo"])


MOUNT_WITH_ODD_TYPE = """
import os
from lxcfs_py.linux import syscalls
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=100444,user_id=0,group_id=0"
syscalls.mount("odd", "proc/meminfo", "fuse.a\\rb\\33[2J", 0, options)
"""

HOSTILE = {
    "proc is a link to the machine's": ("ln -s /proc proc && mkdir sys", "has no /proc"),
    "proc is a link within": ("mkdir real && mount -t proc none real && ln -s real proc && mkdir sys", "has no /proc"),
    "there is no proc": ("mkdir sys", "has no /proc"),
    "proc is a directory of the image": ("mkdir proc sys && touch proc/meminfo", "not the kernel's own proc"),
    "proc is the image's, with links": (
        "mkdir proc sys && ln -s /etc/hostname proc/meminfo",
        "not the kernel's own proc",
    ),
    "something is mounted over the file": (
        "mkdir proc sys && mount -t proc none proc && mount --bind /etc/hostname proc/meminfo",
        "mounted over it",
    ),
    "what is mounted over the file has an odd type": (
        f"mkdir proc sys && mount -t proc none proc && {sys.executable} -c '{MOUNT_WITH_ODD_TYPE}'",
        r"the container has fuse.a\rb\x1b[2J mounted over it",
    ),
}


@pytest.mark.parametrize(("arrange", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_an_image_arranges_leads_nowhere(hook, arrange, reason):
    before = mounted_here()
    seen = hook(arrange, "awk '/fuse.lxcfs/ { print $5 }' /proc/self/mountinfo")
    (line,) = [line for line in seen.stderr.splitlines() if "/proc/meminfo" in line]
    assert line.startswith("lxcfs-py: /proc/meminfo of this container is the machine's: the container")
    assert reason in line
    assert not re.search(r"^/(proc|sys|etc|usr)|/meminfo$", seen.stdout, re.MULTILINE)
    assert mounted_here() == before
