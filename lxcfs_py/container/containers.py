"""Who is asking: from the pid of a reader to its container.

A container is a pid namespace and the cgroup of its init. A reader in a cgroup that is neither init's nor below it, and
a reader in the host's own pid namespace, have a container that is their own cgroup. docs/architecture.md has the rule.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import resource
import select
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Callable, NamedTuple, Optional, Union

from lxcfs_py.cgroup import Cgroup, open_cgroup
from lxcfs_py.cgroup.layout import Layout, Paths, is_below, parse_paths
from lxcfs_py.cgroup.tree import Looks
from lxcfs_py.config import Config
from lxcfs_py.container import processes
from lxcfs_py.container.cpu_time import Account, Ledger
from lxcfs_py.container.eviction import choose
from lxcfs_py.container.load import Load, Sampler
from lxcfs_py.container.owners import Owners
from lxcfs_py.container.paged import Paged
from lxcfs_py.errors import LxcfsError, in_words
from lxcfs_py.linux import roots
from lxcfs_py.linux.aside import SilentError
from lxcfs_py.linux.kernel_files import KernelDirectory

log = logging.getLogger(__name__)

MAX_CONTAINERS = 4096
_DESCRIPTORS = 32  # of one container, its share of those of its ancestors included
_OTHER_DESCRIPTORS = 256

_MAX_READERS = 4096

# What the kernel says of a process that is gone, or that only its parent has still to be told of.
_ENDED = (ProcessLookupError, FileNotFoundError)

_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

_REFRESH_SECONDS = 1.0

# Of a cgroup's processes and those below it, at most so many are asked which container they are in, while others wait;
# and so many cgroup namespaces are entered for it, each by a thread of its own.
_MAX_PROCESSES = 1024
_MAX_ENTERED = 16
_MAX_ANCESTORS = 64
_MAX_MEMBERS = 64  # are asked for their clock

# The part of the time that looking for processes as which containers go on may take when nobody asks: a tenth.
_REST = 10


class UnplacedError(LxcfsError):
    """Why it cannot be told which container a process is in: one sentence for the operator."""

    def __init__(self, pid: int, error: OSError) -> None:
        if isinstance(error, _ENDED):
            sentence = f"process {pid} has ended"
        elif isinstance(error, PermissionError):
            sentence = (
                f"the namespaces of process {pid} cannot be read ({error.strerror}): run this as root, with "
                "CAP_SYS_PTRACE"
            )
        else:
            sentence = f"it cannot be told which container process {pid} is in: {in_words(error)}"
        super().__init__(sentence)


class Container:
    """A container, as long as its init lives, or in the host's pid namespace any process of its cgroup."""

    __slots__ = (
        "__weakref__",
        "_cgroup_hash",
        "_last_noted",
        "_layout",
        "_members",
        "_proc",
        "account",
        "amounts",
        "cgroup",
        "checked",
        "configured",
        "home",
        "init",
        "known_as",
        "last_pid",
        "load",
        "namespace",
        "paged",
        "paths",
        "pidfd",
        "reads",
        "start",
        "whose",
    )

    def __init__(
        self, pid: int, layout: Layout, ledger: Ledger, sampler: Sampler, whose: str = "", name: str = ""
    ) -> None:
        """Open the container whose init has that pid; its counters are kept by that name, or by that init.

        `whose` it is: the cgroup of the outermost container that it is in.

        OSError when there is no such process any more.
        """
        self._layout = layout
        self.whose = whose
        self._cgroup_hash = 0
        self.paths: Paths = {}
        self.cgroup: Cgroup
        self.home: Optional[Paths] = None
        """The cgroup that it is, where it is no pid namespace."""
        self.known_as: list[_Key] = []
        self._members: Looks[list[int]] = Looks()
        self.pidfd = self.namespace = -1
        self.go_on_as(pid)
        self.refresh()
        start = processes.start_time(self._proc.read("stat"))
        name = name or f"{os.fstat(self.namespace).st_ino}:{pid}:{start}"
        self.account = Account(ledger, name, start)
        self.start = self.account.start
        self.load = Load(sampler, name, pid)
        self.paged = Paged()
        self.last_pid = self._last_noted = 0  # the pid, and when the reader that has it was seen, since boot
        self.reads = 0
        self.configured: Optional[tuple[Config, Paths, Config]] = None
        """A configuration and where it was then, and what that comes to for it."""

        self.amounts: tuple[float, Optional[Cgroup], Mapping[str, int]] = (0.0, None, {})
        """What memory.stat said of a cgroup, and until when that serves who asks by a system call."""

    def __del__(self) -> None:
        for fd in (self.pidfd, self.namespace):
            if fd >= 0:
                os.close(fd)

    def go_on_as(self, pid: int) -> None:
        """Take a process for its init. OSError if it has ended, and then nothing changes."""
        namespace = os.open(f"{roots.PROC}/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        pidfd = -1
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as error:
            if error.errno != errno.ENOSYS:  # before Linux 5.3
                os.close(namespace)
                raise
        self.__del__()
        self.pidfd, self.namespace = pidfd, namespace
        self.init = pid
        self._proc = KernelDirectory(f"{roots.PROC}/{pid}")

    def key(self) -> int:
        """Return a descriptor that no other container has: the pidfd, where the kernel knows pidfds."""
        return self.pidfd if self.pidfd >= 0 else self.namespace

    def place(self) -> str:
        """Return the path of its cgroup, of several that by which it is known."""
        return processes.place(self.paths)

    def namespace_name(self) -> str:
        """Return the name of its pid namespace, "pid:[4026531836]"."""
        return os.readlink(f"{roots.PROC}/self/fd/{self.namespace}")

    def refresh(self) -> bool:
        """Look again which cgroup init is in; False where it has left its home. OSError when it has ended."""
        text = self._proc.read("cgroup")
        if not self.is_in(text):
            paths = processes.container_paths(self.init, text)
            places = self._layout.places(paths)
            if self.home not in (None, places):
                return False
            cgroup = open_cgroup(self._layout, paths, whose=self.whose)
            if self._cgroup_hash:
                cgroup.go_on_from(self.cgroup)
            self.cgroup = cgroup
            self.paths = places
            self._cgroup_hash = hash(text)  # the text itself is most of what a container would take
        self.checked = time.monotonic()
        return True

    def is_in(self, text: bytes) -> bool:
        """Tell whether its init was in the cgroups of that /proc/PID/cgroup when it was looked at last."""
        return hash(text) == self._cgroup_hash

    def contains(self, paths: Paths) -> bool:
        """Tell whether all of these cgroups are its own or below."""
        return all(is_below(paths.get(controller, "/"), path) for controller, path in self.paths.items())

    def has_ended(self) -> bool:
        """Tell whether its init has ended."""
        if self.pidfd < 0:
            try:
                return not self._proc.read("stat")
            except OSError:
                return True
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def note_reader(self, pid: int) -> None:
        """Remember what pid the reader that was started last has in its pid namespace; they begin anew at some time."""
        inside = processes.pid_inside(pid, self.namespace)
        if inside >= self.last_pid or processes.start_time(processes.read(pid, "stat")) > self._last_noted:
            self.last_pid = inside
            self._last_noted = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def states(self) -> tuple[int, int, int]:
        """Return how many of the container's tasks run, are blocked, and exist."""
        return self.cgroup.tasks.states() if self.cgroup.tasks else (0, 0, 0)

    def active(self) -> tuple[int, int]:
        """Return how many of the container's tasks run, and are blocked."""
        return self.cgroup.tasks.active() if self.cgroup.tasks else (0, 0)

    def members(self) -> Iterator[int]:
        """Yield some processes in its cgroup and below, as of the last look, made when the first of them is wanted."""
        tasks = self.cgroup.tasks
        yield from self._members.found(lambda: tasks.pids(_MAX_MEMBERS) if tasks else [])


# What a container is found by: the name of its pid namespace; else its cgroup's paths, and such texts of
# /proc/PID/cgroup as its processes were found to have, since looking at their cgroup namespace takes long.
_Key = Union[str, bytes, tuple[str, ...]]
_MAX_KEYS = 64


class _Reader(NamedTuple):
    """Where a process was found, which holds for a second."""

    inode: int
    """Of its directory in /proc: another process of the same pid has another."""

    found: float
    container: weakref.ref[Container]
    boottime_offset: Optional[int] = None
    """None until it is asked for."""


class Containers:
    """The containers that have asked, found again by the pid of a reader."""

    def __init__(self, layout: Layout, ledger: Ledger, sampler: Sampler) -> None:
        self.layout = layout
        """The machine's cgroups."""

        self._ledger = ledger
        self._sampler = sampler
        self._readers: dict[int, _Reader] = {}
        self._known: dict[_Key, Container] = {}
        self._owners = Owners()
        self._host_pids = processes.namespace("self", "pid")
        self._host_mounts = roots.host_mounts()
        self._adding = threading.RLock()
        self._exits = select.epoll()
        self._watched: dict[int, Container] = {}  # by Container.key
        self._ended: dict[Container, None] = {}  # whose init has, as far as `reap` has not come to it
        self._rested = 0.0  # when it may look for another process again
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.most = min(max((descriptors - _OTHER_DESCRIPTORS) // _DESCRIPTORS, 16), MAX_CONTAINERS)
        self.unplaced = 0
        self.forgotten: Callable[[Container], None] = lambda container: None
        """Is called with each that is known no longer, by any thread."""

    def __len__(self) -> int:
        return len(self._watched)

    def all(self) -> list[Container]:
        """Return those known by now."""
        return list(self._watched.values())

    def fileno(self) -> int:
        """Return a descriptor that is readable when `reap` has something more to do."""
        return self._exits.fileno()

    def of(self, pid: int) -> Optional[Container]:
        """Return the container that a process or thread is in, None for the host and who cannot be placed."""
        try:
            return self._found(pid)
        except OSError as error:
            self._count_unplaced(pid, error)
            return None

    def placed(self, pid: int) -> Optional[Container]:
        """Return the container that a process is in, None for the host alone. UnplacedError where that is not known."""
        try:
            return self._found(pid)
        except OSError as error:
            raise UnplacedError(pid, error) from None

    def _found(self, pid: int) -> Optional[Container]:
        inode = os.stat(f"{roots.PROC}/{pid}").st_ino
        reader = self._readers.get(pid)
        if reader is not None and reader.inode == inode and time.monotonic() - reader.found < _REFRESH_SECONDS:
            container = reader.container()
            if container is not None and self._watched.get(container.key()) is container:
                return container
        try:
            container = self._place(pid)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                container = self._place_by_another(reader if reader and reader.inode == inode else None, pid)
                if container is None:
                    raise
            else:
                if error.errno in _NO_DESCRIPTORS:
                    self._make_room()
                elif not isinstance(error, _ENDED):  # another process that was looked at for it may have, just then
                    raise
                container = self._place(pid)
        if container is not None and not (reader and reader.inode == inode and reader.container() is container):
            container.note_reader(pid)
        if container is not None:
            self._readers.pop(pid, None)  # the order is that in which they were found
            if len(self._readers) >= _MAX_READERS:
                for longest in list(self._readers)[: _MAX_READERS // 2]:
                    self._readers.pop(longest, None)
            self._readers[pid] = _Reader(inode, time.monotonic(), weakref.ref(container))
        return container

    def take_up_loads(self) -> None:
        """Go on sampling the load of those containers that a daemon before this one sampled."""
        for init, name in self._sampler.kept():
            container = self.named(name, init)
            if container is not None:
                container.load.go_on(container.states)

    def named(self, name: str, init: int) -> Optional[Container]:
        """Return the container of that name, which has or had that init; None where it has ended."""
        with contextlib.suppress(OSError, ValueError):
            container = self._place(init)
            if container is not None and container.load.name == name:
                return container
        return None

    def boottime_offset(self, pid: int) -> int:
        """Return what `processes.boottime_offset` does of a process whose container has just been looked up."""
        reader = self._readers.get(pid)
        if reader is not None and reader.boottime_offset is not None:
            return reader.boottime_offset
        container = reader.container() if reader is not None else None
        init, others = (container.init, container.members()) if container is not None else (0, ())
        offset = processes.boottime_offset(pid, init, others)
        if reader is not None:
            self._readers[pid] = reader._replace(boottime_offset=offset)
        return offset

    def forget(self, pid: int, error: Optional[BaseException] = None) -> None:
        """Look the container of a process up anew when it asks next: what was known of it no longer holds.

        With the error that its figures could not be computed for, it is kept as long as it is there: then it is known
        by now in which cgroup, and the error was another one's, such as a file's of the host. Where the error says that
        there are no more descriptors, other containers are forgotten too.
        """
        with self._adding:
            if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
                self._make_room()
            container = self.of(pid)
            if container is not None and (error is None or not self._is_there(container)):
                self._drop(container)

    def reap(self) -> Optional[float]:
        """Drop the containers whose init has ended; return in how many seconds some are left to do, None for none.

        Those that may go on as another process have their turn one after the other: looking for it can take long, and
        whoever has one process end after the other would have it done all the time, for which others wait.
        """
        with self._adding:  # what is told once is of one that is known
            for fd, _ in self._exits.poll(0):
                container = self._watched.get(fd)
                if container is not None:
                    self._ended[container] = None
        for container in list(self._ended):
            if container.home is None or time.monotonic() >= self._rested:
                self._ended.pop(container, None)
                self._reap(container)
        return max(self._rested - time.monotonic(), 0) if self._ended else None

    def _reap(self, container: Container) -> None:
        with self._adding:
            began = time.monotonic()
            # It may have been dropped meanwhile, or go on, and the descriptor's number be that of another by now.
            if self._watched.get(container.key()) is container and container.has_ended():
                if not self._goes_on(container):
                    self._end(container)
                if container.home is not None:
                    now = time.monotonic()
                    self._rested = now + max((now - began) * _REST, _REFRESH_SECONDS if container in self._ended else 0)

    def _place(self, pid: int) -> Optional[Container]:
        namespace = processes.namespace(pid, "pid")
        if namespace == self._host_pids:
            if processes.namespace(pid, "mnt") in self._host_mounts:
                return None
            return self._of_cgroup(pid, processes.read(pid, "cgroup"))
        container = self._known.get(namespace)
        if container is None:
            try:
                container = self._add_namespace(pid, namespace)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                return self._of_cgroup(pid, processes.read(pid, "cgroup"))  # its own is not as deep as init's
        if time.monotonic() - container.checked > _REFRESH_SECONDS:
            with contextlib.suppress(OSError):  # it is ending, or cannot be looked at now: it is known as it was
                container.refresh()
        try:
            text = processes.read(pid, "cgroup")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return container  # only a cgroup that somebody in the container has made can be so deep
        if _is_root(container.paths):  # nobody counts for it: it sees the host, as in the host's pid namespace
            return self._of_cgroup(pid, text)
        if container.is_in(text) or container.contains(parse_paths(text)):
            return container
        return self._of_cgroup(pid, text) or container

    def _place_by_another(self, known: Optional[_Reader], pid: int) -> Optional[Container]:
        """Return the container of a process in a cgroup so deep that the kernel does not tell it (before Linux 6.2).

        It is the one where it was known to be, or else that of its nearest ancestor whose cgroup is told.
        """
        container = known.container() if known else None
        if container is not None and self._watched.get(container.key()) is container:
            return container
        for ancestor in itertools.islice(processes.ancestors(pid), 1, _MAX_ANCESTORS):
            try:
                return self._place(ancestor)
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
        return None

    def _of_cgroup(self, pid: int, text: bytes) -> Optional[Container]:
        """Return the container that is a process's own cgroup, None where that is the root."""
        container = self._known.get(text)
        if container is None:
            paths = self.layout.places(processes.container_paths(pid, text))
            if _is_root(paths):
                return None
            container = self._add_cgroup(pid, text, paths)
        if time.monotonic() - container.checked > _REFRESH_SECONDS:
            with self._adding:
                if not self._is_there(container) and not self._goes_on(container):
                    self._drop(container)
                    return self._of_cgroup(pid, text)
        return container

    def _is_there(self, container: Container) -> bool:
        """Tell whether a container's init lives and, where it stands for a cgroup, is still in it."""
        try:
            return not container.has_ended() and container.refresh()
        except SilentError:  # so it is there
            return True
        except OSError:
            return False

    def _goes_on(self, container: Container) -> bool:
        """Let the oldest process in a container's cgroup stand for it; False where init is all, or none is left."""
        if container.home is None:
            return False
        try:
            pid = self._oldest(container.home, container.whose, container.is_in)
            if pid:
                self._unwatch(container)
                try:
                    container.go_on_as(pid)
                    container.load.init = pid
                finally:
                    self._watch(container)
            return pid is not None and container.refresh()
        except SilentError:  # later, if any
            self._ended[container] = None
            return True
        except OSError:
            return False

    def _oldest(self, paths: Paths, whose: str, is_in: Callable[[bytes], bool]) -> Optional[int]:
        """Return the process that was started first, of those whose container is the cgroup; `is_in` knows some."""
        tasks = open_cgroup(self.layout, paths, whose=whose).tasks
        # What is said of a cgroup is the same for all processes in it, and in the same namespaces.
        looked: dict[tuple[bytes, str, str], bool] = {}
        own, entered = processes.namespace_or_none("self", "cgroup"), 0

        def is_member(pid: int) -> bool:
            nonlocal entered
            text = processes.read(pid, "cgroup")
            if is_in(text):
                return True
            namespace = processes.namespace_or_none(pid, "cgroup")
            key = (text, namespace, processes.namespace_or_none(pid, "pid"))
            if key not in looked:
                if namespace != own:
                    if entered == _MAX_ENTERED:
                        return False
                    entered += 1
                looked[key] = self.layout.places(processes.container_paths(pid, text)) == paths
            return looked[key]

        def members() -> Iterator[int]:
            for pid in tasks.pids(_MAX_PROCESSES) if tasks else ():
                with contextlib.suppress(OSError):
                    if is_member(pid):
                        yield pid

        return processes.oldest(members())

    def _add_namespace(self, pid: int, namespace: str) -> Container:
        with self._adding:
            container = self._known.get(namespace)
            if container is None:
                init = processes.find_init(pid, namespace)
                container = Container(init, self.layout, self._ledger, self._sampler, self._whose(init))
                if container.namespace_name() != namespace:
                    raise ProcessLookupError(f"process {init} ended while it was looked at")
                self._add(container)
                self._know(container, namespace)
        return container

    def _add_cgroup(self, pid: int, text: bytes, paths: Paths) -> Container:
        place = tuple(paths.values())
        name, whose, init = "", self._whose(pid), pid
        if place not in self._known:  # before others have to wait
            name = f"{self.layout.inode(paths, whose)}:{':'.join(place)}"
            init = self._oldest(paths, whose, text.__eq__) or pid
        with self._adding:
            container = self._known.get(place)
            if container is None and name:
                container = Container(init, self.layout, self._ledger, self._sampler, whose, name)
                container.home = paths
                self._add(container)
                self._know(container, place)
            if container is not None and len(container.known_as) < _MAX_KEYS:
                self._know(container, text)
        return container or self._add_cgroup(pid, text, paths)  # it was known, and has ended just then

    def _whose(self, pid: int) -> str:
        """Return the cgroup of the outermost container that a process is in."""
        return processes.without(self._owners.of(pid, 0), processes.INIT_SCOPE)

    def _know(self, container: Container, key: _Key) -> None:
        container.known_as.append(key)
        self._known[key] = container

    def _add(self, container: Container) -> None:
        if container.pidfd < 0:  # then nothing tells of the end of any
            for known in [known for known in self._watched.values() if known.has_ended()]:
                if not self._goes_on(known):
                    self._end(known)
        while len(self._watched) >= self.most:
            self._make_room()
        self._watch(container)
        kind = container.namespace_name() if container.home is None else "a cgroup in its pid namespace"
        log.debug("process %d is the first of a container: %s, cgroup %r", container.init, kind, container.place())

    def _watch(self, container: Container) -> None:
        if container.pidfd >= 0:
            self._exits.register(container.pidfd, select.EPOLLIN | select.EPOLLET)  # `reap` is told once
        self._watched[container.key()] = container

    def _unwatch(self, container: Container) -> bool:
        if self._watched.pop(container.key(), None) is None:
            return False
        if container.pidfd >= 0:
            self._exits.unregister(container.pidfd)
        return True

    def _make_room(self) -> None:
        """Forget some containers, of whoever has the most of them."""
        with self._adding:
            for container in choose(list(self._watched.values())):
                self._drop(container)

    def _end(self, container: Container) -> None:
        self._drop(container)
        container.account.close()

    def _drop(self, container: Container) -> None:
        """Forget a container. What reads it still keeps its descriptors until it is done."""
        self._ended.pop(container, None)
        if not self._unwatch(container):
            return
        for key in container.known_as:
            self._known.pop(key, None)
        container.load.close()
        self.forgotten(container)

    def _count_unplaced(self, pid: int, error: OSError) -> None:
        self.unplaced += 1
        if self.unplaced == 1:
            log.warning(
                "process %d cannot be placed and sees the host's files: %s (said once, counted from now on)",
                pid,
                in_words(error),
            )


def _is_root(paths: Paths) -> bool:
    """Tell whether these are the roots of all hierarchies, which are no cgroup of anybody's own."""
    return all(path == "/" for path in paths.values())
