"""Which cgroup hierarchies are mounted where, and which of their directories is a process's cgroup."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from lxcfs_py.cgroup.tree import Levels
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import aside, mount_table, roots, syscalls
from lxcfs_py.linux.kernel_files import Group, KernelDirectory

CONTROLLERS = ("memory", "cpu", "cpuacct", "cpuset", "blkio", "io", "pids", "hugetlb")
"""What the figures of a container come from."""

# A path of 4096 bytes must have room for the longest name of a file in a cgroup.
_LONGEST_DIRECTORY = 4050

# A path can be 4096 bytes long, which is room for a thousand levels; limits stand near the root, or near the container.
_MOST_AT_EACH_END = 32

Paths = Mapping[str, str]
"""A process's cgroup paths by controller ("memory", "cpu", …); the unified hierarchy's is under ""."""


class LayoutError(LxcfsError):
    """Why the machine's cgroups cannot be seen."""


@dataclass(frozen=True)
class Hierarchy:
    """One mounted cgroup hierarchy: its version, where it is mounted, and which of its cgroups that shows."""

    version: int
    mountpoint: str
    root: str

    def below(self, path: str) -> str:
        """Return where below the mountpoint the cgroup `path` is."""
        if self.root != "/":
            path = path[len(self.root) :] if (path + "/").startswith(self.root + "/") else "/"
        return path.rstrip("/")

    def directory(self, path: str) -> str:
        """Return the directory of the cgroup `path`."""
        return self.mountpoint + self.below(path)


@dataclass
class Layout:
    """The mounted hierarchies by controller; the unified one, where there is any, also under ""."""

    hierarchies: dict[str, Hierarchy]
    _directories: weakref.WeakValueDictionary[str, KernelDirectory] = field(
        default_factory=weakref.WeakValueDictionary, repr=False
    )

    def version(self, controller: str) -> int:
        """Return the version of the hierarchy that a controller is in, 0 when it is not mounted."""
        hierarchy = self.hierarchies.get(controller)
        return hierarchy.version if hierarchy else 0

    def places(self, paths: Paths) -> Paths:
        """Return those of a process's cgroup paths that a container's figures come from, in one order for all."""
        keys = {name if self.version(name) == 1 else "" for name in CONTROLLERS if name in self.hierarchies} or {""}
        return {key: paths.get(key, "/") for key in sorted(keys)}

    def has_own_unified(self, paths: Paths) -> bool:
        """Tell whether a container's cgroup in the unified hierarchy is its own.

        Where v1 gives it cgroups, it may be in another one of somebody else's there: Docker's cgroupfs driver leaves
        all containers in the engine's. One of its own has the same path as in v1.
        """
        old = {path for name, path in self.places(paths).items() if name and path != "/"}
        return not old or paths.get("", "/") in old

    def unified(self, below: str) -> str:
        """Return a directory of the unified hierarchy, by its path below what is mounted of that."""
        return self.hierarchies[""].mountpoint + below

    def inode(self, paths: Paths, whose: str) -> int:
        """Return a number that no other cgroup at the same path has had. OSError when it is gone."""
        key, path = max(paths.items(), key=lambda item: len(item[1]))
        hierarchy = self.hierarchies[key]
        descriptor = aside.open_file(whose, hierarchy.directory(_nearest(hierarchy, path)), ".", os.O_PATH)
        try:
            return os.fstat(descriptor).st_ino
        finally:
            os.close(descriptor)

    def levels(
        self, controller: str, paths: Paths, own: dict[str, KernelDirectory], group: Optional[Group] = None
    ) -> Levels:
        """Return a cgroup's directory and its ancestors', none for the root or a controller that is not mounted.

        `own` holds the directories that are this cgroup's alone. Those of its ancestors are shared by all that have
        them in common; its own are not, for another cgroup may stand at the same path later. They are in those
        of the group's owner, and so are those of ancestors that are below that cgroup; others are each its own.
        """
        whose = group.whose if group else ""
        hierarchy = self.hierarchies.get(controller)
        if hierarchy is None:
            return ()
        path = _nearest(hierarchy, paths.get(controller if hierarchy.version == 1 else "", "/"))
        directory = hierarchy.directory(path)
        ancestors = []
        while len(directory) > len(hierarchy.mountpoint):
            ancestors.append(directory)
            directory = directory[: directory.rindex("/")]
        if not ancestors:
            return ()
        first, *rest = ancestors
        if first not in own:
            own[first] = KernelDirectory(
                hierarchy.mountpoint, hierarchy.below(path), whose or _whose(first, hierarchy, whose)
            )
        if len(rest) > 2 * _MOST_AT_EACH_END:
            rest[_MOST_AT_EACH_END:-_MOST_AT_EACH_END] = []
        return (own[first], *(self._shared(each, _whose(each, hierarchy, whose), group) for each in rest))

    def top(self, controller: str) -> KernelDirectory:
        """Return the root of a controller's hierarchy, or what is mounted of it."""
        mountpoint = self.hierarchies[controller].mountpoint
        return self._shared(mountpoint, "/")

    def _shared(self, path: str, whose: str, group: Optional[Group] = None) -> KernelDirectory:
        directory = self._directories.get(path)
        if directory is None:
            directory = self._directories[path] = KernelDirectory(path, whose=whose)
            _join(directory, group)
        return directory


