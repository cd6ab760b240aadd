"""Views put into Docker's containers as they start; and the OCI hook, which is there before their programs start."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lxcfs_py.config import Config
from tests.conftest import ROOT, mountpoints, own_parents
from tests.docker.conftest import Container
from tests.docker.test_attach import MAY_MOUNT

PATIENCE = 30.0
WITHIN = 0.1  # seconds, what is promised
MEMORY = "grep MemTotal /proc/meminfo"

# Prints the milliseconds from the start of the container's program to the last file's being there.
MEASURE = """
start=$(date +%s%N)
until grep -q ' /sys/devices/system/cpu ' /proc/self/mountinfo; do :; done
echo $((($(date +%s%N) - start) / 1000000))
exec sleep infinity
"""


def seen(mib):
    return f"MemTotal: {mib * 1024:14} kB\n"


@pytest.fixture
def automatic(docker, start_daemon):
    """automatic(keep=False): a daemon that attaches to this engine's containers; it ends with the test."""
    parent = Path(docker.environment["DOCKER_HOST"]).parent.name
    daemons = []

    def start(keep=False):
        daemons.append(start_daemon("kernel", f'[attach]\nauto = true\ncgroups = ["/{parent}/*"]\n', keep=keep))
        return daemons[-1]

    yield start
    for daemon in daemons:
        if daemon.process.poll() is None:
            daemon.stop()


@pytest.fixture
def start(docker):
    """start(*OPTIONS, command=…): a Container without any view; it is removed when the test ends."""
    started = []

    def start(*options, command="exec sleep infinity"):
        started.append(docker("create", "--network", "none", *options, docker.image, "sh", "-c", command).strip())
        docker("start", started[-1])
        return Container(docker, started[-1])

    yield start
    for container in started:
        docker("rm", "--force", container)


@pytest.fixture
def burst(docker):
    """burst(number): so many containers, started as fast as the engine does; container i has 64 + i MiB."""
    started = []

    def start(number):
        def one(i):
            flags = ["--network", "none", "-m", f"{64 + i}m"]
            return docker("run", "-d", *flags, docker.image, "sleep", "infinity", timeout=300).strip()

        with ThreadPoolExecutor(8) as pool:
            started.extend(pool.map(one, range(number)))
        return [Container(docker, identity) for identity in started[-number:]]

    yield start
    if started:
        docker("rm", "--force", *started, timeout=300)


def attached(daemon, number):
    """Wait till the log says that so many containers were attached."""
    deadline = time.monotonic() + PATIENCE
    while daemon.log.read_text().count(" files attached\n") < number:
        assert time.monotonic() < deadline, daemon.log.read_text()
        time.sleep(0.02)


def test_a_burst_of_fifty_containers_see_each_its_own_limits(automatic, burst):
    daemon = automatic()
    containers = burst(50)
    attached(daemon, 50)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda container: container.run(MEMORY), containers)) == [seen(64 + i) for i in range(50)]
    assert "WARNING" not in daemon.log.read_text()
    assert "ERROR" not in daemon.log.read_text()


def test_a_container_has_its_files_within_100_ms_of_its_programs_start(automatic, start, docker):
    daemon = automatic()
    start()
    attached(daemon, 1)
    times = []
    for number in range(5):
        container = start("-m", "256m", "--cpus", "1", command=MEASURE)
        attached(daemon, number + 2)
        times.append(int(docker("logs", container.id) or container.run("sleep 1") or docker("logs", container.id)))
        assert container.run(MEMORY) == seen(256)
    print(f"ms after the program's start: {times}")
    assert sorted(times)[2] < WITHIN * 1000


def test_a_container_that_is_stopped_and_started_again_is_attached_again(automatic, start, docker):
    daemon = automatic()
    container = start("-m", "256m")
    attached(daemon, 1)
    docker("kill", container.id)
    docker("start", container.id)
    attached(daemon, 2)
    assert container.run(MEMORY) == seen(256)


