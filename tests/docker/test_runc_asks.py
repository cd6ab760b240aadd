"""A container that runc starts with the profile: also while no server runs, and where there has been none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest

from lxcfs_py.runtimes import seccomp_profile
from tests.conftest import ROOT, own_parents
from tests.kept import wait_for

ASK = "nproc; getconf _PHYS_PAGES"
ANSWERS = f"1\n{(256 << 20) // 4096}\n"


@pytest.fixture
def container(tmp_path, require):
    """container(socket): start a container of 256 MiB and one CPU that asks once, with its calls handed to a socket."""
    require(shutil.which("runc"), "runc: apt-get install runc")
    runtime = ["runc", "--root", str(tmp_path / "state")]
    name = f"lxcfs-py-asks-{os.getpid()}"
    root = tmp_path / "rootfs"
    for directory in ("usr", "etc", "proc", "sys", "dev", "tmp"):
        (root / directory).mkdir(parents=True)
    for link in ("bin", "lib", "lib64", "sbin"):
        (root / link).symlink_to(f"usr/{link}")
    for directory in (root, *own_parents(root)):
        directory.chmod(0o755)
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True, timeout=30)
    started = []

    def start(socket: str) -> subprocess.Popen[str]:
        spec = json.loads((tmp_path / "config.json").read_text())
        spec["process"].update(terminal=False, args=["sh", "-c", ASK], cwd="/")
        spec["root"] = {"path": "rootfs", "readonly": True}
        spec["mounts"].append({"destination": "/usr", "source": "/usr", "options": ["bind", "ro"]})
        spec["linux"].update(
            cgroupsPath=f"/{name}",
            resources={"memory": {"limit": 256 << 20}, "cpu": {"quota": 100000, "period": 100000}},
            seccomp=json.loads(seccomp_profile.profile(ROOT / "packaging/seccomp/containers.json", socket, oci=True)),
        )
        (tmp_path / "config.json").write_text(json.dumps(spec))
        process = subprocess.Popen(
            [*runtime, "run", name], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    subprocess.run([*runtime, "delete", "--force", name], capture_output=True, timeout=30)
    for process in started:
        process.kill()
        process.communicate()


def test_a_container_is_told_what_it_has(container, start_daemon):
    daemon = start_daemon()
    process = container(seccomp_profile.socket_of(str(daemon.mountpoint)))
    out, err = process.communicate(timeout=60)
    assert out == ANSWERS, err


def test_one_that_starts_while_no_server_runs_waits_for_the_next_one(container, start_daemon):
    daemon = start_daemon(keep=True)
    keeper = psutil.Process(daemon.process.pid)
    wait_for(lambda: "INFO: serving" in daemon.log.read_text())
    (server,) = keeper.children()
    keeper.send_signal(signal.SIGSTOP)  # it starts no other one
    try:
        server.kill()
        wait_for(lambda: server.status() == psutil.STATUS_ZOMBIE)
        process = container(seccomp_profile.socket_of(str(daemon.mountpoint)))
        time.sleep(1)
        assert process.poll() is None
    finally:
        keeper.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ANSWERS), err


def test_where_there_has_never_been_a_server_none_starts_and_its_engine_says_why(container, tmp_path):
    socket = str(tmp_path / "seccomp.sock")
    out, err = container(socket).communicate(timeout=60)
    print(err)
    assert out == ""
    assert socket in err
    assert "no such file or directory" in err.lower()
