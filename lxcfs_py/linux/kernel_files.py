"""Files of the kernel (proc, sysfs, cgroup), kept open and read anew with one pread each.

Opening a file costs more than reading it: 12 us for open, read and close from Python, 1 us for pread alone. So the
descriptors of a directory stay open for as long as its object lives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from typing import Callable, TypeVar

from lxcfs_py.linux import aside

_CHUNK = 16384
_RETRY_MISSING_MS = 1000
_KNOWN_SECONDS = 1.0

# A sysfs file is a page at the most, but for a few lists.
_SYSFS_BYTES = 1 << 16
_PAGE = os.sysconf("SC_PAGE_SIZE")

_noting = threading.Lock()
_making_room = threading.Lock()
_spare: list[int] = []

_Read = TypeVar("_Read")


def _spare_two(fd: int) -> None:
    """Have two descriptors to spare, of whatever; fewer where others are quicker."""
    with contextlib.suppress(OSError):
        while len(_spare) < 2:
            _spare.append(os.dup(fd))


class Group:
    """Directories of somebody's whose files are looked for together when the first of them is opened.

    Whoever has been asked for a name keeps nobody waiting who opens it soon after that: the kernel knows it by then.
    """

    __slots__ = ("_found", "_names", "_paths", "_until", "whose")

    def __init__(self, whose: str, names: Sequence[str]) -> None:
        """Take the names of files that are mostly wanted, "." among them."""
        self.whose = whose
        self._names = names
        self._paths: list[str] = []
        self._found: dict[str, list[int]] | None = None  # the places of names, as long as that holds
        self._until = 0.0

    def add(self, path: str) -> None:
        """Look for files in one more directory, too."""
        self._paths.append(path)

    def has(self, path: str, name: str) -> bool:
        """Tell whether a file may be opened without waiting. FileNotFoundError where it is not there. SilentError."""
        if not aside.is_used():
            return False
        if self._found is None:
            found = aside.look(self.whose, present, self._paths, self._names)
            self._until = time.monotonic() + _KNOWN_SECONDS
            self._found = dict(zip(self._paths, found))
        elif self._found and time.monotonic() > self._until:
            self._found, self._paths = {}, []
        here = self._found.get(path)
        if here is None or name not in self._names:
            return False
        if self._names.index(name) in here:
            return True
        if self._names.index(".") in here:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{path}/{name}")
        raise aside.GoneError(f"{path}/{name}")


def present(paths: Sequence[str], names: Sequence[str]) -> list[list[int]]:
    """Return for each directory the places of those names that are there."""
    return [[place for place, name in enumerate(names) if os.path.exists(f"{path}/{name}")] for path in paths]


class KernelDirectory:
    """A directory whose files are opened at their first read and stay open.

    A file that does not exist is looked for again after a second at the earliest: cgroup controllers come and go.
    """

    __slots__ = ("__weakref__", "_above", "_fds", "below", "group", "whose")

    def __init__(self, path: str, below: str = "", whose: str = "") -> None:
        """Take the path, in two strings where others have one of them too: there are many directories.

        Where it is a container's, who may keep waiting whoever opens files there, `whose` is the container.
        """
        self._above = path
        self.below = below
        self.whose = whose
        self.group: Group | None = None
        # name -> descriptor; a negative number says "missing, look again at that millisecond of the monotonic clock"
        self._fds: dict[str, int] = {}

    def __del__(self) -> None:
        for fd in self._fds.values():
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    @property
    def path(self) -> str:
        """The directory's path."""
        return self._above + self.below

    def read(self, name: str) -> bytes:
        """Return a file's text as of now. OSError when it is not there, or its cgroup is gone (ENODEV)."""
        fd = self._fds.get(name, -1)
        if fd < 0:
            fd = self._open(name)
        try:
            text = os.pread(fd, _CHUNK, 0)
        except OSError as error:
            # ENODEV: the cgroup was removed; another one may stand at the same path now. The new file takes the
            # old descriptor's number, so that a reader in another thread never meets a closed one.
            if error.errno != errno.ENODEV:
                raise
            self._reopen(name, fd)
            text = os.pread(fd, _CHUNK, 0)
        return text if len(text) < _CHUNK else self.read_records(name)

    def read_records(self, name: str, enough: int = 1 << 30) -> bytes:
        """Return the text, or `enough` bytes of it, of a file that the kernel renders record by record.

        Such are /proc/cpuinfo, diskstats and vmstat: one read gives a page of them at most, and costs what it gives.
        """
        fd = self._fds.get(name, -1)
        if fd < 0:
            fd = self._open(name)
        parts = []
        offset = 0
        while offset < enough:
            part = os.pread(fd, min(enough - offset, _CHUNK), offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def get(self, name: str) -> bytes | None:
        """As `read`, but None for a file that is not there while its directory is."""
        fd = self._fds.get(name)
        if fd is not None and fd < 0 and time.monotonic() * 1000 < -fd:
            return None
        try:
            return self.read(name)
        except aside.GoneError:  # a cgroup that is gone is not one without limits
            raise
        except FileNotFoundError:
            return None

    def fd(self) -> int:
        """Return a descriptor of the directory itself, which stays open too. OSError when it is gone."""
        fd = self._fds.get(".", -1)
        return fd if fd >= 0 else self._open(".")

    def _open(self, name: str) -> int:
        try:
            fresh = self._opened(name)
        except aside.GoneError:
            raise
        except FileNotFoundError:
            with _noting:
                if self._fds.get(name, -1) < 0:
                    self._fds[name] = -int(time.monotonic() * 1000) - _RETRY_MISSING_MS
            raise
        with _noting:
            fd = self._fds.get(name, -1)
            if fd < 0:
                self._fds[name] = fresh
                return fresh
        os.close(fresh)  # another thread was quicker
        return fd

    def _reopen(self, name: str, fd: int) -> None:
        fresh = self._opened(name)
        os.dup2(fresh, fd, inheritable=False)
        os.close(fresh)

    def _opened(self, name: str) -> int:
        """Open a file, under no lock. FileNotFoundError; GoneError."""
        if self.group is not None and self.group.has(self.path, name):
            return os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        return aside.open_file(self.whose, self.path, name)


class HeldDirectory:
    """A directory that is open from the start: what is mounted over it later is never seen.

    Paths are relative to it, "" for itself. Every method raises OSError when nothing is there, as all do where the
    kernel has no such directory. None follows a symbolic link.

    Where the process may open no more, a read makes room for itself: two descriptors are spare, of which os.listdir()
    takes the second.
    """

    __slots__ = ("_fd",)

    def __init__(self, path: str) -> None:
        self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            self._fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _spare_two(self._fd)

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def exists(self) -> bool:
        """True when there was one."""
        return self._fd >= 0

    def text(self, path: str) -> bytes:
        """Return the text of a file."""
        return self._with_room(lambda: self._text(path))

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, in order."""
        return self._with_room(lambda: self._names(path))

    def mode(self, path: str) -> int:
        """Return the type and mode of what is at a path."""
        return os.lstat(path or ".", dir_fd=self._directory()).st_mode

    def link(self, path: str) -> str:
        """Return the target of a symbolic link."""
        return os.readlink(path, dir_fd=self._directory())

    def _with_room(self, read: Callable[[], _Read]) -> _Read:
        try:
            return read()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        with _making_room:
            while _spare:
                os.close(_spare.pop())
            try:
                return read()
            finally:
                _spare_two(self._fd)

    def _text(self, path: str) -> bytes:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._directory())
        try:
            text = part = os.read(fd, _SYSFS_BYTES)
            while len(part) == _PAGE and len(text) < _SYSFS_BYTES:  # of such a list, one read gives a page at most
                part = os.read(fd, _SYSFS_BYTES - len(text))
                text += part
            return text
        finally:
            os.close(fd)

    def _names(self, path: str) -> list[str]:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
        fd = os.open(path or ".", flags, dir_fd=self._directory())
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def _directory(self) -> int:
        if self._fd < 0:  # a negative number would stand for the working directory, or for none at all
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self._fd
