"""Recorded machines (trees/README.md) and made-up ones, and containers in them, for the views to look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Optional
from unittest import mock

import pytest

from lxcfs_py.cgroup import Cgroup, open_cgroup
from lxcfs_py.cgroup.layout import find, parse_paths
from lxcfs_py.cgroup.taskstats import Count
from lxcfs_py.config import Config, Cpu
from lxcfs_py.container.cpu_time import Account, Ledger
from lxcfs_py.container.load import Load, Sampler
from lxcfs_py.container.paged import Paged
from lxcfs_py.linux.host import NS_PER_TICK, TICKS, Host
from lxcfs_py.views import VIEWS

TREES = Path(__file__).parent / "trees"
MACHINES = ("v1-2cpu", "v1-2cpu-swap", "hybrid", "v2-2cpu-noswap-nopsi", "v2-64cpu", "v2-arm64")

# What trees/README.md says of the limits: the CPUs of the smaller quota rounded up, the cpuset.
CPUS = {
    "v1-2cpu": (2, [0, 1]),
    "v1-2cpu-swap": (2, [0, 1]),
    "hybrid": (2, [0, 1]),
    "v2-2cpu-noswap-nopsi": (1, [1]),
    "v2-64cpu": (3, [2, 3, 4, 5, 6, 7, 8, 9]),
    "v2-arm64": (2, [1, 3]),
}

CPUSET = Config(cpu=Cpu(mode="cpuset"))
QUOTA = Config(cpu=Cpu(mode="quota"))


_NOBODY = 65534


@pytest.fixture
def ordinary_user(require: Callable[[object, str], None]) -> Iterator[int]:
    """The test runs as a user who is not root; the number of the user."""
    require(os.geteuid() == 0, "root")
    os.seteuid(_NOBODY)
    yield _NOBODY
    os.seteuid(0)


class RecordedHost(Host):
    """A machine at the moment at which it was recorded."""

    def __init__(self, root: Path) -> None:
        super().__init__(root=str(root))
        self.btime = int((root / "proc/stat").read_text().partition("\nbtime ")[2].split()[0])
        self.clock = round(float((root / "proc/uptime").read_text().split()[0]) * TICKS) * NS_PER_TICK

    def now(self) -> int:  # type: ignore[override]
        return self.clock

    def asleep(self) -> int:  # type: ignore[override]
        return 0

    def booted(self) -> int:
        return self.btime * 10**9


class RecordedContainer:
    """What the views know of a container: see lxcfs_py.container.containers.Container."""

    def __init__(self, machine: Machine, init: Path) -> None:
        self.proc = machine.root / "proc"
        self.paths = parse_paths((init / "cgroup").read_bytes())
        self.init, self.home = int(init.name), None
        self.configured = None
        self.amounts: Any = (0.0, None, {})
        self.cgroup = open_cgroup(find(str(machine.root)), self.paths, str(self.proc))
        self.start = int((init / "stat").read_text().rpartition(") ")[2].split()[19]) * NS_PER_TICK
        self.account = Account(Ledger(), init.name)
        self.load = Load(Sampler(5))
        self.paged = Paged()
        self.last_pid = 31
        self.reads = 0

    def states(self) -> tuple[int, int, int]:
        assert self.cgroup.tasks
        with mock.patch("lxcfs_py.cgroup.taskstats.count", self._count):  # there is no kernel to ask any more
            return self.cgroup.tasks.states()

    def active(self) -> tuple[int, int]:
        return self.states()[:2]

    def _count(self, directory: int) -> Count:
        with open(os.open("tasks", os.O_RDONLY, dir_fd=directory)) as file:
            tasks = file.read().split()
        states = [(self.proc / task / "stat").read_text().rpartition(") ")[2][0] for task in tasks]
        return Count(states.count("R"), states.count("D"))


class Machine:
    """A recorded machine and the container in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = root.name
        self.host = RecordedHost(root)
        # The container's PID 1 is the one process that is number 1 in a pid namespace below the machine's.
        (self.init,) = (
            status.parent
            for status in root.glob("proc/[0-9]*/status")
            if len(ids := status.read_text().partition("\nNSpid:")[2].partition("\n")[0].split()) > 1 and ids[-1] == "1"
        )
        self.container = self.again()

    def again(self) -> RecordedContainer:
        """The container as a daemon that has just started sees it."""
        return RecordedContainer(self, self.init)

    def render(self, name: str, config: Config = Config()) -> bytes:  # noqa: B008 - it is immutable
        return VIEWS[name](self.container, self.host, config)  # type: ignore[arg-type]

    def service(self, name: str, config: Config = Config()) -> bytes:  # noqa: B008
        """What its sshd would see, a service without limits."""
        (init,) = (path.parent for path in self.root.glob("proc/*/cgroup") if b"/ssh.service" in path.read_bytes())
        return VIEWS[name](RecordedContainer(self, init), self.host, config)  # type: ignore[arg-type]

    def has(self, name: str) -> bool:
        """Tell whether a file was recorded."""
        return (self.root / name).exists()

    def own(self, name: str) -> bytes:
        """The machine's own file."""
        return (self.root / name).read_bytes()

    def cgroup(self, controller: str, name: str, up: int = 0) -> str:
        """A file of the container's cgroup, or of one so many levels above it."""
        hierarchies = find(str(self.root)).hierarchies
        hierarchy = hierarchies[controller]
        path = parse_paths((self.init / "cgroup").read_bytes())[controller if hierarchy.version == 1 else ""]
        directory = Path(hierarchy.directory(path))
        return (directory.parents[up - 1] if up else directory).joinpath(name).read_text()


