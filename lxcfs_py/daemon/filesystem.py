"""The tree that is mounted: what is there for whom, and what it says."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Callable, Optional, TypeVar

from lxcfs_py.config import Config
from lxcfs_py.container import processes
from lxcfs_py.container.containers import Container, Containers
from lxcfs_py.daemon import policies
from lxcfs_py.files import NAMES
from lxcfs_py.linux import aside, capabilities, personality, psi, roots
from lxcfs_py.linux.host import Host
from lxcfs_py.views import TREES, VIEWS
from lxcfs_py.views.host_tree import HostTree, Sight

log = logging.getLogger(__name__)

_NOBODY = 0xFFFF_FFFF
"""The owner of all: the one user that no process can be. A file's owner could take a lease of it (fcntl(2)), for whose
end everybody else who opens the file, in any container, would have to wait. stat(2) shows the overflow user."""

_NEARLY_NOBODY = 0xFFFF_FFFE
"""The owner of what may be written, which the kernel allows only where some process could be the owner."""

# What a view raises: the cgroup is gone, or its files hold what no kernel writes, such as numbers beyond all bounds.
_UNREADABLE = (OSError, ValueError, ArithmeticError)

_MAX_LINKS = 40
"""On the way to one file, as in the kernel."""

_SILENT_SECONDS = 60

_OF_TIME = ("proc/stat", "proc/uptime")
"""What depends on the time namespace of who reads it."""

_MAX_PATHS = 100_000
"""Of one tree of the host's, that are listed: large machines have as many in some."""

_Result = TypeVar("_Result")

_TREES_ABOVE = f"{os.path.commonpath([f'/{name}' for name in TREES])}/"

_MACHINE = "/"
"""In a trigger, where a cgroup's path stands."""


