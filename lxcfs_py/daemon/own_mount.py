"""The mountpoint shows the mount that is served: where it shows something else, or nothing, it is mounted there again.

A mount that stands nowhere, a clone of the first, is held for that. So a session does not end with its last mount, but
when this process lets go of it, or when its connection is aborted (umount --force).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import time
from typing import Optional

from lxcfs_py.attach import mount_users
from lxcfs_py.daemon import degraded
from lxcfs_py.engine import session, store
from lxcfs_py.linux import roots, syscalls

log = logging.getLogger(__name__)

_PAUSES = (1.0, 60.0)
"""Seconds for which the mount stays away that was mounted again a short while before: the first, and the most."""

_DIRECTORY = "directory"
"""The name under which the directory of the mountpoint is kept."""

_QUIET = 10
"""A mount that has stayed for so many pauses starts with the first one again."""


class OwnMount:
    """What is served at a mountpoint. A selector can wait for it: it is readable when there is reason to look."""

    def __init__(self, kept: session.Session, clone: Optional[int] = None) -> None:
        """Hold a clone of the session's mount: this one, or that of a server before this one if it must be."""
        if not kept.device:
            kept.device = mount_users.device(kept.mountpoint) or ""
        self._session = kept
        self._path = kept.mountpoint
        self.clone = store.inherited().mount() if clone is None else clone
        """A descriptor of the clone; None where there is none."""

        if self.clone is not None and kept.device and _device(_opened(self.clone)) != kept.device:  # an older session's
            os.close(self.clone)
            self.clone = None

        self._above = self._take_directory()
        self._mounts = os.open(f"{roots.PROC}/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._changes = select.epoll()
        self._changes.register(self._mounts, select.EPOLLPRI)
        self._pause = 0.0
        self._mounted = time.monotonic()
        self.count = 0
        """How often it was mounted again."""

        self.last: Optional[float] = None
        """When that was, in seconds since the epoch."""

        if self.is_shown():
            self._hold()

    def _take_directory(self) -> Optional[int]:
        """Return the directory in which the first server mounted, whatever covers it now; None where it is not known.

        It is kept for the servers after this one.
        """
        kept = store.inherited()
        if _DIRECTORY in kept.others:
            return kept.others[_DIRECTORY]
        with contextlib.suppress(OSError):
            directory = os.open(os.path.dirname(self._path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with contextlib.suppress(OSError):  # a keeper that is gone
                kept.keep(_DIRECTORY, directory)
            return directory
        return None

    def is_left_below(self) -> bool:
        """Tell whether it stands below what covers the directory of its mountpoint, out of reach for all others."""
        if self._above is None:
            return False
        try:
            is_covered = not os.path.samestat(os.stat(self._above), os.stat(os.path.dirname(self._path)))
        except OSError:
            is_covered = True
        return is_covered and _device(self._below()) == self._session.device

    def take_away_below(self) -> None:
        """Unmount what is left there."""
        while self.is_left_below():
            syscalls.umount(self._below(), syscalls.MNT_DETACH)

    def _below(self) -> str:
        return f"{roots.PROC}/self/fd/{self._above}/{os.path.basename(self._path)}"

    def fileno(self) -> int:
        """Return what a selector waits for."""
        return self._changes.fileno()

    def is_shown(self) -> bool:
        """Tell whether the mountpoint shows it. No server is asked."""
        return _device(self._path) == self._session.device

    def trouble(self) -> str:
        """Say what is wrong with the mountpoint, "" where nothing is."""
        device = _device(self._path)
        if device == self._session.device:
            return ""
        is_empty = device is None or device == _device(os.path.dirname(self._path))
        return f"nothing is mounted at {self._path} any more" if is_empty else f"something covers {self._path}"

    def look(self) -> Optional[float]:
        """Mount it again where it is not shown. Return after how many seconds to look again, None for at a change."""
        self._changes.poll(0)
        trouble = self.trouble()
        if not trouble or session.is_over(self._session.fuse):
            degraded.leave("mountpoint")
            return None
        if self.clone is None:
            degraded.enter("mountpoint", f"{trouble}, and it cannot be mounted again: stop this server, and start it")
            return None
        stayed = time.monotonic() - self._mounted
        wait = self._pause - stayed
        if wait > 0:
            degraded.enter("mountpoint", f"{trouble}; it was taken away before, and is mounted again in a while")
            return wait
        self._pause = next_pause(self._pause, stayed)
        self.last, self._mounted = time.time(), time.monotonic()
        try:
            self._mount(self.clone)
        except OSError as error:
            degraded.enter("mountpoint", f"{trouble}, and it could not be mounted again: {error.strerror}")
            return self._pause
        self.count += 1
        log.warning("%s: mounted it there again", trouble)
        degraded.leave("mountpoint")
        return None

    def _mount(self, clone: int) -> None:
        """Let the clone stand at the mountpoint, over what is there, and hold another one."""
        with contextlib.suppress(FileExistsError):
            os.makedirs(self._path)
        place = os.open(self._path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.move_mount(clone, place)
        finally:
            os.close(place)
        self._hold()

    def _hold(self) -> None:
        """Hold a clone of what the mountpoint shows, in place of another. A keeper holds it, too."""
        try:
            clone = clone_of(self._session)
        except OSError as error:
            degraded.enter("clone", f"what is mounted at {self._path} stays away if it is taken away: {error.strerror}")
            return
        if clone is None:  # something else since an instant ago
            return
        if self.clone is not None:
            os.close(self.clone)
        self.clone = clone
        with contextlib.suppress(OSError):  # a keeper that is gone
            store.inherited().keep_mount(clone)


def clone_of(kept: session.Session) -> Optional[int]:
    """Return a clone of a session's mount, None where its mountpoint shows something else. OSError."""
    clone = syscalls.clone_mount(kept.mountpoint)
    if _device(_opened(clone)) == kept.device:
        return clone
    os.close(clone)
    return None


def next_pause(pause: float, stayed: float) -> float:
    """Return how long the mount stays away next time, after a pause, if it has stayed for so many seconds since."""
    first, most = _PAUSES
    return min(2 * pause, most) if pause and stayed <= _QUIET * pause else first


def _opened(descriptor: int) -> str:
    return f"{roots.PROC}/self/fd/{descriptor}"


def _device(path: str) -> Optional[str]:
    """Return what a path leads to as "MAJOR:MINOR"; None where there is no such path."""
    try:
        return syscalls.device(path)
    except OSError:
        return None