def test_a_daemon_killed_in_the_middle_of_a_burst_leaves_none_without(automatic, burst):
    daemon = automatic(keep=True)

    def kill():
        time.sleep(1)
        (server,) = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        os.kill(int(server), signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        containers = burst(12)
        killed.result()
    deadline = time.monotonic() + PATIENCE
    while wrong := [i for i, container in enumerate(containers) if container.run(MEMORY) != seen(64 + i)]:
        assert time.monotonic() < deadline, (wrong, daemon.log.read_text())


def test_with_mounts_of_its_own_a_container_keeps_them(automatic, start, docker, tmp_path):
    daemon = automatic()
    (tmp_path / "cpuinfo").write_text("mine\n")
    flags = ["-v", f"{daemon.mountpoint}/proc/meminfo:/proc/meminfo", "-v", f"{tmp_path}/cpuinfo:/proc/cpuinfo:ro"]
    container = start("-m", "256m", *flags)
    attached(daemon, 1)
    assert (
        container.run(f"{MEMORY}; grep -c ' /proc/meminfo ' /proc/mounts; cat /proc/cpuinfo") == f"{seen(256)}1\nmine\n"
    )
    assert daemon.log.read_text().count("/proc/cpuinfo: the container has") == 1


@pytest.mark.parametrize("options", [["--pid", "host"], ["--read-only", "--cap-drop", "ALL", "--user", "65534"]])
def test_containers_of_other_kinds_are_attached_too(automatic, start, options):
    daemon = automatic()
    container = start("-m", "256m", *options)
    attached(daemon, 1)
    assert container.run(MEMORY) == seen(256)


def test_a_container_that_works_against_it_harms_nobody(automatic, start, docker):
    """It mounts and unmounts over the file, and all of /proc, from its first moment on."""
    daemon = automatic()
    before = [path for path in mountpoints() if path.startswith(("/proc", "/sys", "/etc"))]
    fights = [
        "while :; do mount --bind /etc/hostname /proc/meminfo; umount /proc/meminfo; done",
        "while :; do mount -t tmpfs none /proc; umount -l /proc; done",
        "umount -l /proc/asound /proc/acpi; umount -l /proc; ln -s /etc /tmp/proc; exec sleep 60",
        "i=0; while [ $((i += 1)) -lt 3000 ]; do mount -t tmpfs none /mnt; done; exec sleep 60",
    ]
    for number in range(3):
        for fight in fights:
            start(*MAY_MOUNT, command=fight)
        container = start("-m", f"{64 + number}m")
        deadline = time.monotonic() + PATIENCE
        while container.run(MEMORY) != seen(64 + number):
            assert time.monotonic() < deadline, daemon.log.read_text()
    assert [path for path in mountpoints() if path.startswith(("/proc", "/sys", "/etc"))] == before
    assert "Traceback" not in daemon.log.read_text()
    assert "ERROR" not in daemon.log.read_text()


# The hook


def program(directory):
    """Lay what the hook runs where everybody may reach it, whoever may enter this clone; return its command."""
    shutil.copytree(ROOT / "lxcfs_py", directory / "lxcfs_py", ignore=shutil.ignore_patterns("__pycache__"))
    if sys.version_info < (3, 11):
        shutil.copytree(Path(importlib.util.find_spec("tomli").origin).parent, directory / "vendor/tomli")
    subprocess.run(["chmod", "-R", "a+rX", directory], check=True, timeout=30)
    return [os.path.realpath(sys.executable), "-I", str(directory / "lxcfs_py/isolated.py"), "lxcfs_py"]


@pytest.fixture
def bundle(tmp_path, start_daemon, require):
    """bundle(script, user_namespace=False): how a shell script has ended in a container of runc's that has the hook.

    The container has 256 MiB and one CPU, and the machine's /usr.
    """
    require(shutil.which("runc"), "runc: apt-get install runc")
    daemon = start_daemon("kernel")
    daemon.mountpoint.parent.chmod(0o755)
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{daemon.mountpoint}"\n')
    name = f"lxcfs-py-hook-{os.getpid()}"
    runc = ["runc", "--root", str(tmp_path / "state")]
    root = tmp_path / "rootfs"

    def run(script, user_namespace=False, mode=0o644):
        root.mkdir()
        for directory in ("usr", "etc", "proc", "sys", "dev", "tmp"):
            (root / directory).mkdir()
        for link in ("bin", "lib", "lib64", "sbin"):
            (root / link).symlink_to(f"usr/{link}")
        for directory in (root, *own_parents(root)):
            directory.chmod(0o755)
        subprocess.run(["runc", "spec"], cwd=tmp_path, check=True, timeout=30)
        spec = json.loads((tmp_path / "config.json").read_text())
        spec["process"].update(terminal=False, args=["sh", "-c", script], cwd="/")
        spec["root"] = {"path": "rootfs", "readonly": True}
        spec["mounts"].append({"destination": "/usr", "source": "/usr", "options": ["bind", "ro"]})
        spec["linux"].update(
            cgroupsPath=f"/{name}",
            resources={"memory": {"limit": 256 << 20}, "cpu": {"quota": 100000, "period": 100000}},
        )
        if user_namespace:
            mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
            spec["linux"].update(uidMappings=mapping, gidMappings=mapping)
            spec["linux"]["namespaces"].append({"type": "user"})
        arguments = [*program(tmp_path / "program"), "hook", "--config", str(tmp_path / "lxcfs.toml")]
        hook = {"path": arguments[0], "args": arguments}
        spec["hooks"] = {"createContainer": [hook]}
        (tmp_path / "config.json").write_text(json.dumps(spec))
        (tmp_path / "config.json").chmod(mode)
        done = subprocess.run([*runc, "run", name], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run.daemon = daemon
    yield run
    subprocess.run([*runc, "delete", "--force", name], capture_output=True, timeout=30)


SEEN = "grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online"


def test_with_the_hook_the_program_never_sees_other_figures(bundle):
    assert bundle(SEEN).stdout == f"{seen(256)}1\n0\n"


def test_the_hook_covers_all_files(bundle):
    mounted = bundle("grep -c fuse.lxcfs /proc/self/mountinfo").stdout
    assert int(mounted) == len([name for name in Config().files.enabled if os.path.exists(f"/{name}")])


def test_in_a_user_namespace_whose_root_may_reach_the_bundle_too(bundle):
    done = bundle(SEEN, user_namespace=True)
    assert done.stdout == f"{seen(256)}1\n0\n"


def test_where_it_may_not_reach_the_bundle_the_container_starts_on_the_machines_files(bundle):
    done = bundle(SEEN, user_namespace=True, mode=0o600)
    assert done.stdout == subprocess.run(["sh", "-c", SEEN], capture_output=True, text=True, timeout=30).stdout


def test_without_a_daemon_the_container_starts_on_the_machines_files(bundle):
    bundle.daemon.stop()
    host = subprocess.run(["sh", "-c", SEEN], capture_output=True, text=True, timeout=30).stdout
    assert bundle(SEEN).stdout == host
