#!/usr/bin/env python3
"""Make a container-like cgroup with limits, have it use up known amounts of everything, and record the kernel's files.

    container.py NAME OUT

NAME is a tree of this directory, and the machine this runs on must be as README.md says for it. Run as root, beside
record.py. Leaves no cgroup, process or file behind.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import record  # noqa: E402

MIB = 1 << 20
MADV_PAGEOUT = 21
MAP_HUGETLB = 0x40000
HUGE_PAGE = 2 * MIB
READY_WITHIN = 600  # seconds; an emulated machine is slow


@dataclass(frozen=True)
class Use:
    """What the container's init uses before the files are recorded. Sizes in MiB, times in seconds."""

    user: float = 1.5  # of CPU, on the first CPU of the cpuset
    system: float = 1.0  # of CPU, on the second
    contend: float = 0.0  # seconds in which four processes want all CPUs of the cpuset
    anonymous: int = 48
    file: int = 24  # written, flushed, and read back: stays in the page cache
    shared: int = 8
    direct_write: int = 16  # past the page cache
    direct_read: int = 8
    swap_out: int = 0  # of the anonymous memory
    huge_pages: int = 0
    child: int = 6  # anonymous, by a process in a cgroup below


@dataclass(frozen=True)
class Recipe:
    parent: str
    box: str  # the name of the container's cgroup below `parent`
    limits: tuple[tuple[str, str, str], ...]  # ("parent" | "box", file, value), written in this order
    use: Use
    own_disk: bool = False  # its files are on a loop device
    io_limit: bool = False  # set a limit, far too high to be felt: kernels (6.1, 6.18) count no v1 I/O without one


V1_LIMITS = (
    ("parent", "memory.limit_in_bytes", str(1024 * MIB)),
    ("box", "memory.limit_in_bytes", str(256 * MIB)),
    ("box", "memory.memsw.limit_in_bytes", str(384 * MIB)),
    ("parent", "cpuset.cpus", "0-1"),
    ("parent", "cpuset.mems", "0"),
    ("box", "cpuset.cpus", "0-1"),
    ("box", "cpuset.mems", "0"),
    ("box", "pids.max", "100"),
)
# v1 refuses a quota above the parent's (EINVAL), so the smaller one is above only where there is none below.
V1_QUOTA_ABOVE = (("parent", "cpu.cfs_quota_us", "150000"),)
V1_QUOTA_BELOW = (
    ("parent", "cpu.cfs_quota_us", "200000"),
    ("box", "cpu.cfs_period_us", "50000"),
    ("box", "cpu.cfs_quota_us", "75000"),
)
V2_LIMITS = (
    ("parent", "cpu.max", "800000 100000"),
    ("box", "cpu.max", "125000 50000"),
    ("parent", "cpuset.cpus", "0-15"),
    ("box", "cpuset.cpus", "2-9"),
    ("parent", "memory.max", str(1024 * MIB)),
    ("box", "memory.max", str(512 * MIB)),
    ("box", "memory.swap.max", str(256 * MIB)),
    ("box", "hugetlb.2MB.max", str(8 * HUGE_PAGE)),
    ("box", "pids.max", "100"),
)
# The parent's are the smaller ones here.
SMALL_V2_LIMITS = (
    ("parent", "memory.max", str(192 * MIB)),
    ("box", "memory.max", str(256 * MIB)),
    ("parent", "cpu.max", "50000 100000"),
    ("box", "cpu.max", "100000 100000"),
    ("box", "cpuset.cpus", "1"),
)
# CPUs of arm64, two of four.
ARM_LIMITS = (
    ("parent", "memory.max", str(512 * MIB)),
    ("box", "memory.max", str(256 * MIB)),
    ("box", "cpu.max", "150000 100000"),
    ("box", "cpuset.cpus", "1,3"),
    ("box", "pids.max", "100"),
)
RECIPES = {
    "v1-2cpu": Recipe("lxcfs-rec", "box", V1_LIMITS + V1_QUOTA_ABOVE, Use(), own_disk=True, io_limit=True),
    "v1-2cpu-swap": Recipe("lxcfs-rec", "box", V1_LIMITS + V1_QUOTA_BELOW, Use(swap_out=16)),
    "v2-64cpu": Recipe("rec.slice", "rec-box", V2_LIMITS, Use(contend=4, anonymous=96, swap_out=32, huge_pages=3)),
    "v2-2cpu-noswap-nopsi": Recipe("rec.slice", "rec-box", SMALL_V2_LIMITS, Use()),
    "v2-arm64": Recipe("rec.slice", "rec-box", ARM_LIMITS, Use()),
    "hybrid": Recipe("lxcfs-rec", "box", V1_LIMITS + V1_QUOTA_BELOW, Use(), io_limit=True),
}


