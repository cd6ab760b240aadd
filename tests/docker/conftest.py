"""A Docker engine of this test run's own, an image of Debian packages, and containers that have the views mounted.

Nothing is shared with an engine that may already run on the machine: data, sockets, pid file, containerd namespace and
cgroups are this run's own, and all of them are gone when it ends. Only the image stays, as a tarball in the cache
(tests/cached.py), under the hash of what it is built from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from tests import cached

# The files of the article's own command line.
ARTICLE = ("proc/cpuinfo", "proc/diskstats", "proc/meminfo", "proc/stat", "proc/swaps", "proc/uptime")

BOOTSTRAP = ("mmdebstrap", "--variant=minbase", "--include=procps,openjdk-17-jre-headless,nginx-light", "bookworm")


@dataclass(frozen=True)
class Docker:
    """A running engine: its client, its environment, the image that containers here are made of."""

    client: str
    environment: dict[str, str]
    image: str

    def __call__(self, *arguments: str, timeout: float = 60) -> str:
        """What `docker ARGUMENTS` prints; AssertionError with what it complained of when it fails."""
        done = self.attempt(*arguments, timeout=timeout)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """`docker ARGUMENTS`, whether or not it succeeds."""
        return subprocess.run(
            [self.client, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout
        )


@dataclass(frozen=True)
class Container:
    """A container that runs in the background."""

    docker: Docker
    id: str

    def run(self, command: str, timeout: float = 60) -> str:
        """What a shell COMMAND prints that is executed in it."""
        return self.docker("exec", self.id, "sh", "-c", command, timeout=timeout)


def mounts(views: Path, files: Iterable[str]) -> list[str]:
    """The `docker run` flags that put FILES of the mount VIEWS in their places, as the article writes them."""
    return [flag for name in files for flag in ("-v", f"{views / name}:/{name}:rw")]


@pytest.fixture(scope="session")
def views(daemon: Any) -> Path:
    """Where the server under test has mounted."""
    return Path(daemon.mountpoint)


@pytest.fixture
def run(docker: Docker, views: Path) -> Callable[..., str]:
    """run(*OPTIONS, command=…, files=…): what a shell COMMAND prints in a new container that has FILES mounted."""

    def run(*options: str, command: str, files: Iterable[str] = ARTICLE, timeout: float = 60) -> str:
        flags = ("--rm", "--network", "none", *options, *mounts(views, files))
        return docker("run", *flags, docker.image, "sh", "-c", command, timeout=timeout)

    return run


@pytest.fixture
def start(docker: Docker, views: Path) -> Iterator[Callable[..., Container]]:
    """start(*OPTIONS, command=…, files=…): a Container in the background; it is removed when the test ends."""
    started: list[str] = []

    def start(*options: str, command: str = "exec sleep infinity", files: Iterable[str] = ARTICLE) -> Container:
        flags = ("--network", "none", *options, *mounts(views, files))
        started.append(docker("create", *flags, docker.image, "sh", "-c", command).strip())
        docker("start", started[-1])
        return Container(docker, started[-1])

    yield start
    for container in started:
        docker("rm", "--force", container)


@pytest.fixture(scope="session")
def cache() -> Path:
    return cached.directory()


@pytest.fixture(scope="session")
def two_cpus(require: Callable[[object, str], None]) -> None:
    """Docker refuses `--cpus 2` and `--cpuset-cpus 1` where there is but one CPU."""
    require((os.cpu_count() or 1) >= 2, "two CPUs")


@pytest.fixture
def disk(cache: Path, require: Callable[[object, str], None]) -> Iterator[tuple[Path, str]]:
    """An empty directory on a disk whose I/O the kernel counts, and that disk's name."""
    with directory_on_a_disk(cache, require) as found:
        yield found


@contextlib.contextmanager
def directory_on_a_disk(cache: Path, require: Callable[[object, str], None]) -> Iterator[tuple[Path, str]]:
    """What `disk` is, for a fixture that lasts longer."""
    disks = [(path, block_device(path)) for path in (cache, Path("/var/tmp"), Path("/tmp")) if block_device(path)]
    require(disks, f"{cache}, /var/tmp or /tmp on a block device")
    path, name = disks[0]
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-", dir=path) as directory:
        yield Path(directory), name


