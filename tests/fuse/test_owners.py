"""Whose a request is: a container's, whatever it makes for itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

from lxcfs_py.container.owners import Owners
from lxcfs_py.runtimes.sandbox import Sandbox

PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
NESTED = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]
WAIT = [sys.executable, "-c", "import sys; print('waiting', flush=True); sys.stdin.readline()"]


def newest(process: subprocess.Popen[str]) -> int:
    """The pid of what a command has started in the end."""
    pid = process.pid
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])
    return pid


def test_namespaces_and_cgroups_within_a_container_are_its_own(sandbox: Callable[..., Sandbox]) -> None:
    box, other = sandbox(memory=64 << 20), sandbox(memory=64 << 20)
    started = [box.popen(WAIT, **PIPES), box.popen([*NESTED, *NESTED, *WAIT], **PIPES), other.popen(WAIT, **PIPES)]
    below: list[Path] = []
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
        plain, nested, elsewhere = map(newest, started)
        assert Path(f"/proc/{nested}/ns/pid").readlink() != Path(f"/proc/{plain}/ns/pid").readlink()
        for line in Path(f"/proc/{nested}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            directory = Path("/sys/fs/cgroup", controllers.removeprefix("name="), path.lstrip("/"))
            if path != "/" and (directory / "cgroup.procs").exists() and not (directory / "cpuset.cpus").exists():
                below.append(directory / "below")
                below[-1].mkdir()
                (below[-1] / "cgroup.procs").write_text(str(nested))
        assert below
        assert "/below" in Path(f"/proc/{nested}/cgroup").read_text()
        known = Owners()
        descriptors = os.listdir("/proc/self/fd")
        assert known.of(plain, 0) == known.of(nested, 0) == Owners().of(nested, 0)
        assert known.of(plain, 0) not in (known.of(elsewhere, 0), "user 0")
        assert "/below" not in known.of(nested, 0)
        assert known._outermost_init(nested) == known._outermost_init(plain)
        assert os.listdir("/proc/self/fd") == descriptors
    finally:
        for process in started:
            process.communicate("\n", timeout=20)
        for directory in below:
            directory.rmdir()
