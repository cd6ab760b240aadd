#!/usr/bin/env python3
"""Record the kernel files that the views read, from a running machine, into a directory tree.

    record.py OUT [--pid PID ...]

OUT gets the same layout as the machine: OUT/proc/meminfo, OUT/sys/fs/cgroup/... Of the processes given, their /proc/PID
and, in each hierarchy, the directories of their cgroup, of all that is above it and of all that is below it.

Run as root. Standard library only and one file, so that it can be copied to a machine that has nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PROC = (
    "meminfo",
    "cpuinfo",
    "stat",
    "uptime",
    "loadavg",
    "diskstats",
    "swaps",
    "cgroups",
    "pressure/cpu",
    "pressure/io",
    "pressure/memory",
    "partitions",
    "vmstat",
    "sys/vm/overcommit_ratio",
)
PROC_PID = ("cgroup", "stat", "status")
SLABINFO_LINES = 22  # 2 of header, then some caches: enough to see the layout
# Controllers that some view reads, and v2's hierarchy; the directories of others are left out.
CONTROLLERS = {"", "blkio", "cpu", "cpuacct", "cpuset", "hugetlb", "memory", "pids"}
LARGEST = 64 << 10  # bytes; a cgroup file or a file of a CPU larger than this is left out

# These list tasks. Of a cgroup outside of the recorded ones they say nothing a view needs.
TASK_LISTS = {"cgroup.procs", "cgroup.threads", "tasks"}
# How CPU N is wired; of CPU 0 all small files are kept, of the others these, or a large machine is thousands of files.
PER_CPU = (
    "online",
    "topology/core_id",
    "topology/physical_package_id",
    "topology/core_siblings_list",
    "topology/thread_siblings_list",
)


def copy(path: Path, out: Path, largest: int | None = None) -> None:
    """Copy one file to its place under `out`. One that can't be read is left out: the kernel has some of these."""
    try:
        content = path.read_bytes()  # st_size is 0 in /proc and a page in /sys: what a read returns is what counts
    except OSError:
        return
    if largest is None or len(content) <= largest:
        write(path, out, content)


def write(path: Path, out: Path, content: bytes) -> None:
    target = out / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def regular_files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.iterdir()) if path.is_file() and not path.is_symlink())


def record_proc(out: Path) -> None:
    for name in PROC:
        copy(Path("/proc") / name, out)
    slabinfo = Path("/proc/slabinfo")
    if slabinfo.exists():
        write(slabinfo, out, b"".join(slabinfo.read_bytes().splitlines(keepends=True)[:SLABINFO_LINES]))
    write(Path("/proc/self/mountinfo"), out, "".join(kernel_mounts()).encode())


def kernel_mounts() -> list[str]:
    """The lines of mountinfo for / and for what is mounted on /proc and /sys; other mounts matter to no view."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines(keepends=True)
    return [line for line in lines if re.match(r"/(?:$|(?:proc|sys)(?:$|/))", line.split()[4])]


def record_huge_pages(out: Path) -> None:
    for path in Path("/sys/kernel/mm/hugepages").glob("*/*_hugepages"):
        copy(path, out)


def record_cpus(out: Path) -> None:
    cpus = Path("/sys/devices/system/cpu")
    for path in regular_files(cpus):
        copy(path, out, LARGEST)
    for cpu in sorted(cpus.glob("cpu[0-9]*")):
        if cpu.name == "cpu0":
            for directory in (cpu, cpu / "topology"):
                for path in regular_files(directory):
                    copy(path, out, LARGEST)
        for name in PER_CPU:
            copy(cpu / name, out, LARGEST)


def hierarchies() -> dict[str, Path]:
    """The mount point of each cgroup hierarchy, by the second field of its line in /proc/PID/cgroup ("" for v2)."""
    found: dict[str, Path] = {}
    for line in kernel_mounts():
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split()[:3]
        if kind == "cgroup2":
            found.setdefault("", Path(mount.split()[4]))
        elif kind == "cgroup":
            flags = {"rw", "ro", "none", "xattr", "clone_children", "noprefix"}
            controllers = {option for option in options.split(",") if not option.startswith("release_agent=")} - flags
            found.setdefault(",".join(sorted(controllers)), Path(mount.split()[4]))
    return found


def record_process(pid: int, out: Path) -> None:
    mounted = hierarchies()
    for name in PROC_PID:
        copy(Path(f"/proc/{pid}/{name}"), out)
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        names = sorted(controllers.split(","))
        root = mounted.get(",".join(names))
        if root is None or CONTROLLERS.isdisjoint(names):
            continue
        cgroup = root / path.lstrip("/")
        for directory in [cgroup, *cgroup.parents]:
            if directory == root.parent:
                break
            record_cgroup(directory, out, tasks=directory == cgroup != root)
        if cgroup != root:
            for directory in sorted(below for below in cgroup.rglob("*") if below.is_dir()):
                record_cgroup(directory, out, tasks=True)


def record_cgroup(directory: Path, out: Path, tasks: bool) -> None:
    for path in regular_files(directory):
        if tasks or path.name not in TASK_LISTS:
            copy(path, out, LARGEST)


def record(out: Path, pids: list[int]) -> None:
    """Record into `out`, which must not exist yet: a tree holds one moment of one machine."""
    out.mkdir(parents=True)
    record_proc(out)
    record_huge_pages(out)
    record_cpus(out)
    for pid in pids:
        record_process(pid, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the kernel files that the views read.")
    parser.add_argument("out", type=Path, help="the directory to make")
    parser.add_argument("--pid", type=int, action="append", default=[], help="a process whose cgroups to record")
    arguments = parser.parse_args()
    try:
        record(arguments.out, arguments.pid)
    except OSError as error:
        sys.exit(f"can't record into {arguments.out}: {error}")


if __name__ == "__main__":
    main()