def block_device(path: Path) -> str:
    """The kernel's name for the whole disk that PATH is on; empty where there is none (tmpfs, overlay)."""
    device = path.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if not node.exists():
        return ""
    node = node.resolve()
    return node.parent.name if (node / "partition").exists() else node.name


@pytest.fixture(scope="session")
def docker(cache: Path, require: Callable[[object, str], None]) -> Iterator[Docker]:
    """The engine with the image in it."""
    with engine_with(BOOTSTRAP, cache, require) as engine:
        yield engine


@contextlib.contextmanager
def engine_with(bootstrap: Sequence[str], cache: Path, require: Callable[[object, str], None]) -> Iterator[Docker]:
    """An engine with an image of one's own in it."""
    client = next(filter(os.path.exists, ("/usr/bin/docker", shutil.which("docker") or "")), "")
    require(os.geteuid() == 0, "root")
    require(client and shutil.which("dockerd"), "Docker's engine: apt-get install docker.io")
    require(shutil.which("mmdebstrap"), "mmdebstrap: apt-get install mmdebstrap")
    tarball = image(cache, bootstrap)
    root = Path(tempfile.gettempdir(), f"lxcfs-py-docker-{secrets.token_hex(4)}")  # also a containerd namespace's name
    root.mkdir(mode=0o700)
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), "DOCKER_HOST": f"unix://{root}/socket"}
    engine = Docker(client, environment, f"lxcfs-py-tests:{tarball.stem}")
    try:
        with dockerd(root, engine):
            engine("import", str(tarball), engine.image, timeout=300)
            yield engine
    finally:
        clear(root)


def image(cache: Path, bootstrap: Sequence[str] = BOOTSTRAP) -> Path:
    """The image's root as a tarball, from the cache or built into it (about 20 s)."""
    tarball = cache / f"image-{hashlib.sha256(repr(bootstrap).encode()).hexdigest()[:16]}.tar"
    if not tarball.exists():
        with tempfile.TemporaryDirectory(prefix="image-", dir=cache) as directory:
            built = Path(directory, tarball.name)
            done = subprocess.run([*bootstrap, str(built)], capture_output=True, text=True, timeout=1200)
            assert done.returncode == 0, f"{' '.join(bootstrap)}: exit {done.returncode}\n{done.stderr[-2000:]}"
            built.replace(tarball)
    return tarball


@contextlib.contextmanager
def dockerd(root: Path, docker: Docker) -> Iterator[None]:
    """Docker's daemon with everything that it keeps under ROOT, from its first answer until it has ended."""
    options = {
        "data-root": root / "data",
        "exec-root": root / "exec",
        "pidfile": root / "pid",
        "host": docker.environment["DOCKER_HOST"],
        "containerd-namespace": root.name,
        "cgroup-parent": f"/{root.name}",
        "exec-opt": "native.cgroupdriver=cgroupfs",
        "iptables": "false",
        "bridge": "none",
    }
    arguments = ["dockerd", *(f"--{name}={value}" for name, value in options.items())]
    log = root / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while docker.attempt("version").returncode != 0:
            assert daemon.poll() is None, f"dockerd ended:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"dockerd does not answer:\n{log.read_text()[-3000:]}"
            time.sleep(0.1)
        yield
        for container in docker("ps", "--all", "--quiet").split():
            docker("rm", "--force", container)
    finally:
        daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def clear(root: Path) -> None:
    """Remove what the engine under ROOT left: cgroups and files; after a disorderly end processes and mounts too."""
    for arguments in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{root}/".encode() in arguments.read_bytes():  # containerd and its shims carry their socket's path
                os.kill(int(arguments.parent.name), signal.SIGKILL)
    hierarchies = (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir())  # of version 2, of version 1
    parents = [hierarchy / root.name for hierarchy in hierarchies if (hierarchy / root.name).is_dir()]
    for parent in parents:
        for members in parent.glob("**/cgroup.procs"):
            for pid in members.read_text().split():
                with contextlib.suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
    table = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mountpoint in reversed([path for path in table if path.startswith(f"{root}/")]):
        subprocess.run(["umount", "--lazy", mountpoint], check=True, timeout=30)
    for parent in parents:
        for directory, _, _ in os.walk(parent, topdown=False):
            remove_cgroup(Path(directory))
    shutil.rmtree(root)


def remove_cgroup(directory: Path) -> None:
    """rmdir(2), again while the last of its processes is still on its way out (EBUSY), for 10 s."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return directory.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