class Filesystem:
    """An engine's Tree, where each container finds its own figures."""

    def __init__(self, host: Host, containers: Containers, config: Config) -> None:
        """Serve what `config` enables; it may be replaced at any time."""
        self.config = config
        self.shows_machine = False
        """True to show every container the machine's figures."""

        self.reads: Counter[str] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()  # by file and reason
        self._silent_until = 0.0
        self.host = host
        self._containers = containers
        self._started = time.time()

    def open(self, caller: int, path: str, flags: int) -> None:
        """Allow to open a file for reading, and for writing one that takes triggers. EACCES."""
        if _tree_of(path) and not int(self.getattr(caller, path)["st_mode"]) & stat.S_IROTH:
            # The kernel keeps it for root.
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        if flags & os.O_ACCMODE and not _takes_triggers(path):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def render(self, caller: int, path: str) -> bytes:
        """Return a file's text for the caller; the host's where that of its container cannot be computed."""
        inside = _tree_of(path)
        if inside:
            return self._render_in(caller, *inside)
        name = path[1:]
        self.reads[name] += 1
        view, host = VIEWS[name], self.host
        if name == "proc/cpuinfo" and personality.SHOWS and personality.is_32_bit(caller):
            host = host.as_32_bit

        def compute(container: Container, config: Config) -> bytes:
            if name not in config.files.enabled:
                return host.text(name)
            return view(container, self.host_of(caller) if name in _OF_TIME else host, config)

        return self.computed(caller, name, compute, lambda: host.text(name))

    def host_of(self, caller: int) -> Host:
        """Return the machine with the clock since boot of a caller whose container has just been looked up."""
        return self.host.with_clock(self._containers.boottime_offset(caller))

    def trigger(self, caller: int, path: str, text: bytes) -> str:
        """Return a trigger that the caller has written, with the cgroup that it is for. EINVAL where it is none."""
        terms = psi.check(text, capabilities.has(caller, capabilities.SYS_RESOURCE))
        container, config = self._configured(caller)
        if path[1:] not in config.files.enabled:
            container = None
        return _trigger(container, os.path.basename(path), terms)

    def arm(self, trigger: str, owner: str) -> Optional[psi.Trigger]:
        """Return what fires as an owner's trigger says, None where that is never. OSError."""
        cgroup, resource, terms, *_ = json.loads(trigger)
        if not cgroup:
            return None
        if cgroup == _MACHINE:
            return psi.Trigger(aside.open_file("", f"{roots.PROC}/pressure", resource), terms)
        directory, whose = self._containers.layout.unified(cgroup), processes.without(owner, processes.INIT_SCOPE)
        return psi.Trigger(aside.open_file(whose, directory, f"{resource}.pressure"), terms)

    def renewed(self, trigger: str) -> str:
        """Return a trigger for the cgroup in which the container's init is by now."""
        _, resource, terms, *whose = json.loads(trigger)
        container = self._containers.named(*whose) if whose else None
        return _trigger(container, resource, terms) if container else trigger

    def _render_in(self, caller: int, tree: HostTree, path: str) -> bytes:
        self.reads[tree.name] += 1
        text = tree.text(self.host, path)  # an error is the kernel's own, such as that of a CPU that is offline
        view = tree.view(path)
        if view is None:
            return text
        return self.computed(
            caller,
            f"{tree.name}/{path}",
            lambda container, config: (
                view(Sight(container, self.host, config), path, text) if tree.name in config.files.enabled else text
            ),
            lambda: text,
        )

    def computed(
        self,
        caller: int,
        what: str,
        compute: Callable[[Container, Config], _Result],
        machines: Callable[[], _Result],
    ) -> _Result:
        """Return what is computed for the caller's container, or the machine's."""
        container = self._container(caller)
        if container is None:
            return machines()
        container.reads += 1
        try:
            return compute(container, policies.applied(container, self.config))
        except _UNREADABLE as error:
            # Its cgroup may have gone away in the middle, because it was moved to another one: look again.
            self._containers.forget(caller, error)
            container = self._container(caller)
        if container is None:
            return machines()
        try:
            return compute(container, policies.applied(container, self.config))
        except _UNREADABLE as error:
            self._count_failure(caller, what, error)
            return machines()

    def readdir(self, caller: int, path: str) -> list[str]:
        """Return the names in a directory that are there for the caller."""
        inside = _tree_of(path)
        if not inside:
            return [
                ".",
                "..",
                *sorted({_child(name, path) for name in self._served() if _is_below(f"/{name}", path)}),
            ]
        tree, directory = inside
        sight = self._sight(caller, tree)
        self._check(tree, directory, sight)
        shown = (name for name in tree.names(self.host, directory) if not name.startswith("."))
        return [".", "..", *(name for name in shown if self._sees(tree, os.path.join(directory, name), sight))]

    def readlink(self, caller: int, path: str) -> str:
        """Return where a link points to, always relative."""
        inside = _tree_of(path)
        if not inside:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        tree, below = inside
        self._check(tree, below, self._sight(caller, tree))
        return tree.link(self.host, below)

    def getattr(self, caller: int, path: str) -> dict[str, float]:
        """Return a file's attributes; times in seconds since the epoch. ENOENT when there is no such file.

        A known file that is not enabled has them too: those who have it mounted go on using it, and a container that is
        defined with it could not start otherwise.
        """
        inside = _tree_of(path)
        if inside and inside[1]:
            tree, below = inside
            self._check(tree, below, self._sight(caller, tree))
        return self.attributes(path)

    def follow(self, caller: int, path: str) -> str:
        """Return the path of the file that a path leads to for the caller, by links and dots. OSError if to none."""
        left, at, links = path.split("/")[::-1], "", 0
        while left:
            name = left.pop()
            if name in ("", "."):
                continue
            if name == "..":
                at = at.rpartition("/")[0]
                continue
            at = f"{at}/{name}"
            if stat.S_ISLNK(int(self.getattr(caller, at)["st_mode"])):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                left += self.readlink(caller, at).split("/")[::-1]
                at = at.rpartition("/")[0]
        if stat.S_ISDIR(int(self.getattr(caller, at or "/")["st_mode"])):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return at

    def attributes(self, path: str) -> dict[str, float]:
        """Return a file's attributes as `getattr` does, for whomever it is there."""
        inside = _tree_of(path)
        if inside and inside[1]:
            mode = inside[0].mode(self.host, inside[1])
            if not stat.S_ISLNK(mode):
                mode &= ~0o222
        elif path[1:] in VIEWS:
            mode = stat.S_IFREG | (0o666 if _takes_triggers(path) else 0o444)
        elif any(_is_below(f"/{name}", path) for name in NAMES):
            mode = stat.S_IFDIR | 0o555
        else:
            raise _missing(path)
        owner = _NEARLY_NOBODY if _takes_triggers(path) else _NOBODY
        links = 2 if stat.S_ISDIR(mode) else 1
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._started)
        return {"st_mode": mode, "st_nlink": links, "st_uid": owner, "st_gid": 0, **times}

    def lengths(self) -> dict[str, int]:
        """Return how long the machine's own texts are, by path."""
        lengths = {}
        for name in VIEWS:
            with contextlib.suppress(OSError):  # this kernel has none
                lengths[f"/{name}"] = len(self.host.text(name))
        return lengths

    def statfs(self) -> dict[str, int]:
        """Return the figures of an empty filesystem."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def access(self, caller: int, path: str, mode: int) -> None:
        """Allow reading, searching directories, and writing what takes triggers. EACCES."""
        can_be_run = int(self.getattr(caller, path)["st_mode"]) & 0o111
        if (mode & os.W_OK and not _takes_triggers(path)) or (mode & os.X_OK and not can_be_run):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def paths(self) -> Iterator[str]:
        """Yield every path that there may be: of files that are not enabled and CPUs that are hidden, too.

        What is below the directories that are served whole comes last.
        """
        yield from _with_parents(NAMES)
        for tree in filter(lambda tree: self.host.directory(tree.name).exists, TREES.values()):
            yield from (f"/{tree.name}/{path}" for path in islice(tree.walk(self.host), _MAX_PATHS))

    def _served(self) -> Iterator[str]:
        """Yield what is enabled, but for trees that the machine's kernel was built without."""
        return (name for name in self.config.files.enabled if name not in TREES or self.host.directory(name).exists)

    def _container(self, caller: int) -> Optional[Container]:
        return None if self.shows_machine else self._containers.of(caller)

    def _configured(self, caller: int) -> tuple[Optional[Container], Config]:
        """Return the caller's container, None for the host, and the configuration as it is for it."""
        container = self._container(caller)
        return container, policies.applied(container, self.config) if container else self.config

    def _sight(self, caller: int, tree: HostTree) -> Optional[Sight]:
        """Return what the caller's container sees; None for the host, and where the tree is not enabled."""
        container, config = self._configured(caller)
        return Sight(container, self.host, config) if container and tree.name in config.files.enabled else None

    def _sees(self, tree: HostTree, path: str, sight: Optional[Sight]) -> bool:
        try:
            return tree.has(path, sight)
        except _UNREADABLE:  # then what is read is the host's too
            return True

    def _check(self, tree: HostTree, path: str, sight: Optional[Sight]) -> None:
        if not self._sees(tree, path, sight):
            raise _missing(f"/{tree.name}/{path}")

    def _count_failure(self, caller: int, name: str, error: Exception) -> None:
        """Count it, and log it unless another was logged within the last minute: a container must not fill the log."""
        self.failures[name, type(error).__name__] += 1
        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENT_SECONDS
            log.warning("%s of process %d cannot be computed, it sees the host's: %s", name, caller, error)


