"""The mountpoint: who sits there, what a dead server left there, and what must not be read through it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import fork, mount_table, regular_file, roots, runtime_directory, serving, syscalls, threads

log = logging.getLogger(__name__)

FSTYPE = "fuse.lxcfs"

PATIENCE = 5.0
"""Seconds for a server on a busy machine to answer."""

MACHINES_OWN = ("/proc", "/sys", "/dev", runtime_directory.PATH)
"""Directories in which nothing is mounted: this program and others need what is there."""

PATH_MAX = 4095
NAME_MAX = 255
"""Bytes that a path, and a name in it, may have: linux/limits.h, which counts the zero that ends a path."""

_MAX_LINKS = 40  # as many as the kernel follows


class MountError(LxcfsError):
    """Why nothing can be mounted: one sentence for the operator."""


def resolve(path: str) -> str:
    """Return a mountpoint as the kernel lists it among the mounts: absolute and without symbolic links. MountError.

    The mountpoint itself is not looked at when something is mounted there: while nobody serves a kept mount, who asks
    for its attributes waits, and would wait for itself. Nor is it while a server has it for its mountpoint, where
    somebody may have put a link since.
    """
    if not path:
        raise MountError("an empty path is no mountpoint: name a directory")
    whole = os.fsencode(path)
    if len(whole) > PATH_MAX or max(map(len, whole.split(b"/"))) > NAME_MAX:
        raise MountError(
            f"{path[:80]}... is no path: allowed are up to {PATH_MAX} bytes, {NAME_MAX} for each name in it"
        )
    found = _follow(
        os.path.abspath(path), lambda path: is_mounted(path) or os.path.exists(runtime_directory.path_of(path))
    )
    if not found.strip("/"):
        raise MountError(f"{path} is the root directory: name a directory other than that")
    for directory in MACHINES_OWN:
        # What a version mounted there that did not know this goes on, and can be unmounted.
        if f"{found}/".startswith(f"{directory}/") and not is_mounted(found):
            raise MountError(f"{path} is in {directory}, where nothing may be covered: name a directory elsewhere")
    return found


def _follow(path: str, is_wanted: Callable[[str], bool]) -> str:
    for _ in range(_MAX_LINKS):
        directory, name = os.path.split(path)
        path = os.path.join(os.path.realpath(directory), name)
        if is_wanted(path) or not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return path


def places(mountpoint: str) -> list[str]:
    """Return where a server with this mountpoint may have mounted: there, or where a link leads that took its place."""
    return list(dict.fromkeys((mountpoint, _follow(mountpoint, is_mounted))))


def prepare(mountpoint: str) -> None:
    """Make the directory, and clear away what a dead server left.

    MountError when another one sits there, or anything that a mount would hide.
    """
    while is_mounted(mountpoint):
        told = _told(mountpoint, PATIENCE)
        if told is None:
            silent = f"{mountpoint} is served by {serving.named(mountpoint)}, which does not answer: stop that first"
            raise MountError(silent, serving.cure(mountpoint))
        if told != errno.ENOTCONN:
            raise MountError(f"{mountpoint} is served already, by {serving.named(mountpoint)}; stop that first")
        unmount(mountpoint)
        log.info("cleared away the mount that a dead server had left at %s", mountpoint)
    try:
        Path(mountpoint).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        blocked = regular_file.not_a_directory(mountpoint)
        if blocked:
            allowed = "name an empty directory, or one that does not exist yet"
            raise MountError(f"{blocked} is not a directory: {allowed}") from None
        raise MountError(f"the mountpoint {mountpoint} cannot be made: {error.strerror}") from None
    try:
        hidden = _file_below(mountpoint)
    except OSError as error:
        raise MountError(f"the mountpoint {mountpoint} cannot be read: {error.filename}: {error.strerror}") from None
    if hidden:
        raise MountError(f"a mount at {mountpoint} would hide what is there, such as {hidden}: name an empty directory")


def _file_below(directory: str) -> Optional[str]:
    """Return something below a directory that a mount would hide, None where there is nothing. OSError.

    Empty directories and files are nothing: container engines and kubelets make them for files that were missing.
    """
    directories = [directory]
    for each in directories:  # it grows on the way
        with os.scandir(each) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                elif not entry.is_file(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_size:
                    return entry.path
    return None


def is_mounted(mountpoint: str) -> bool:
    """Tell whether the views are mounted there, by this program or by the C program, dead or alive."""
    return any(mount.mountpoint == mountpoint and mount.fstype == FSTYPE for mount in mount_table.read())


def is_own(mountpoint: str) -> bool:
    """Tell whether all such mounts there are this user's, which fusermount lets its user take away."""
    mine = f"user_id={os.geteuid()}"
    there = [mount for mount in mount_table.read() if mount.mountpoint == mountpoint and mount.fstype == FSTYPE]
    return all(mine in mount.options.split(",") for mount in there)


