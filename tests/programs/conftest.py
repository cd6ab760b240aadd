"""Docker with an image of all the table's programs, and what these say there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.runtimes import seccomp_profile
from tests.conftest import ROOT
from tests.docker.conftest import cache, directory_on_a_disk, engine_with, two_cpus  # noqa: F401 -- fixtures
from tests.programs import observed
from tests.programs.observed import Engine, Sayings, Way
from tests.programs.table import rows

SUITE = "bookworm"
ROWS = list(rows(SUITE))
NEEDED = ("coreutils", "procps", "python3", "util-linux")
PACKAGES = sorted({*NEEDED, *(package for row in ROWS for package in row.packages(SUITE))})
EXCLUDED = ("doc", "info", "locale")
BOOTSTRAP = (
    *("mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in EXCLUDED),
    SUITE,
)


@pytest.fixture(scope="session")
def engine(
    cache: Path,  # noqa: F811
    require: Callable[[object, str], None],
    start_shared_daemon: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("programs")
    observed.write_scripts(directory, ROWS)
    shutil.copytree(ROOT / "lxcfs_py", directory / "lxcfs_py")  # filtered.py has the kernel's interface from there
    daemon = start_shared_daemon("kernel")
    with engine_with(BOOTSTRAP, cache, require) as docker, directory_on_a_disk(cache, require) as (disk, device):

        def shell(command: str) -> str:
            done = subprocess.run(
                ["bash", "-c", command], cwd=ROOT, env=docker.environment, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, (
                f"{command}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
            return done.stdout

        (directory / "lxcfs.toml").write_text(f'mountpoint = "{daemon.mountpoint}"\n')
        attach = f"{sys.executable} -m lxcfs_py attach --config {directory}/lxcfs.toml --pid"
        socket = seccomp_profile.socket_of(str(daemon.mountpoint))
        # cgroup v1 counts a disk's I/O once there is a limit for it, and numactl may ask with that capability alone.
        options = f"-v {socket}:/agent.sock --cap-add SYS_NICE --device-write-iops /dev/{device}:1000000"
        yield Engine(docker.client, shell, options, docker.image, str(directory), str(disk), attach)


@pytest.fixture(scope="session")
def said(engine: Engine) -> dict[str, Sayings]:
    return observed.observe(engine, SUITE, ROWS, Way(prefix="python3 /programs/filtered.py /agent.sock"))