def _takes_triggers(path: str) -> bool:
    return path.startswith("/proc/pressure/") and path[1:] in VIEWS


def _trigger(container: Optional[Container], resource: str, terms: str) -> str:
    """Return a trigger of a container, of the machine for None, with the cgroup that it is for, and whose it is.

    A container without pressure figures, which are zeros then, has the cgroup "". One that is a cgroup never moves, and
    nothing is said of whose it is.
    """
    pressure = container.cgroup.pressure if container else None
    cgroup = pressure.path() if pressure else "" if container else _MACHINE
    whose = (container.load.name, container.init) if container and container.home is None else ()
    return json.dumps([cgroup, resource, terms, *whose])


def _tree_of(path: str) -> Optional[tuple[HostTree, str]]:
    """Return the tree that a path is in, and where in it; None for a path in no tree."""
    if not path.startswith(_TREES_ABOVE):
        return None
    for name, tree in TREES.items():
        if _is_below(path, f"/{name}"):
            return tree, path[len(name) + 2 :]
    return None


def _missing(path: str) -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _is_below(path: str, directory: str) -> bool:
    """Tell whether a path is a directory itself or something in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _with_parents(names: Iterable[str]) -> set[str]:
    """Return the paths of names, and of the directories that they stand in."""
    return {f"/{name[:end]}" for name in names for end in (*(i for i, c in enumerate(name) if c == "/"), len(name))}


def _child(name: str, directory: str) -> str:
    """Return the part of a name that stands in a directory."""
    return f"/{name}"[len(directory.rstrip("/")) + 1 :].partition("/")[0]
