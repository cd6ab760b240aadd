"""The image, run as the DaemonSet runs it: one pod after the other serves the node's mount."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from lxcfs_py import __version__
from tests.conftest import ROOT, mountpoints, unmount_below
from tests.docker.conftest import ARTICLE, Docker, mounts
from tests.kept import wait_for
from tests.kubernetes.apiserver import NAME, ApiServer
from tests.kubernetes.conftest import recorded

IMAGE = f"lxcfs-py:{__version__}"

# What the daemon needs. Kubernetes gives it more, by `privileged`, which not every machine that tests run on can give.
RIGHTS = (
    *("--cap-drop", "ALL", "--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--device", "/dev/fuse"),
    *("--security-opt", "apparmor=unconfined"),
)

ROLLOVERS = 3

READ = """
    while [ ! -e /tmp/stop ]; do
        head -n 1 /proc/meminfo && grep -c processor /proc/cpuinfo || echo bad
        free -b >/dev/null && uptime >/dev/null || echo worse
    done 2>&1 | sort | uniq -c
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: Any, docker: Docker) -> Path:
    """The directory that `make image` fills."""
    output = tmp_path_factory.mktemp("dist")
    done = subprocess.run([ROOT / "packaging/image/build", output], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return output


@pytest.fixture(scope="session")
def archive(built: Path) -> Path:
    (archive,) = built.glob("lxcfs-py-image_*.tar")
    return archive


@pytest.fixture(scope="session")
def image(archive: Path, docker: Docker) -> str:
    """The image's name in Docker."""
    assert docker("load", "--input", str(archive), timeout=300).strip() == f"Loaded image: {IMAGE}"
    return IMAGE


class Node:
    """A directory that stands for a node's /var/lib, and daemons for it."""

    def __init__(self, docker: Docker, image: str, directory: Path) -> None:
        self.docker, self.image, self.directory = docker, image, directory
        self.views = directory / "lib/lxcfs"
        (directory / "lib").mkdir()
        (directory / "run").mkdir()
        (directory / "lxcfs.toml").write_text(f'mountpoint = "{self.views}"\n')

    def start_daemon(self, *more: str) -> str:
        """A container as the DaemonSet's pod has it, and its first answer; its id."""
        binds = (
            *("--volume", f"{self.views.parent}:{self.views.parent}:rshared"),
            *("--volume", f"{self.directory / 'run'}:/run/lxcfs-py"),
            *("--volume", "/sys/fs/cgroup:/sys/fs/cgroup:ro"),
            *("--volume", f"{self.directory / 'lxcfs.toml'}:/etc/lxcfs.toml:ro"),
        )
        options = ("--detach", "--pid", "host", "--network", "none", "--read-only", *RIGHTS, *more, *binds)
        container = self.docker("run", *options, self.image, "run", "--keep", "--stay").strip()
        try:
            wait_for(lambda: "serving" in self.log(container) or not self.is_running(container))
            assert self.is_running(container), self.log(container)
        except BaseException:
            self.remove(container)
            raise
        return container

    def log(self, container: str) -> str:
        done = self.docker.attempt("logs", container)
        return done.stdout + done.stderr

    def is_running(self, container: str) -> bool:
        return self.docker("inspect", "--format", "{{.State.Running}}", container).strip() == "true"

    def server(self, container: str) -> psutil.Process:
        """The process that serves, whose parent is the container's first."""
        keeper = psutil.Process(int(self.docker("inspect", "--format", "{{.State.Pid}}", container)))
        (server,) = keeper.children()
        return server

    def remove(self, container: str) -> None:
        self.docker("rm", "--force", container)

    def stop(self, container: str) -> int:
        """What a pod's deletion does: SIGTERM, and the exit code."""
        self.docker("stop", "--time", "20", container)
        return int(self.docker("inspect", "--format", "{{.State.ExitCode}}", container))

    def read(self, name: str) -> str:
        """A file of the mount as the host has it."""
        return subprocess.run(["cat", self.views / name], check=True, capture_output=True, text=True, timeout=20).stdout


@pytest.fixture
def node(docker: Docker, image: str) -> Iterator[Node]:
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-node-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        subprocess.run(["mount", "--bind", name, name], check=True)
        stack.callback(unmount_below, directory)
        subprocess.run(["mount", "--make-rshared", name], check=True)
        stack.callback(remove_all, docker, image)
        yield Node(docker, image, directory)


def remove_all(docker: Docker, image: str) -> None:
    for container in docker("ps", "--all", "--quiet", "--filter", f"ancestor={image}").split():
        docker("rm", "--force", container)


@contextlib.contextmanager
def reader(docker: Docker, views: Path) -> Iterator[None]:
    """A container that reads all the time while the block runs, and that sees itself and no error."""
    options = ["-m", "256m", "--cpus", "1", *mounts(views, ARTICLE)]
    container = docker("run", "--detach", "--network", "none", *options, docker.image, "sh", "-c", READ).strip()
    try:
        time.sleep(0.5)
        yield
        time.sleep(0.5)
        docker.attempt("exec", container, "touch", "/tmp/stop")  # killed where the container was quicker to end
        docker("wait", container)
        seen = [line.split(None, 1) for line in docker("logs", container).splitlines()]
    finally:
        docker("rm", "--force", container)
    assert sorted(line for _, line in seen) == ["1", "MemTotal:         262144 kB"]
    assert min(int(count) for count, _ in seen) > 20


def test_the_image_says_what_it_is(docker, image):
    assert docker("run", "--rm", "--read-only", "--network", "none", image, "--version") == f"lxcfs-py {__version__}\n"


def test_containerd_takes_the_archive(docker, archive):
    socket = Path(docker.environment["HOME"], "exec/containerd/containerd.sock")
    ctr = ["ctr", "--address", str(socket), "--namespace", f"lxcfs-py-{secrets.token_hex(4)}"]
    subprocess.run([*ctr, "images", "import", str(archive)], check=True, capture_output=True, timeout=120)
    try:
        listed = subprocess.run([*ctr, "images", "list", "--quiet"], check=True, capture_output=True, text=True).stdout
        assert listed.strip().endswith(f"/{IMAGE}")
    finally:
        subprocess.run([*ctr, "images", "remove", "--sync", listed.strip()], check=True, capture_output=True)


def test_the_bill_of_materials_is_valid_and_names_the_packages(built):
    (file,) = built.glob("*.cdx.json")
    text = file.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    packages = {component["name"]: component for component in json.loads(text)["components"]}
    assert {"lxcfs-py", "python3", "python3-aiohttp", "python3-cryptography", "libc6"} <= packages.keys()
    libc = PackageURL.from_string(packages["libc6"]["purl"])
    assert (libc.type, libc.namespace, libc.name, libc.version) == (
        "deb",
        "debian",
        "libc6",
        packages["libc6"]["version"],
    )
    assert libc.qualifiers["upstream"] == f"glibc@{libc.version}"


def test_the_webhook_in_the_image_makes_its_own_certificate_and_answers(docker, image, tmp_path):
    api = ApiServer(tmp_path)
    body = json.dumps(recorded("deployment"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # As the Deployment has it, but for the network.
    rights = ("--read-only", "--user", "65534:65534", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")

    async def scenario():
        async with api.running():
            tmp_path.chmod(0o755)
            account = ("--volume", f"{tmp_path}:/var/run/secrets/kubernetes.io/serviceaccount:ro")
            cluster = ("--env", "KUBERNETES_SERVICE_HOST=localhost", "--env", f"KUBERNETES_SERVICE_PORT={api.port}")
            options = ("--detach", "--network", "host", *rights, *account, *cluster)
            command = ("webhook", "--self-signed", NAME, "--listen", f"127.0.0.1:{port}")
            container = (await asyncio.to_thread(docker, "run", *options, image, *command)).strip()
            try:
                await asyncio.to_thread(wait_for, lambda: "serving with" in docker.attempt("logs", container).stderr)
                trusting = ssl.create_default_context(cadata=api.trusted().decode())
                known = {"ssl": trusting, "server_hostname": f"{NAME}.views.svc"}
                async with aiohttp.ClientSession(f"https://127.0.0.1:{port}") as session:
                    async with session.post("/all", data=body, **known) as response:
                        assert "patch" in (await response.json())["response"]
                    for path in ("/healthz", "/metrics"):
                        async with session.get(path, **known) as response:
                            assert response.status == 200
            finally:
                await asyncio.to_thread(docker, "rm", "--force", container)

    asyncio.run(scenario())


def test_the_host_sees_the_mount_and_containers_see_themselves(docker, node):
    daemon = node.start_daemon()
    assert str(node.views) in mountpoints()
    assert int(node.read("proc/meminfo").split()[1]) > 262144
    with reader(docker, node.views):
        pass
    assert node.stop(daemon) == 0
    assert str(node.views) not in mountpoints()


def test_another_pod_takes_over_and_readers_never_fail(docker, node):
    first = node.start_daemon()
    with reader(docker, node.views):
        second = node.start_daemon()
        time.sleep(1)
        assert node.is_running(first), "the kubelet would start the old pod's container again"
        assert node.stop(first) == 0
        node.remove(first)
        third = node.start_daemon()
        assert node.stop(second) == 0
        node.remove(second)
        assert str(node.views) in mountpoints()
    assert "resumed" in node.log(third)
    assert node.stop(third) == 0
    assert str(node.views) not in mountpoints(), "the last one unmounts, whoever has mounted"


def test_rollovers_of_pods_that_attach_are_noticed_by_none_of_three_containers(docker, node):
    parent = Path(docker.environment["DOCKER_HOST"]).parent.name
    config = node.directory / "lxcfs.toml"
    config.write_text(f'{config.read_text()}[attach]\nauto = true\ncgroups = ["/{parent}/*"]\n')
    pods = [node.start_daemon("--cap-add", "SYS_CHROOT")]
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(reader(docker, node.views))
        for _ in range(ROLLOVERS):
            pods.append(node.start_daemon("--cap-add", "SYS_CHROOT"))
            assert node.stop(pods[-2]) == 0
            node.remove(pods[-2])
    assert "ERROR" not in node.log(pods[-1])
    assert node.stop(pods[-1]) == 0
    assert str(node.views) not in mountpoints()


def test_a_server_that_dies_inside_of_its_container_is_replaced(docker, node):
    daemon = node.start_daemon()
    with reader(docker, node.views):
        for _ in range(3):
            server = node.server(daemon)
            server.kill()
            wait_for(lambda died=server.pid: os.path.exists(f"/proc/{died}") is False)
            time.sleep(1)
        second = node.start_daemon()
        assert node.stop(daemon) == 0
        node.server(second).kill()
        time.sleep(1)
    assert node.stop(second) == 0


def test_a_configuration_with_errors_does_not_take_over(docker, node):
    daemon = node.start_daemon()
    good = (node.directory / "lxcfs.toml").read_text()
    (node.directory / "lxcfs.toml").write_text(f"{good}\nnothing = 1\n")
    with reader(docker, node.views), pytest.raises(AssertionError, match='unknown key "nothing"'):
        node.start_daemon()
    assert node.stop(daemon) == 0


def test_a_container_whose_files_died_with_a_pod_is_healed_by_the_next(docker, node):
    first = node.start_daemon()
    options = ("--detach", "--network", "none", "-m", "256m", *mounts(node.views, ("proc/meminfo",)))
    container = docker("run", *options, docker.image, "sleep", "infinity").strip()
    try:
        docker("kill", first)
        assert "endpoint is not connected" in docker.attempt("exec", container, "cat", "/proc/meminfo").stderr
        second = node.start_daemon("--cap-add", "SYS_CHROOT")
        pid = docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        docker("exec", second, "lxcfs-py", "attach", "--pid", pid, "--file", "meminfo")
        assert docker("exec", container, "head", "-n", "1", "/proc/meminfo").split()[1] == "262144"
        assert node.stop(second) == 0
    finally:
        docker("rm", "--force", container)


def test_a_mount_whose_pod_was_killed_is_cleared_away_by_the_next(docker, node):
    node.start_daemon()
    second = node.start_daemon()
    for container in (docker("ps", "--quiet", "--filter", f"ancestor={node.image}")).split():
        docker("kill", container)
    assert str(node.views) in mountpoints()
    assert (
        "endpoint is not connected"
        in subprocess.run(["ls", node.views], capture_output=True, text=True, timeout=20).stderr
    )
    third = node.start_daemon()
    assert "cleared away" in node.log(third)
    assert not node.is_running(second)
    with reader(docker, node.views):
        pass
    assert node.stop(third) == 0
    assert str(node.views) not in mountpoints()