def find(root: str = "") -> Layout:
    """Return what /proc/self/mountinfo says of cgroup mounts. OSError when it cannot be read.

    `root` is put before every path: the directory of a recorded system, "" for this one.
    """
    mounts = [mount for mount in mount_table.read(root) if mount.fstype in ("cgroup", "cgroup2")]
    hierarchies: dict[str, Hierarchy] = {}
    # A hierarchy may be mounted a second time, and only in part: the mount that shows all of it comes first.
    for mount in sorted(mounts, key=lambda mount: len(mount.root)):
        mountpoint = root + mount.mountpoint if root else roots.uncovered(mount.mountpoint)
        if mount.fstype == "cgroup2" and mount.root != "/" and "" not in hierarchies and not root:
            with contextlib.suppress(OSError):  # a mount of one's own shows all that this cgroup namespace has
                mountpoint = roots.mounted("cgroup2")
                mount = mount._replace(root="/")
        if mount.fstype == "cgroup":
            version, names = 1, [option.replace("name=", "") for option in mount.options.split(",")]
        else:
            version, names = 2, ["", *_controllers(mountpoint)]
        for name in names:
            hierarchies.setdefault(name, Hierarchy(version, mountpoint, mount.root))
    return Layout(hierarchies)


def find_for_all() -> Layout:
    """Return the same for a daemon that serves the containers of the whole machine.

    Where this process has a cgroup namespace or only a part of the hierarchies of its own, as in a container, it looks
    from the first process's: call it before there are threads. LayoutError where that cannot be, or nothing is seen.
    """
    _enter_first_namespace()
    layout = find()
    if not any(os.path.exists(hierarchy.directory("/cgroup.procs")) for hierarchy in layout.hierarchies.values()):
        raise LayoutError("no cgroups can be seen here: mount them, or give this process the host's /sys/fs/cgroup")
    try:
        first = parse_paths(Path(roots.PROC, "1", "cgroup").read_bytes())
    except OSError:  # it is hidden (hidepid=)
        return layout
    for name in CONTROLLERS:
        hierarchy = layout.hierarchies.get(name)
        path = first.get(name if layout.version(name) == 1 else "", "/")
        if hierarchy and (path.startswith("/..") or not is_below(path, hierarchy.root)):
            raise LayoutError(
                f"only a part of the machine's cgroups can be seen here (of {name}, what is below {hierarchy.root}): "
                "give this process the host's cgroup namespace (--cgroupns=host) and its /sys/fs/cgroup"
            )
    return layout


def _enter_first_namespace() -> None:
    with contextlib.suppress(OSError):  # it is out of reach, or a kernel without cgroup namespaces
        if os.readlink(f"{roots.PROC}/1/ns/cgroup") != os.readlink(f"{roots.PROC}/self/ns/cgroup"):
            namespace = os.open(f"{roots.PROC}/1/ns/cgroup", os.O_RDONLY | os.O_CLOEXEC)
            try:
                syscalls.setns(namespace, syscalls.CLONE_NEWCGROUP)
            finally:
                os.close(namespace)


def parse_paths(text: bytes) -> dict[str, str]:
    """Parse /proc/PID/cgroup: the process's cgroup path for each controller, the unified hierarchy's under ""."""
    paths = {}
    equal: dict[str, str] = {}  # mostly one path for all controllers, and kept as long as the container lives
    for line in text.decode(errors="surrogateescape").split("\n"):  # a name may hold any other end of line
        if not line:
            continue
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            paths[controller.replace("name=", "")] = equal.setdefault(path, path)
    return paths


def is_below(path: str, ancestor: str) -> bool:
    """Tell whether a cgroup is another one itself or below it."""
    return path == ancestor or ancestor == "/" or path.startswith(f"{ancestor}/")


def _nearest(hierarchy: Hierarchy, path: str) -> str:
    """Return the path of a cgroup, or of its nearest ancestor whose files can be opened by their paths."""
    while len(os.fsencode(hierarchy.directory(path))) > _LONGEST_DIRECTORY:
        path = path.rpartition("/")[0]
    return path


def _join(directory: KernelDirectory, group: Optional[Group]) -> None:
    if group:
        directory.group = group
        group.add(directory.path)


def _whose(directory: str, hierarchy: Hierarchy, container: str) -> str:
    """Return whose a directory is: a container's that is at or above that cgroup, or else nobody's but its own."""
    cgroup = hierarchy.root.rstrip("/") + directory[len(hierarchy.mountpoint) :]
    return container if container.startswith("/") and is_below(cgroup, container) else cgroup


def _controllers(mountpoint: str) -> list[str]:
    try:
        return Path(mountpoint, "cgroup.controllers").read_text().split()
    except OSError:
        return []