@pytest.fixture(scope="session", params=MACHINES)
def machine(request: Any) -> Machine:
    """Each recorded machine in turn."""
    return Machine(TREES / request.param)


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Machine]:
    """A recorded machine by its name, as new: with no reading behind it."""
    return lambda name: Machine(TREES / name)


@pytest.fixture(scope="session")
def copied() -> Callable[[str, Path], Machine]:
    """A recorded machine by its name, copied to a directory where its files can be changed."""
    return lambda name, where: Machine(Path(shutil.copytree(TREES / name, where / name)))


_DIRECTORY = os.open("/", os.O_PATH)


class Files:
    """A cgroup's directory with just these files, and none below: what readers of cgroups ask of a KernelDirectory."""

    path = ""
    whose = ""

    def __init__(self, files: Mapping[str, object]) -> None:
        self.files = {name: f"{content}\n".encode() for name, content in files.items()}

    def read(self, name: str) -> bytes:
        try:
            return self.files[name]
        except KeyError:
            raise FileNotFoundError(name) from None

    def get(self, name: str) -> Optional[bytes]:
        return self.files.get(name)

    def fd(self) -> int:
        return _DIRECTORY


@pytest.fixture(scope="session")
def files() -> type[Files]:
    return Files


@pytest.fixture(scope="session")
def cgroup() -> Callable[..., Cgroup]:
    """A cgroup with just these controllers."""
    nothing = dict.fromkeys(("cpu", "cpuset", "io", "hugetlb", "tasks", "pressure"))
    return lambda memory=None, **controllers: Cgroup(memory, **{**nothing, **controllers})


@pytest.fixture(scope="session")
def container_in() -> Callable[..., Any]:
    """A container in a made-up cgroup, that does nothing unless told."""
    return lambda cgroup, **known: SimpleNamespace(
        **{
            "cgroup": cgroup,
            "account": Account(Ledger(), "container"),
            "paths": {},
            "configured": None,
            "amounts": (0.0, None, {}),
            "start": 0,
            "last_pid": 31,
            "paged": Paged(),
            "reads": 0,
            "states": lambda: (0, 0, 0),
            "active": lambda: (0, 0),
            **known,
        }
    )


@pytest.fixture
def made(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """A function that writes files, by their path, below a new directory: made-up hierarchies of cgroups."""

    def make(tree: Mapping[str, str]) -> Path:
        for name, content in tree.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


@pytest.fixture
def rendered(machine: Machine, tmp_path: Path) -> Path:
    """All views of a recorded machine's container in a directory, laid out as the mount is."""
    for name in VIEWS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(machine.render(name))
    return tmp_path
