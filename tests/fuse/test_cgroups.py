"""What is read of cgroups, on this machine's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lxcfs_py.cgroup import open_cgroup, taskstats, v1
from lxcfs_py.cgroup.layout import find, parse_paths
from lxcfs_py.linux import syscalls
from lxcfs_py.linux.kernel_files import KernelDirectory
from lxcfs_py.runtimes.sandbox import SandboxError
from tests.unit.test_kernel_files import open_files

CLONE_NEWUSER = 0x10000000

FIRST = """
import contextlib, subprocess, sys
from lxcfs_py.linux import syscalls

def enter():
    for file in {files}:
        with contextlib.suppress(OSError):
            open(file, "w").write("0")
    for flag in {unshared}:
        syscalls.unshare(flag)

print(subprocess.run([sys.executable, "-c", {script!r}], preexec_fn=enter, stdout=-1, text=True).stdout, end="")
"""


def in_a_container(script: str, box, *unshared: int) -> str:
    """What Python prints in the cgroups of a sandbox, in namespaces of its own, beside a PID 1 that is in none."""
    files = []
    for name in find().hierarchies:
        with contextlib.suppress(SandboxError):
            files.append(str(box.cgroup(name) / "cgroup.procs"))
    first = FIRST.format(files=files, unshared=unshared, script=script)
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", sys.executable, "-c", first]
    return subprocess.run(command, capture_output=True, text=True).stdout


LOOK = """
import os
from lxcfs_py.cgroup.layout import LayoutError, find_for_all
try:
    print(sorted({hierarchy.root for hierarchy in find_for_all().hierarchies.values()}))
    print(os.readlink("/proc/self/ns/cgroup") == os.readlink("/proc/1/ns/cgroup"))
except LayoutError as error:
    print(error)
"""


def test_a_daemon_in_a_cgroup_namespace_of_its_own_looks_from_that_of_the_first_process(sandbox):
    assert in_a_container(LOOK, sandbox(), syscalls.CLONE_NEWCGROUP) == "['/']\nTrue\n"


def test_a_daemon_that_cannot_enter_it_says_so(sandbox):
    said = in_a_container(LOOK, sandbox(), syscalls.CLONE_NEWCGROUP, CLONE_NEWUSER)
    assert "only a part of the machine's cgroups can be seen here" in said
    assert "--cgroupns=host" in said


counted_by_the_kernel = pytest.mark.skipif(
    find().version("pids") != 1, reason="the kernel counts the tasks of cgroup v1 alone, and this machine has v2"
)


@counted_by_the_kernel
def test_the_kernel_counts_the_tasks_of_a_real_cgroup_by_state(sandbox):
    def wait_for(states):
        deadline = time.monotonic() + 10
        while tasks.states() != states:
            assert time.monotonic() < deadline, tasks.states()
            time.sleep(0.01)

    box = sandbox()
    tasks = v1.Tasks(find().levels("pids", parse_paths(Path(f"/proc/{box.init}/cgroup").read_bytes()), {}))
    wait_for((0, 0, 1))  # its init sleeps
    assert tasks.pids(9) == [box.init]
    busy = box.popen(["sh", "-c", "while :; do :; done"])
    wait_for((1, 0, 2))
    (box.cgroup("pids") / "inner").mkdir()
    (box.cgroup("pids") / "inner" / "cgroup.procs").write_text(f"{busy.pid}")
    wait_for((1, 0, 2))  # a cgroup below counts too
    assert tasks.forked() >= 2


@counted_by_the_kernel
def test_the_kernel_refuses_to_count_tasks_of_what_is_no_cgroup():
    fd = os.open("/tmp", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            taskstats.count(fd)
    finally:
        os.close(fd)


def test_a_zombie_is_a_task_until_it_is_reaped(sandbox):
    box = sandbox()
    paths = parse_paths(Path(f"/proc/{box.init}/cgroup").read_bytes())
    tasks = open_cgroup(find(), paths).tasks
    parent = (
        "import os, sys; os.fork() or os._exit(0); print(flush=True); sys.stdin.read(1); os.wait(); print(flush=True)"
    )
    process = box.popen([sys.executable, "-c", f"{parent}; sys.stdin.read()"], stdin=-1, stdout=-1)
    process.stdout.readline()
    assert tasks.states()[2] == 3
    process.stdin.write(b"x")
    process.stdin.flush()
    process.stdout.readline()
    assert tasks.states()[2] == 2
    process.stdin.close()
    process.stdout.close()


@pytest.fixture
def real_cgroup(require):
    """The path of a cgroup that does not exist yet, in some hierarchy of this machine; it is removed at the end."""
    require(os.geteuid() == 0, "root")
    hierarchies = find().hierarchies
    require(hierarchies, "a mounted cgroup hierarchy")
    hierarchy = hierarchies.get("pids") or hierarchies[""]
    path = Path(hierarchy.mountpoint, f"lxcfs-py-test-{os.getpid()}")
    yield path
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def test_a_cgroup_made_again_at_the_same_path_is_read_through_the_same_descriptor(real_cgroup):
    real_cgroup.mkdir()
    directory = KernelDirectory(str(real_cgroup))
    assert directory.read("cgroup.procs") == b""
    before = open_files()
    real_cgroup.rmdir()
    with pytest.raises(OSError, match=r"No such (file|device)"):
        directory.read("cgroup.procs")
    real_cgroup.mkdir()
    assert directory.read("cgroup.procs") == b""
    assert directory.get("cgroup.procs") == b""
    assert open_files() == before
    del directory
    assert open_files() == before - 1


def test_a_cgroup_that_is_gone_is_an_error_and_no_missing_file(real_cgroup):
    """Who takes a missing file for a controller that is not enabled would see no limit where there was one."""
    real_cgroup.mkdir()
    seen, unseen = KernelDirectory(str(real_cgroup)), KernelDirectory(str(real_cgroup))
    assert seen.get("cgroup.procs") == b""
    assert seen.get("memory.nonsense") is None
    real_cgroup.rmdir()
    for directory in (seen, unseen):
        for _ in range(2):
            with pytest.raises(OSError, match=r"No such (file|device)"):
                directory.get("cgroup.procs")
