"""The tree that is mounted: what is there for whom, and what it says."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Optional

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container, Containers
from lxcfs_py.files import NAMES
from lxcfs_py.linux.host import Host
from lxcfs_py.views import VIEWS, sys_cpu

log = logging.getLogger(__name__)

_SYS_CPU = f"/{sys_cpu.DIRECTORY}"

# What a view raises: the cgroup is gone, or its files hold what no kernel writes, such as numbers beyond all bounds.
_UNREADABLE = (OSError, ValueError, ArithmeticError)

_SILENT_SECONDS = 60


class Filesystem:
    """An engine's Tree, where each container finds its own figures."""

    def __init__(self, host: Host, containers: Containers, config: Config) -> None:
        """Serve what `config` enables; it may be replaced at any time."""
        self.config = config
        self.reads: Counter[str] = Counter()
        self.failures = 0
        self._silent_until = 0.0
        self._host = host
        self._containers = containers
        self._started = time.time()

    def open(self, caller: int, path: str, flags: int) -> None:
        """Allow to open a file for reading. EACCES for writing."""
        if flags & os.O_ACCMODE:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        if path.startswith(_SYS_CPU) and not int(self.getattr(caller, path)["st_mode"]) & stat.S_IROTH:
            # The kernel keeps it for root.
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def render(self, caller: int, path: str) -> bytes:
        """Return a file's text for the caller; the host's where that of its container cannot be computed."""
        name = path[1:]
        self.reads[name if name in VIEWS else sys_cpu.DIRECTORY] += 1
        container = self._containers.of(caller)
        if container is not None:
            try:
                return self._text(name, container)
            except _UNREADABLE:
                # Its cgroup may have gone away in the middle, because it was moved to another one: look again.
                self._containers.forget(caller)
                container = self._containers.of(caller)
        try:
            return self._text(name, container)
        except _UNREADABLE as error:
            if container is None:
                raise
            self._count_failure(caller, name, error)
            return self._text(name, None)

    def readdir(self, caller: int, path: str) -> list[str]:
        """Return the names in a directory that are there for the caller."""
        if _is_below(path, _SYS_CPU):
            self._check_cpu(caller, path)
            relative = path[len(_SYS_CPU) + 1 :]
            names = self._host.cpu_names(relative)
            if not relative:
                names = [name for name in names if self._sees_cpu(caller, f"{_SYS_CPU}/{name}")]
        else:
            names = sorted({_child(name, path) for name in self.config.files.enabled if _is_below(f"/{name}", path)})
        return [".", "..", *names]

    def readlink(self, caller: int, path: str) -> str:
        """Return where a link of the host's directory points to, always relative."""
        return self._host.cpu_link(path[len(_SYS_CPU) + 1 :])

    def getattr(self, caller: int, path: str) -> dict[str, float]:
        """Return a file's attributes; times in seconds since the epoch. ENOENT when there is no such file.

        A known file that is not enabled has them too: those who have it mounted go on using it.
        """
        if _is_below(path, _SYS_CPU) and path != _SYS_CPU:
            self._check_cpu(caller, path)
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

    def visible(self, caller: int, path: str) -> bool:
        """Tell whether a path is there for the caller: enabled, and no CPU that the caller does not see."""
        if path == _SYS_CPU or not _is_below(path, _SYS_CPU):
            return any(_is_below(f"/{name}", path) for name in self.config.files.enabled)
        # Below a directory that is no longer enabled is only who has it mounted, and goes on.
        return self._sees_cpu(caller, path)

    def hidden(self) -> set[str]:
        """Return the paths that there would be if more were enabled."""
        return _with_parents(NAMES) - _with_parents(self.config.files.enabled)

    def statfs(self) -> dict[str, int]:
        """Return the figures of an empty filesystem."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def access(self, caller: int, path: str, mode: int) -> None:
        """Allow reading and searching. EACCES for writing."""
        if mode & os.W_OK:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def paths(self) -> Iterator[str]:
        """Yield every path that there may be: of files that are not enabled and CPUs that are hidden, too."""
        yield from _with_parents(NAMES)
        directories = deque([""])
        while directories:
            directory = directories.popleft()
            try:
                names = self._host.cpu_names(directory)
            except OSError:  # it is none, or is gone
                continue
            for name in names:
                directories.append(f"{directory}/{name}" if directory else name)
                yield f"{_SYS_CPU}/{directories[-1]}"

    def _sees_cpu(self, caller: int, path: str) -> bool:
        """Tell whether the caller sees the CPU that a path is of, if it is of one."""
        relative = path[len(_SYS_CPU) + 1 :]
        if not relative.startswith("cpu") or sys_cpu.DIRECTORY not in self.config.files.enabled:
            return True
        try:
            return sys_cpu.visible(relative, self._containers.of(caller), self._host, self.config)
        except _UNREADABLE:  # then what is read is the host's too
            return True

    def _check_cpu(self, caller: int, path: str) -> None:
        if path.startswith(_SYS_CPU) and not self._sees_cpu(caller, path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)

    def _count_failure(self, caller: int, name: str, error: Exception) -> None:
        """Count it, and log it unless another was logged within the last minute: a container must not fill the log."""
        self.failures += 1
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENT_SECONDS
            log.warning("%s of process %d cannot be computed, it sees the host's: %s", name, caller, error)

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
