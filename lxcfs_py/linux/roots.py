"""Where this process reads the machine's own /proc and /sys.

A command reads them by their paths. The daemon must not: somebody may mount its files over the machine's at any time,
and it would wait for its own answer. `take` gives it a procfs and a sysfs of its own, which stand in no mount
namespace, so that nobody can mount anything over them. Its working directory becomes the root of that procfs: a path
that starts there passes through no mount of others, and needs no descriptor in each call.

Put `roots.PROC` and `roots.SYS` before a path, at each use: they change when `take` is called.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Optional, Union

from lxcfs_py.linux import syscalls, threads

PROC = "/proc"
SYS = "/sys"

_descriptors: list[int] = []


def take() -> Optional[str]:
    """Use mounts that nobody can cover from now on. Where that cannot be, return why not, and use the paths."""
    global SYS
    try:
        sys = _own_sysfs()
        take_proc()
    except OSError as error:
        return (
            f"the machine's /proc and /sys are read by their paths ({error.strerror}): what is mounted over them holds "
            "this server up"
        )
    SYS = f"{PROC}/self/fd/{sys}"
    return None


def take_proc() -> None:
    """Use a procfs that nobody can cover from now on. OSError."""
    global PROC  # there is one working directory to each process, too
    os.fchdir(_mount("proc", "/proc"))
    PROC = "."


def pids() -> list[int]:
    """Return the processes of this pid namespace in order, as the machine's own /proc lists them. OSError."""
    return sorted(int(name) for name in os.listdir(PROC) if name.isdecimal())


def host_mounts(proc: str = "") -> set[str]:
    """Return the names of the first process's mount namespace, where that can be looked at, and of this one's.

    `proc` is a recorded system's /proc; "" for the machine's own.
    """
    names = set()
    for process in ("1", "self"):
        with contextlib.suppress(OSError):
            names.add(os.readlink(f"{proc or PROC}/{process}/ns/mnt"))
    return names


def is_hosts(pid: Union[int, str], proc: str = "") -> bool:
    """Tell whether a process is root's, in this one's pid namespace and in the host's mount namespace, or this one's.

    None but such a one may be asked for its arguments. They are in its memory, and where that is a container's, whoever
    asks may have to wait for what the container waits for. `proc` is as for `host_mounts`.
    """
    process = Path(proc or PROC, str(pid))
    try:
        same = os.readlink(process / "ns/pid") == os.readlink(f"{proc or PROC}/self/ns/pid")
        same = same and os.readlink(process / "ns/mnt") in host_mounts(proc)
        return same and process.stat().st_uid == 0
    except OSError:
        return False


def uncovered(mountpoint: str) -> str:
    """Return a path to what is mounted at `mountpoint` that nobody can cover, after `take`; else the same path."""
    if PROC == "/proc":
        return mountpoint
    with contextlib.suppress(OSError):
        return f"{PROC}/self/fd/{_held(syscalls.clone_mount(mountpoint))}"
    return mountpoint


def mounted(fstype: str) -> str:
    """Return a path to a mount of a kernel's filesystem that stands nowhere. OSError."""
    return f"{PROC}/self/fd/{_held(syscalls.mount_nowhere(fstype))}"


def descriptors() -> list[int]:
    """Return those by which paths of this module lead to mounts that stand nowhere."""
    return list(_descriptors)


def _mount(fstype: str, path: str) -> int:
    """Return a mount of a kernel's filesystem that stands nowhere; a clone of the one at `path` where none is given."""
    try:
        return _held(syscalls.mount_nowhere(fstype))
    except OSError:
        return _held(syscalls.clone_mount(path))


def _own_sysfs() -> int:
    """Return a sysfs that no other process has, where that can be.

    All in one network namespace have the same one, with its directories and the kernel's locks of these: a container in
    the machine's would have whoever lists one wait. So this is the sysfs of another namespace, which only a thread
    enters, and which nobody is in then.
    """
    opened: list[int] = []

    def mount() -> None:
        with contextlib.suppress(OSError):
            syscalls.unshare(syscalls.CLONE_NEWNET)
            opened.append(_mount("sysfs", "/sys"))

    threads.start(mount, name="sysfs").join()
    return opened[0] if opened else _mount("sysfs", "/sys")


def _held(descriptor: int) -> int:
    _descriptors.append(descriptor)
    return descriptor