def is_dead(path: str) -> bool:
    """Tell whether a path is on a FUSE mount whose server has ended. Where that stands still, this waits for it."""
    try:
        os.statvfs(path)  # the attributes that stat gives may be the kernel's own, of before
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def unmount(mountpoint: str) -> None:
    """Take a mount away; where this process may not, fusermount may. MountError when that fails too."""
    try:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH)
    except PermissionError:
        if is_mounted(mountpoint):  # which the kernel looks at only after that
            _unmount_by_fusermount(mountpoint)
    except OSError as error:
        if error.errno != errno.EINVAL:  # nothing is mounted there any more
            raise MountError(f"{mountpoint} cannot be unmounted: {error.strerror}") from None
    runtime_directory.forget(mountpoint)


def _unmount_by_fusermount(mountpoint: str) -> None:
    fusermount = shutil.which("fusermount") or shutil.which("fusermount3") or "fusermount"
    done = subprocess.run([fusermount, "-u", "-z", "--", mountpoint], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MountError(f"{mountpoint} cannot be unmounted: {done.stderr.strip()}")


def unmount_all(mountpoint: str) -> None:
    """Take away what is mounted there, down to the lowest such mount. MountError."""
    try:
        mounts = list(mount_table.read())
        found = places(mountpoint)
    except OSError:  # no descriptor is to be had: this takes none
        unmount(mountpoint)
        return
    for place in found:
        there = [mount.fstype for mount in mounts if mount.mountpoint == place]
        if FSTYPE in there:
            for _ in there[there.index(FSTYPE) :]:
                unmount(place)


def end(mountpoint: str) -> None:
    """Take a mount away and end it for all who have files of it, whoever serves or keeps it. OSError."""
    syscalls.umount(mountpoint, syscalls.MNT_FORCE | syscalls.MNT_DETACH)
    runtime_directory.forget(mountpoint)


def machine_roots(mountpoint: str) -> tuple[str, str]:
    """Return where the machine's own /proc and /sys are read: never through this mount, nor through a dead server's.

    Files of another server that lives are left where they cover the machine's: within a container, they are what the
    machine is.
    """
    mounts = list(mount_table.read())
    own = {mount.device for mount in mounts if mount.mountpoint == mountpoint}
    covering = {
        mount.device: mount.mountpoint
        for mount in mounts
        if mount.fstype == FSTYPE and mount.mountpoint.startswith(("/proc/", "/sys/")) and mount.device not in own
    }
    return ("/proc", "/sys") if any(map(answers, covering.values())) else (roots.PROC, roots.SYS)


def answers(path: str, seconds: float = 1.0) -> bool:
    """Tell whether the server of what is mounted at a path answers within so many seconds."""
    return _told(path, seconds) == 0


def may_answer(path: str) -> bool:
    """Tell whether what is mounted at a path has a server, though it be one that is silent for a second."""
    return _told(path, 1.0) != errno.ENOTCONN


def _told(path: str, seconds: float) -> Optional[int]:
    """Return what who asks for a path's filesystem is told: 0, or an error's number; None while its server is silent.

    A process of its own asks: who asks a server that does not answer can be ended only by being killed.
    """
    child = fork.start(partial(_ask, path))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    with contextlib.suppress(OSError):  # where no thread can be had, it is reaped with this process
        threads.start(os.waitpid, child, 0, name="reap")  # it may take its time
    return None


def _ask(path: str) -> int:
    try:
        os.statvfs(path)  # the attributes that stat gives may be the kernel's own, of before
    except OSError as error:
        return error.errno or errno.EIO
    return 0
