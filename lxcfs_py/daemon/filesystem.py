"""The tree that is mounted, and its open files: fusepy's Operations, for whichever engine runs them."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, Callable, Optional, Protocol

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container, Containers
from lxcfs_py.files import NAMES
from lxcfs_py.linux.host import Host
from lxcfs_py.views import VIEWS, sys_cpu

log = logging.getLogger(__name__)

_SYS_CPU = f"/{sys_cpu.DIRECTORY}"

# What a view raises: the cgroup is gone, or its files hold what no kernel writes, such as numbers beyond all bounds.
_UNREADABLE = (OSError, ValueError, ArithmeticError)

_MAX_TEXT_BYTES = 64 << 20
"""What the texts of open files may take together: a container can open as many files as it likes."""


_SILENT_SECONDS = 60


class Texts(Protocol):
    """The texts of open files by handle: what was read from offset 0 on, so that a later offset continues it."""

    def get(self, handle: int) -> Optional[bytes]:
        """Return the text, None for an unknown handle."""

    def put(self, handle: int, text: bytes) -> None:
        """Keep a text."""

    def drop(self, handle: int) -> None:
        """Forget a text, if there is one."""


class TextsInMemory:
    """Texts kept as long as the process lives; the oldest go when they take too much room."""

    def __init__(self) -> None:
        self._texts: dict[int, bytes] = {}
        self._size = 0
        self._lock = threading.Lock()

    def get(self, handle: int) -> Optional[bytes]:
        return self._texts.get(handle)

    def put(self, handle: int, text: bytes) -> None:
        with self._lock:
            self._size += len(text) - len(self._texts.pop(handle, b""))
            self._texts[handle] = text
            while self._size > _MAX_TEXT_BYTES:
                self._size -= len(self._texts.pop(next(iter(self._texts))))

    def drop(self, handle: int) -> None:
        with self._lock:
            self._size -= len(self._texts.pop(handle, b""))


class Filesystem:
    """The operations. Paths are as fusepy gives them: absolute within the mount, without "." and ".."."""

    def __init__(
        self,
        host: Host,
        containers: Containers,
        config: Config,
        caller: Callable[[], int],
        texts: Optional[Texts] = None,
    ) -> None:
        """Serve what `config` enables; `caller` gives the pid of the process whose request is at hand."""
        self.config = config
        self.reads: Counter[str] = Counter()
        self.failures = 0
        self._silent_until = 0.0
        self._host = host
        self._containers = containers
        self._caller = caller
        self._texts = texts or TextsInMemory()
        # Handles are unique over all processes that serve this mount one after the other.
        self._handles = itertools.count(time.time_ns())
        self._started = time.time()

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Run one operation by name, as fusepy does."""
        method = getattr(self, operation, None)
        if method is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        return method(*arguments)

    def open(self, path: str, flags: int) -> int:
        """Return a new handle. EACCES for writing."""
        if flags & os.O_ACCMODE:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        if path.startswith(_SYS_CPU) and not int(self.getattr(path)["st_mode"]) & stat.S_IROTH:
            # The kernel keeps it for root.
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return next(self._handles)

    def read(self, path: str, size: int, offset: int, handle: int) -> bytes:
        """Return a part of the text, which is rendered afresh whenever a reader starts at offset 0."""
        text = self._texts.get(handle) if offset else None
        if text is None:
            text = self._render(path)
            self._texts.put(handle, text)
        return text[offset : offset + size]

    def release(self, path: str, handle: int) -> int:
        """Close a file."""
        self._texts.drop(handle)
        return 0

    def readdir(self, path: str, handle: int) -> list[str]:
        """Return the names in a directory that are there for the caller."""
        if _is_below(path, _SYS_CPU):
            self._check_cpu(path)
            relative = path[len(_SYS_CPU) + 1 :]
            names = [
                name for name in self._host.cpu_names(relative) if relative or self._sees_cpu(f"{_SYS_CPU}/{name}")
            ]
        else:
            names = sorted({_child(name, path) for name in self.config.files.enabled if _is_below(f"/{name}", path)})
        return [".", "..", *names]

    def readlink(self, path: str) -> str:
        """Return where a link of the host's directory points to, always relative."""
        return self._host.cpu_link(path[len(_SYS_CPU) + 1 :])

    def getattr(self, path: str, handle: Optional[int] = None) -> dict[str, float]:
        """Return a file's attributes; times in seconds since the epoch. ENOENT when there is no such file.

        A known file that is not enabled has them too: those who have it mounted go on using it.
        """
        if _is_below(path, _SYS_CPU) and path != _SYS_CPU:
            self._check_cpu(path)
            mode = self._host.cpu_mode(path[len(_SYS_CPU) + 1 :]) & ~0o222
        elif path[1:] in VIEWS:
            mode = stat.S_IFREG | 0o444
        elif any(_is_below(f"/{name}", path) for name in NAMES):
            mode = stat.S_IFDIR | 0o555
        else:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        links = 2 if stat.S_ISDIR(mode) else 1
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._started)
        return {"st_mode": mode, "st_nlink": links, "st_size": 0, "st_uid": 0, "st_gid": 0, **times}

    def visible(self, path: str) -> bool:
        """Tell whether a path is there for the caller: enabled, and no CPU that the caller does not see."""
        if path == _SYS_CPU or not _is_below(path, _SYS_CPU):
            return any(_is_below(f"/{name}", path) for name in self.config.files.enabled)
        # Below a directory that is no longer enabled is only who has it mounted, and goes on.
        return self._sees_cpu(path)

    def hidden(self) -> set[str]:
        """Return the paths that there would be if more were enabled."""
        return _with_parents(NAMES) - _with_parents(self.config.files.enabled)

    def statfs(self, path: str) -> dict[str, int]:
        """Return the figures of an empty filesystem."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def access(self, path: str, mode: int) -> int:
        """Allow reading and searching. EACCES for writing."""
        if mode & os.W_OK:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return 0

    def opendir(self, path: str) -> int:
        """Open a directory; nothing is kept for it."""
        return 0

    def releasedir(self, path: str, handle: int) -> int:
        """Close a directory."""
        return 0

    def _sees_cpu(self, path: str) -> bool:
        """Tell whether the caller sees the CPU that a path is of, if it is of one."""
        relative = path[len(_SYS_CPU) + 1 :]
        if not relative.startswith("cpu") or sys_cpu.DIRECTORY not in self.config.files.enabled:
            return True
        try:
            return sys_cpu.visible(relative, self._container(), self._host, self.config)
        except _UNREADABLE:  # then what is read is the host's too
            return True

    def _check_cpu(self, path: str) -> None:
        if path.startswith(_SYS_CPU) and not self._sees_cpu(path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _container(self) -> Optional[Container]:
        return self._containers.of(self._caller())

    def _render(self, path: str) -> bytes:
        name = path[1:]
        self.reads[name if name in VIEWS else sys_cpu.DIRECTORY] += 1
        container = self._container()
        if container is not None:
            try:
                return self._text(name, container)
            except _UNREADABLE:
                # Its cgroup may have gone away in the middle, because it was moved to another one: look again.
                self._containers.forget(self._caller())
                container = self._container()
        try:
            return self._text(name, container)
        except _UNREADABLE as error:
            if container is None:
                raise
            self._count_failure(name, error)
            return self._text(name, None)

    def _count_failure(self, name: str, error: Exception) -> None:
        """Count it, and log it unless another was logged within the last minute: a container must not fill the log."""
        self.failures += 1
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENT_SECONDS
            log.warning("%s of process %d cannot be computed, it sees the host's: %s", name, self._caller(), error)

    def _text(self, name: str, container: Optional[Container]) -> bytes:
        view = VIEWS.get(name)
        if view is None:
            container = container if sys_cpu.DIRECTORY in self.config.files.enabled else None
            return sys_cpu.render(name[len(sys_cpu.DIRECTORY) + 1 :], container, self._host, self.config)
        if container is None or name not in self.config.files.enabled:
            return self._host.text(name)
        return view(container, self._host, self.config)


def _is_below(path: str, directory: str) -> bool:
    """Tell whether a path is a directory itself or something in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _with_parents(names: Iterable[str]) -> set[str]:
    """Return the paths of names, and of the directories that they stand in."""
    return {f"/{name[:end]}" for name in names for end in (*(i for i, c in enumerate(name) if c == "/"), len(name))}


def _child(name: str, directory: str) -> str:
    """Return the part of a name that stands in a directory."""
    return f"/{name}"[len(directory.rstrip("/")) + 1 :].partition("/")[0]
