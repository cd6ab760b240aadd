"""The one table of what can be served.

Each other list of files is made from it or held against it by a test: the configuration's, the host's, what engines
may mount, the manual pages. docs/adding-a-file.md tells how a file is added.
"""

from __future__ import annotations

from typing import NamedTuple


class File(NamedTuple):
    """A file or a directory that containers can have."""

    name: str
    """Its path under the mount, and without the first slash in a container: "proc/meminfo"."""

    shows: str
    """What a container sees in it, for the user."""

    is_directory: bool = False
    """True for a tree of the host's."""

    masked: str = ""
    """A pattern for the directories in it that are empty for every container: engines mask them."""

    in_records: bool = False
    """True when the kernel renders it record by record, at most a page for each read(2)."""

    runc_mounts: bool = True
    """True when runc mounts over it: it has a list of the files below /proc over which it does."""

    lasting: int = 0
    """For how many seconds the kernel may keep a name in a directory: 0 where what is there depends on who looks."""

    everywhere: bool = True
    """False when a kernel may be built without it: a container where it is to be mounted does not start there."""


FILES = {
    file.name: file
    for file in (
        File("proc/cpuinfo", "the visible CPUs", in_records=True),
        File("proc/diskstats", "the host's disks with the container's own I/O", in_records=True),
        File("proc/loadavg", "the load of the container's own tasks, counted from its first read on"),
        File("proc/meminfo", "the smallest memory limit along the cgroup and its parents, what is left of it, usage"),
        File("proc/partitions", "the host's disks and partitions, as in diskstats", in_records=True, runc_mounts=False),
        File("proc/pressure/cpu", "the cgroup's pressure stall information; zeros on cgroup v1", runc_mounts=False),
        File("proc/pressure/io", "the same for I/O", runc_mounts=False),
        File("proc/pressure/memory", "the same for memory", runc_mounts=False),
        File("proc/slabinfo", "the header; the slabs on cgroup v1 before Linux 5.9, which counts them by cgroup"),
        File("proc/stat", "what the container used of the visible CPUs since it started"),
        File("proc/swaps", "the container's share of the host's swap", in_records=True),
        File("proc/uptime", "the age of the container's first process"),
        File(
            "proc/vmstat",
            "pages and events of the cgroup's memory, and its block I/O",
            in_records=True,
            runc_mounts=False,
        ),
        File(
            "sys/block", "the host's disks; their `stat` says what `/proc/diskstats` does", is_directory=True, lasting=1
        ),
        File("sys/class/block", "links to the disks and partitions in `/sys/block`", is_directory=True, lasting=1),
        File("sys/dev/block", "the same by the devices' numbers", is_directory=True, lasting=1),
        File(
            "sys/devices/system/cpu",
            "the host's directory with the visible CPUs only",
            is_directory=True,
            masked=r"cpu(\d+)/thermal_throttle",
        ),
        File(
            "sys/devices/system/memory",
            "as many blocks of memory as the container's limit is large",
            is_directory=True,
            everywhere=False,
        ),
        File(
            "sys/devices/system/node",
            "the NUMA nodes with the visible CPUs and the container's memory",
            is_directory=True,
            everywhere=False,
        ),
    )
}
"""By name, in the order in which lists show them."""

NAMES = tuple(FILES)
DIRECTORIES = tuple(name for name, file in FILES.items() if file.is_directory)


def named(given: str) -> str:
    """Return a file's name for what a user calls it: "meminfo" and "/proc/meminfo" are "proc/meminfo"."""
    name = given.strip("/")
    return f"proc/{name}" if f"proc/{name}" in FILES else name