# Outside: the cgroups.


def directories(cgroup: str) -> list[Path]:
    """The directories of one cgroup, in every hierarchy that is mounted."""
    return [root / cgroup for root in record.hierarchies().values()]


def directory(cgroup: str, controller: str) -> Path:
    """Its directory in the hierarchy of that controller; v2's where no v1 hierarchy has it."""
    mounted = record.hierarchies()
    root = next((mounted[names] for names in mounted if controller in names.split(",")), None)
    return (root or mounted[""]) / cgroup


def make_cgroups(recipe: Recipe) -> None:
    paths = {"parent": recipe.parent, "box": f"{recipe.parent}/{recipe.box}"}
    controllers = {file.split(".")[0] for _, file, _ in recipe.limits} | {"io"}
    for cgroup in (recipe.parent, paths["box"], paths["box"] + "/inner"):
        for path in directories(cgroup):
            path.mkdir()
            subtree = path.parent / "cgroup.subtree_control"
            if subtree.exists() and cgroup != paths["box"] + "/inner":
                here = (path.parent / "cgroup.controllers").read_text().split()
                subtree.write_text(" ".join(f"+{name}" for name in sorted(controllers & set(here))))
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherit_cpuset(paths["parent"], name)
    for which, file, value in recipe.limits:
        path = directory(paths[which], file.split(".")[0]) / file
        if "memsw" in file and not path.exists():
            continue  # a kernel without swap accounting
        path.write_text(value)
    for name in ("cpuset.cpus", "cpuset.mems"):
        inherit_cpuset(paths["box"] + "/inner", name)


def inherit_cpuset(cgroup: str, name: str) -> None:
    """v1 starts a new cpuset empty, and an empty one admits no task."""
    path = directory(cgroup, "cpuset") / name
    if (path.parent / "cgroup.clone_children").exists() and not path.read_text().strip():
        path.write_text((path.parent.parent / name).read_text())


def remove_cgroups(recipe: Recipe) -> None:
    for cgroup in (f"{recipe.parent}/{recipe.box}/inner", f"{recipe.parent}/{recipe.box}", recipe.parent):
        for path in directories(cgroup):
            deadline = time.monotonic() + 10
            while path.exists():
                try:
                    path.rmdir()
                except OSError:  # its last task is still on its way out
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


def join(cgroup: str) -> None:
    for path in directories(cgroup):
        (path / "cgroup.procs").write_text("0")


def record_container(name: str, out: Path) -> None:
    recipe = RECIPES[name]
    try:
        make_cgroups(recipe)
        with scratch_directory(recipe) as scratch:
            command = ["unshare", "--pid", "--mount", "--fork", "--kill-child", sys.executable, __file__]
            inside = subprocess.Popen([*command, "--inside", name, str(scratch)], stdout=subprocess.PIPE, text=True)
            try:
                wait_until_ready(inside)
                time.sleep(1)  # v2 and memory.stat flush their counters late
                record.record(out, sorted(tasks(f"{recipe.parent}/{recipe.box}")) + host_processes())
            finally:
                inside.kill()
                inside.wait(timeout=30)
    finally:
        remove_cgroups(recipe)


@contextmanager
def scratch_directory(recipe: Recipe) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, contextlib.ExitStack() as stack:
        scratch = stack.enter_context(own_disk(Path(name))) if recipe.own_disk else Path(name)
        if recipe.io_limit:
            device = scratch.stat().st_dev
            for way in ("read", "write"):
                file = directory(f"{recipe.parent}/{recipe.box}", "blkio") / f"blkio.throttle.{way}_bps_device"
                file.write_text(f"{os.major(device)}:{os.minor(device)} {1 << 40}")
        yield scratch


