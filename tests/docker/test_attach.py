"""Views put into Docker's containers that already run, and a killed C program's mounts healed."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lxcfs_py import cli
from lxcfs_py.attach import running
from lxcfs_py.linux import syscalls
from tests.conftest import ROOT, mountpoints, own_parents, unmount_below
from tests.docker.conftest import ARTICLE

MEMORY_AND_PROCESSORS = "grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo"
C_PROGRAM = Path("/usr/bin/lxcfs")


def seen(mib, processors):
    """What MEMORY_AND_PROCESSORS prints where MIB of memory and PROCESSORS are visible."""
    return f"MemTotal: {mib * 1024:14} kB\n{processors}\n"


@pytest.fixture
def command(docker, views, tmp_path):
    """command(*ARGUMENTS): lxcfs-py with this engine as its Docker, and with this mount."""
    config = tmp_path / "lxcfs.toml"
    config.write_text(f'mountpoint = "{views}"\n')

    def command(*arguments):
        arguments = [sys.executable, "-m", "lxcfs_py", *arguments, "--config", str(config)]
        return subprocess.run(arguments, cwd=ROOT, env=docker.environment, capture_output=True, text=True, timeout=60)

    return command


@pytest.fixture
def only_ours(docker, monkeypatch):
    """`--all` means the containers of this test's engine: those of others on the machine are not to be touched."""
    parent = Path(docker.environment["DOCKER_HOST"]).parent.name
    found = running.containers

    def ours(among):
        for container in found(among):
            with contextlib.suppress(OSError):
                if f"/{parent}/" in Path(f"/proc/{container.pid}/cgroup").read_text():
                    yield container

    monkeypatch.setattr(running, "containers", ours)


def pid_of(container):
    return int(container.docker("inspect", "--format", "{{.State.Pid}}", container.id))