@contextmanager
def own_disk(where: Path) -> Iterator[Path]:
    """A loop device with a file system, mounted. The machine's own disks stay as they were, without a limit."""
    image, mounted = where / "disk.img", where / "mounted"
    mounted.mkdir()
    image.touch()
    os.truncate(image, 96 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-E", "nodiscard", str(image))
    # Direct, or the image's page cache would be charged to the container.
    loop = run("losetup", "--find", "--show", "--direct-io=on", str(image))
    try:
        run("mount", loop, str(mounted))
        try:
            yield mounted
        finally:
            run("umount", "--lazy", str(mounted))
    finally:
        run("losetup", "--detach", loop)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout.strip()


def wait_until_ready(inside: subprocess.Popen[str]) -> None:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(READY_WITHIN)
    line = inside.stdout.readline()
    signal.alarm(0)
    if not line:
        raise SystemExit("the container's init ended before it was ready")
    print(line.strip())


def tasks(cgroup: str) -> list[int]:
    found = []
    for path in (cgroup, cgroup + "/inner"):
        found += [int(pid) for pid in (directory(path, "memory") / "cgroup.procs").read_text().split()]
    return found


def host_processes() -> list[int]:
    """systemd and a service without limits, where there is systemd: readers on the host."""
    if not Path("/run/systemd/system").exists():
        return []
    return [1, int(run("systemctl", "show", "--property=MainPID", "--value", "ssh.service"))]


# Inside: PID 1 of the container.


def inside(name: str, scratch: Path) -> None:
    recipe = RECIPES[name]
    join(f"{recipe.parent}/{recipe.box}")
    cpus = sorted(os.sched_getaffinity(0))
    command = ["unshare", "--cgroup", sys.executable, __file__, "--init", name, str(scratch), json.dumps(cpus)]
    os.execvp("unshare", command)


def init(name: str, scratch: Path, cpus: list[int]) -> None:
    recipe = RECIPES[name]
    use = recipe.use
    in_child(lambda: (join_inner(recipe), hold(anonymous(use.child))))
    in_child(signal.pause)
    contend(use.contend)
    burn(use, cpus)
    held = [anonymous(use.anonymous), shared(use.shared), huge(use.huge_pages)]
    if use.swap_out:
        swap_out(recipe, held[0], use.swap_out)
    cached(scratch / "cached", use.file)
    direct(scratch / "direct", use.direct_write, use.direct_read)
    print(json.dumps(asdict(use)), flush=True)
    hold(held)


def join_inner(recipe: Recipe) -> None:
    """Under this cgroup namespace's root, but the mounts are still the host's."""
    join(f"{recipe.parent}/{recipe.box}/inner")


def in_child(work: Callable[[], object]) -> None:
    if os.fork() == 0:
        try:
            work()
        finally:
            os._exit(0)


def hold(_kept: object) -> None:
    signal.pause()


def contend(seconds: float) -> None:
    children = []
    for _ in range(4 if seconds else 0):
        child = os.fork()
        if child == 0:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)


def burn(use: Use, cpus: list[int]) -> None:
    start = os.times()
    os.sched_setaffinity(0, cpus[:1])
    while os.times().user - start.user < use.user:
        sum(range(10000))
    os.sched_setaffinity(0, cpus[1:2] or cpus)
    with open("/dev/zero", "rb", buffering=0) as zero:
        buffer = bytearray(MIB)
        while os.times().system - start.system < use.system:
            zero.readinto(buffer)
    os.sched_setaffinity(0, cpus)


def anonymous(size: int) -> mmap.mmap:
    return touched(mmap.mmap(-1, size * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def shared(size: int) -> mmap.mmap:
    return touched(mmap.mmap(-1, size * MIB, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))


def swap_out(recipe: Recipe, memory: mmap.mmap, size: int) -> None:
    memory.madvise(MADV_PAGEOUT, 0, size * MIB)
    limit = directory(f"{recipe.parent}/{recipe.box}", "memory") / "memory.limit_in_bytes"
    if limit.exists():
        # v1 counts a page as swap only when it has left the swap cache: squeeze those that were written out.
        time.sleep(1)
        before = limit.read_text()
        usage = int((limit.parent / "memory.usage_in_bytes").read_text())
        limit.write_text(str(usage - (size - 1) * MIB))
        limit.write_text(before)


def huge(pages: int) -> mmap.mmap | None:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
    return touched(mmap.mmap(-1, pages * HUGE_PAGE, flags=flags)) if pages else None


def touched(memory: mmap.mmap) -> mmap.mmap:
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    return memory


def cached(path: Path, size: int) -> None:
    with open(path, "w+b") as file:
        for _ in range(size):
            file.write(bytes(MIB))
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        for _ in range(2):  # read twice, the pages become active
            while file.read(MIB):
                pass


def direct(path: Path, written: int, read: int) -> None:
    buffer = mmap.mmap(-1, MIB)  # page aligned, as O_DIRECT wants it
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    for number in range(written):
        os.pwrite(file, buffer, number * MIB)
    for number in range(read):
        os.preadv(file, [buffer], number * MIB)
    os.close(file)


def main() -> None:
    if sys.argv[1] == "--inside":
        inside(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "--init":
        init(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        record_container(sys.argv[1], Path(sys.argv[2]))


if __name__ == "__main__":
    main()