MAY_MOUNT = ["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]

OPTIONS = {
    "plain": [],
    "read-only root": ["--read-only"],
    "unprivileged user": ["--user", "65534", "--cap-drop", "ALL"],
    "allowed to mount": MAY_MOUNT,
    "host's cgroup namespace": ["--cgroupns", "host"],
    "host's pid namespace": ["--pid", "host"],
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_container_without_any_mount_sees_its_own_limits_once_attached(start, command, options):
    container = start("-m", "256m", "--cpus", "1", *options, files=[])
    before = container.run(MEMORY_AND_PROCESSORS)
    assert before != seen(256, 1)
    done = command("attach", "--docker", container.id[:12])
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"{pid_of(container)}: \d+ attached(, \d+ absent)?\n", done.stdout)
    assert container.run(MEMORY_AND_PROCESSORS) == seen(256, 1)
    assert container.run("nproc --all; getconf _NPROCESSORS_ONLN").split()[1] == "1"
    assert re.fullmatch(r"\d+: \d+ kept(, \d+ absent)?\n", command("attach", "--docker", container.id).stdout)
    assert command("detach", "--docker", container.id).returncode == 0
    assert container.run(MEMORY_AND_PROCESSORS) == before


def test_a_container_is_found_by_its_name(start, command):
    container = start("-m", "256m", "--cpus", "1", "--name", "lxcfs-py-attach", files=[])
    assert (
        command("attach", "--docker", "lxcfs-py-attach", "--file", "meminfo").stdout
        == f"{pid_of(container)}: 1 attached\n"
    )
    assert container.run("grep MemTotal /proc/meminfo") == seen(256, 1).splitlines(keepends=True)[0]


def test_no_engine_is_asked_for_the_name_that_a_container_has(start, command):
    box = start("-m", "256m", "--name", "lxcfs-py-named", "--label", "lxcfs.py/views=none", files=[])
    by_id = start("--name", "lxcfs-py-other", files=[])
    told = json.loads(command("status", "--json").stdout)["containers"]
    called = {each["pid"]: (each["engine"], each["name"], bool(each["left_alone"])) for each in told}
    assert called[pid_of(box)] == ("docker", "lxcfs-py-named", True)
    assert called[pid_of(by_id)] == ("docker", "lxcfs-py-other", False)
    assert f"{pid_of(box)} (lxcfs-py-named): left alone: " in command("attach", "--all", "--dry-run").stdout
    for name in ("lxcfs-py-named", box.id[:12], "docker:lxcfs-py-named"):
        assert "MemTotal: 256 MiB" in command("explain", "meminfo:MemTotal", "--container", name).stdout
    assert "MemTotal:         262144 kB" in command("show", "meminfo", "--docker", "lxcfs-py-named").stdout
    assert "MemTotal: 256 MiB" in command("explain", "meminfo", "--docker", "lxcfs-py-named").stdout


def test_a_name_that_the_engine_does_not_know_is_an_error_in_its_words(command):
    done = command("attach", "--docker", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"lxcfs-py: docker does not say which process nobody is: .*[Nn]o such container.*\n", done.stderr
    )


def test_a_stopped_container_is_an_error(start, command):
    container = start(files=[])
    container.docker("kill", container.id)
    assert (
        command("attach", "--docker", container.id).stderr == f"lxcfs-py: the container {container.id} is not running\n"
    )


def test_ten_containers_at_once_see_each_its_own_limits(docker, start, views, tmp_path, only_ours, capsys):
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{views}"\n')
    arguments = ["--config", str(tmp_path / "lxcfs.toml")]
    containers = [start("-m", f"{64 + i}m", "--cpus", "1", files=[]) for i in range(10)]
    assert cli.main(["attach", "--all", *arguments]) == 0
    assert capsys.readouterr().out.count(" attached") == 10
    assert [container.run(MEMORY_AND_PROCESSORS) for container in containers] == [seen(64 + i, 1) for i in range(10)]
    assert cli.main(["status", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    for container in containers:
        (row,) = [line.split(None, 2) for line in lines if f" {pid_of(container)} " in line]
        assert docker.attempt("inspect", "--format", "{{.Name}}", container.id).stdout == f"/{row[0]}\n"
        assert row[2] == "all live"


def test_containers_that_die_in_the_middle_are_no_error(docker, start, views, only_ours, tmp_path):
    """Attached over and over while containers are killed and started again."""
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{views}"\n')
    before = mountpoints()
    lasting = start("-m", "256m", "--cpus", "1", files=[])
    flags = ["-d", "--rm", "--network", "none", docker.image, "sleep", "0.2"]
    loop = subprocess.Popen(
        ["sh", "-c", 'for i in $(seq 8); do "$@" >/dev/null; done', "sh", docker.client, "run", *flags],
        env=docker.environment,
    )
    attached = 0
    try:
        while loop.poll() is None:
            assert cli.main(["attach", "--all", "--config", str(tmp_path / "lxcfs.toml")]) == 0
            attached += 1
    finally:
        loop.kill()
        loop.wait()
    assert attached > 8
    assert lasting.run(MEMORY_AND_PROCESSORS) == seen(256, 1)
    assert [path for path in mountpoints() if path.startswith(("/proc", "/sys"))] == [
        path for path in before if path.startswith(("/proc", "/sys"))
    ]


def test_what_a_container_has_mounted_over_its_meminfo_stays_and_the_rest_is_attached(start, command):
    container = start("-m", "256m", "--cpus", "1", *MAY_MOUNT, files=[])
    container.run("echo mine >/tmp/mine && mount --bind /tmp/mine /proc/meminfo")
    done = command("attach", "--docker", container.id)
    assert done.returncode == 1
    assert re.match(
        rf"lxcfs-py: container {pid_of(container)}: /proc/meminfo: the container has \w+ mounted over it\n", done.stderr
    )
    assert container.run("cat /proc/meminfo; grep -c ^processor /proc/cpuinfo") == "mine\n1\n"


def test_a_container_without_proc_is_refused(start, command):
    container = start(*MAY_MOUNT, files=[])
    host = mountpoints()
    assert container.run("umount --recursive /proc; ls -A /proc") == ""
    done = command("attach", "--docker", container.id, "--file", "meminfo")
    assert done.returncode == 1
    assert "/proc/meminfo: the container's /proc is not the kernel's own proc" in done.stderr
    assert [path for path in mountpoints() if path.startswith("/proc")] == [
        path for path in host if path.startswith("/proc")
    ]


@pytest.fixture
def in_user_namespace(tmp_path, require):
    """A container of runc's with the machine's own files, whose root is an ordinary user: what it prints, and its pid.

    Docker does the same with --userns-remap, which needs a user on the machine.
    """
    require(shutil.which("runc"), "runc: apt-get install runc")
    root = tmp_path / "root"
    root.mkdir()
    for directory in (root, *own_parents(root)):
        directory.chmod(0o755)
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True, timeout=30)
    spec = json.loads((tmp_path / "config.json").read_text())
    name = f"lxcfs-py-{os.getpid()}"
    spec["process"].update(terminal=False, args=["sh", "-c", f"read line; {MEMORY_AND_PROCESSORS}"], cwd="/")
    spec["root"] = {"path": str(root), "readonly": True}
    mapping = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    spec["linux"].update(
        uidMappings=mapping,
        gidMappings=mapping,
        cgroupsPath=f"/{name}",
        resources={"memory": {"limit": 256 << 20}, "cpu": {"quota": 100000, "period": 100000}},
    )
    spec["linux"]["namespaces"].append({"type": "user"})
    (tmp_path / "config.json").write_text(json.dumps(spec))
    syscalls.mount("/", str(root), flags=syscalls.MS_BIND)
    runc = ["runc", "--root", str(tmp_path / "state")]
    process = subprocess.Popen(
        [*runc, "run", name],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            state = subprocess.run([*runc, "state", name], capture_output=True, text=True, timeout=30)
            if state.returncode == 0 and json.loads(state.stdout)["status"] == "running":
                break
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline, state.stderr
            time.sleep(0.05)
        yield process, json.loads(state.stdout)["pid"]
    finally:
        subprocess.run([*runc, "delete", "--force", name], capture_output=True, timeout=30)
        process.kill()
        process.wait()
        syscalls.umount(str(root), syscalls.MNT_DETACH)


def test_a_container_in_a_user_namespace_sees_its_own_limits(in_user_namespace, command):
    process, pid = in_user_namespace
    assert os.stat(f"/proc/{pid}/ns/user").st_ino != os.stat("/proc/self/ns/user").st_ino
    done = command("attach", "--pid", str(pid))
    assert (done.returncode, done.stderr) == (0, "")
    assert process.communicate("\n", timeout=30)[0] == seen(256, 1)


@pytest.fixture
def c_program(tmp_path, require):
    """The C program, mounted, as a process to be killed; and its mountpoint."""
    require(C_PROGRAM.exists() and C_PROGRAM.read_bytes()[:4] == b"\x7fELF", "the C program: apt-get install lxcfs")
    mountpoint = tmp_path / "c"
    mountpoint.mkdir()
    process = subprocess.Popen(
        [C_PROGRAM, "-f", "-p", str(tmp_path / "pid"), str(mountpoint)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while not (mountpoint / "proc/meminfo").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, mountpoint
    finally:
        process.kill()
        process.wait()
        unmount_below(mountpoint)


def test_a_container_of_a_killed_c_lxcfs_is_healed(docker, start, command, c_program):
    process, mountpoint = c_program
    flags = [flag for name in ARTICLE for flag in ("-v", f"{mountpoint / name}:/{name}:rw")]
    container = start("-m", "256m", "--cpus", "1", *flags, files=[])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    broken = docker.attempt("exec", container.id, "cat", "/proc/meminfo")
    assert "Transport endpoint is not connected" in broken.stderr
    (row,) = [line for line in command("status").stdout.splitlines() if f" {pid_of(container)} " in line]
    assert f"dead: {' '.join(name[len('proc/') :] for name in ARTICLE)}" in row
    done = command("attach", "--docker", container.id)
    assert done.returncode == 0, done.stderr
    assert f"{len(ARTICLE)} replaced" in done.stdout
    assert container.run(MEMORY_AND_PROCESSORS) == seen(256, 1)
    assert container.run("free -m | wc -l; uptime -p").splitlines()[0] == "3"
    assert container.run("grep -c ' /proc/meminfo ' /proc/mounts") == "1\n"
