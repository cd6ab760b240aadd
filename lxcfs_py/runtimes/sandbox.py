"""A small container: cgroup limits, namespaces and the views, for one command or for a test.

It is what `lxcfs-py try` runs a command in. Nothing is installed or downloaded: the sandbox shows the host's own file
tree, with a /proc of its own and the views bound over it. Its PID 1 is `sleep`; commands enter its namespaces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Callable, Optional, Union

from lxcfs_py import files as known_files
from lxcfs_py.cgroup import layout
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mount_table, seccomp, syscalls
from lxcfs_py.linux.mountpoint import FSTYPE

# "" is the unified hierarchy; where it is mounted beside v1's, it has the controllers that those do not have.
_CONTROLLERS = (*layout.CONTROLLERS, "")
_PERIOD = 100_000  # microseconds, the kernel's default
LEAST_CPUS = 1_000 / _PERIOD  # a millisecond, less of which the kernel takes for no quota
_UNLIMITED = 1 << 62  # more than any limit that a v1 file shows, for comparing
_PATIENCE = 10.0  # seconds for the kernel to end the processes and let go of the cgroups
_LEAF = "init.scope"  # where a v2 cgroup keeps its processes once it has children

_numbers = itertools.count()


class SandboxError(LxcfsError):
    """Why there is no sandbox, or no such sandbox: one sentence for the operator."""


class _Keep(enum.Enum):
    KEEP = enum.auto()


_KEEP = _Keep.KEEP


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes of memory, bytes of swap beside it, CPUs' worth of time, CPU list ("0-3,8"). None: no limit."""

    memory: Optional[int] = None
    swap: Optional[int] = None
    cpus: Optional[float] = None
    cpuset: Optional[str] = None


class Sandbox:
    """A container that lasts as long as the `with` block.

    `views` is a directory with proc/meminfo and the rest, as a mounted lxcfs-py has them; `files` are those to bind, of
    `files.NAMES` (None: all that are there). `parent` is another sandbox, or a cgroup's path as /proc/PID/cgroup shows
    it, that must exist in every hierarchy; the new cgroups are made in it. With `own_clock`, it has a time namespace
    whose clock since boot starts with it, where the kernel knows such (Linux 5.6). `agent` is the socket of a daemon
    that answers sysinfo(2) and sched_getaffinity(2) in its commands.

    Methods raise SandboxError. The sandbox's processes die with the thread that entered it.
    """

    def __init__(
        self,
        memory: Optional[int] = None,
        swap: Optional[int] = None,
        cpus: Optional[float] = None,
        cpuset: Optional[str] = None,
        views: Optional[Path] = None,
        files: Optional[Sequence[str]] = None,
        parent: Union[Sandbox, Path, str, None] = None,
        own_clock: bool = False,
        agent: str = "",
    ) -> None:
        self.limits = Limits()
        self._first_limits = Limits(memory, swap, cpus, cpuset)
        self._views = views
        self._files = files
        self._parent = parent
        self._own_clock = own_clock
        self._agent = agent
        self._exit = contextlib.ExitStack()
        self._hierarchies: dict[str, layout.Hierarchy] = {}
        self._directories: dict[str, Path] = {}
        self._leaf = ""
        self._init: Optional[subprocess.Popen[bytes]] = None
        self._children: list[subprocess.Popen[Any]] = []
        self._pid_namespace = self._mount_namespace = self._cgroup_namespace = self._time_namespace = -1

    def __enter__(self) -> Sandbox:
        if os.geteuid() != 0:
            raise SandboxError("a sandbox needs root, for its cgroups and mounts: run this with sudo")
        with contextlib.ExitStack() as stack:
            self._exit = stack
            self._make_cgroups()
            self._apply(self._first_limits)
            self._start_init()
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._exit.close()

    @property
    def init(self) -> int:
        """The pid of its PID 1, in the caller's pid namespace."""
        if self._init is None:
            raise SandboxError("the sandbox is not running")
        return self._init.pid

    def cgroup(self, controller: str) -> Path:
        """Return its directory in a controller's hierarchy; "" is the unified one."""
        try:
            return self._directories[controller]
        except KeyError:
            name = f"cgroup controller {controller}" if controller else "unified cgroup hierarchy"
            raise SandboxError(
                f"no {name} is available here, only {', '.join(filter(None, self._directories)) or 'none'}"
            ) from None

    def limit(
        self,
        memory: Union[int, _Keep, None] = _KEEP,
        swap: Union[int, _Keep, None] = _KEEP,
        cpus: Union[float, _Keep, None] = _KEEP,
        cpuset: Union[str, _Keep, None] = _KEEP,
    ) -> None:
        """Change the limits given; None takes one away."""
        given = {"memory": memory, "swap": swap, "cpus": cpus, "cpuset": cpuset}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not _KEEP}
        self._apply(dataclasses.replace(self.limits, **changes))

    def run(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
        """Run a command inside and wait, as subprocess.run does; text is captured unless the options say otherwise."""
        for stream in ("stdout", "stderr"):
            options.setdefault(stream, subprocess.PIPE)
        options.setdefault("text", True)
        with self._inside() as enter:
            return subprocess.run(command, preexec_fn=enter, **options)

    def popen(
        self, command: Sequence[str], preexec_fn: Optional[Callable[[], None]] = None, **options: Any
    ) -> subprocess.Popen[Any]:
        """Start a command inside, as subprocess.Popen does. It is killed when the sandbox ends."""
        with self._inside(preexec_fn) as enter:
            process = subprocess.Popen(command, preexec_fn=enter, **options)
        self._children.append(process)
        return process

    # Cgroups

    def _make_cgroups(self) -> None:
        found = layout.find().hierarchies
        self._hierarchies = {name: found[name] for name in _CONTROLLERS if name in found}
        if not self._hierarchies:
            raise SandboxError("no cgroup hierarchy is mounted here: mount one at /sys/fs/cgroup")
        name = self._unused_name()
        for controller, hierarchy in self._hierarchies.items():
            parent = self._parent_of(controller)
            if not parent.is_dir():
                raise SandboxError(f"there is no cgroup {parent} to make a sandbox in")
            directory = parent / name
            if hierarchy.version == 2 and controller:
                self._enable(controller, parent)
            if directory not in self._directories.values():
                try:
                    directory.mkdir()
                except OSError as error:
                    raise SandboxError(f"cannot make the cgroup {directory}: {error.strerror}") from None
                self._exit.callback(_remove_cgroup, directory)
            self._directories[controller] = directory
            if controller == "cpuset" and hierarchy.version == 1:  # v1's are born empty, and take no process then
                for file in ("cpuset.cpus", "cpuset.mems"):
                    _write(directory / file, (parent / file).read_text().strip())

    def _unused_name(self) -> str:
        """Return a name for the cgroups; of a process with our pid that was killed there may be some left."""
        parents = [self._parent_of(controller) for controller in self._hierarchies]
        names = (f"lxcfs-py-try-{os.getpid()}-{number}" for number in _numbers)
        return next(name for name in names if not any((parent / name).exists() for parent in parents))

    def _parent_of(self, controller: str) -> Path:
        if isinstance(self._parent, Sandbox):
            return self._parent.cgroup(controller)
        return Path(self._hierarchies[controller].mountpoint, str(self._parent or "").strip("/"))

    def _enable(self, controller: str, parent: Path) -> None:
        """Have a v2 cgroup's children under a controller."""
        switch = parent / "cgroup.subtree_control"
        if controller in switch.read_text().split():
            return
        if isinstance(self._parent, Sandbox):
            self._parent._make_leaf()
        _write(switch, f"+{controller}", hint="a v2 cgroup with processes of its own has no controllers for children")

    def _make_leaf(self) -> None:
        """Move the processes into a child: a v2 cgroup has processes, or children with controllers, but not both."""
        directory = self.cgroup("")
        if not self._leaf:
            (directory / _LEAF).mkdir()
            self._leaf = _LEAF
        for pid in (directory / "cgroup.procs").read_text().split():
            with contextlib.suppress(SandboxError):  # it has ended; one that has not makes the next step fail
                _write(directory / _LEAF / "cgroup.procs", pid)

    def _apply(self, limits: Limits) -> None:
        old = self.limits
        if (limits.memory, limits.swap) != (old.memory, old.swap):
            self._limit_memory(limits.memory, limits.swap)
        if limits.cpus != old.cpus:
            self._limit_cpus(limits.cpus)
        if limits.cpuset != old.cpuset:
            hint = "it takes a list such as 0-3,8 of the CPUs that the parent has"
            # No limit is the parent's list: the kernel takes no empty one where there are processes.
            all_cpus = "cpuset.cpus.effective" if self._version("cpuset") == 2 else "cpuset.cpus"
            cpus = limits.cpuset or (self._parent_of("cpuset") / all_cpus).read_text().strip()
            _write(self.cgroup("cpuset") / "cpuset.cpus", cpus, hint)
        self.limits = limits

    def _version(self, controller: str) -> int:
        self.cgroup(controller)
        return self._hierarchies[controller].version

    def _limit_memory(self, memory: Optional[int], swap: Optional[int]) -> None:
        directory = self.cgroup("memory")
        hint = "memory that is in use and cannot be reclaimed is in the way of a lower limit"
        if self._version("memory") == 2:
            _write(directory / "memory.max", "max" if memory is None else str(memory), hint)
            if swap is not None or (directory / "memory.swap.max").exists():
                _write(directory / "memory.swap.max", "max" if swap is None else str(swap))
            return
        if swap is not None and memory is None:
            raise SandboxError(
                "cgroup v1 limits the sum of memory and swap: with a swap limit, give a memory limit too"
            )
        limit = directory / "memory.limit_in_bytes"
        both = directory / "memory.memsw.limit_in_bytes"
        wanted = _UNLIMITED if memory is None else memory
        writes = [(limit, memory)]
        if swap is not None or both.exists():
            writes.append((both, None if swap is None or memory is None else memory + swap))
            # The kernel wants memory <= memory + swap after each write.
            if both.exists() and int(both.read_text()) < wanted:
                writes.reverse()
        for file, value in writes:
            _write(file, "-1" if value is None else str(value), hint)

    def _limit_cpus(self, cpus: Optional[float]) -> None:
        hint = f"{LEAST_CPUS} CPUs is the least, and on cgroup v1 the parent's quota the most"
        quota = None if cpus is None else round(cpus * _PERIOD)
        if self._version("cpu") == 2:
            _write(self.cgroup("cpu") / "cpu.max", f"{'max' if quota is None else quota} {_PERIOD}", hint)
        else:
            _write(self.cgroup("cpu") / "cpu.cfs_period_us", str(_PERIOD), hint)
            _write(self.cgroup("cpu") / "cpu.cfs_quota_us", "-1" if quota is None else str(quota), hint)

    def _join(self) -> None:
        """Move the calling process into the cgroups."""
        unified = self._directories.get("")
        for directory in set(self._directories.values()):
            _write(directory / (self._leaf if directory == unified else "") / "cgroup.procs", "0")

    # Processes

    def _start_init(self) -> None:
        sleep = shutil.which("sleep")
        if sleep is None:
            raise SandboxError("a sandbox's PID 1 is the program sleep, and there is none in PATH")
        binds = self._binds()
        # A container has files of a mount, but no mount as a whole.
        whole = [mount.mountpoint for mount in mount_table.read() if (mount.fstype, mount.root) == (FSTYPE, "/")]
        cgroups = {self._hierarchies[name].mountpoint: directory for name, directory in self._directories.items()}

        def become_init() -> None:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            # Before the namespaces: the cgroup namespace begins where its maker is, and the views ask who reads.
            self._join()
            if self._own_clock:
                _start_clock()
            syscalls.unshare(syscalls.CLONE_NEWCGROUP | syscalls.CLONE_NEWNS)
            syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
            syscalls.mount("proc", "/proc", "proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
            for source, target in binds:
                if Path(target).exists():
                    syscalls.mount(source, target, flags=syscalls.MS_BIND)
            for mountpoint in whole[::-1]:
                with contextlib.suppress(OSError):
                    syscalls.umount(mountpoint, syscalls.MNT_DETACH)
            for mountpoint, directory in cgroups.items():
                syscalls.mount(str(directory), mountpoint, flags=syscalls.MS_BIND)
            os.chdir("/")
            # Ignored across exec, SIGCHLD has the kernel reap the orphans that PID 1 inherits.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)

        with _new_pid_namespace(), _reporting(become_init) as preexec:
            self._init = subprocess.Popen(
                [sleep, "2147483647"],
                preexec_fn=preexec,
                start_new_session=True,
                env={},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._exit.callback(self._kill)
        self._pid_namespace, self._mount_namespace, self._cgroup_namespace = (
            self._open_namespace(kind) for kind in ("pid", "mnt", "cgroup")
        )
        if os.path.exists(f"/proc/{self.init}/ns/time"):
            self._time_namespace = self._open_namespace("time")

    def _open_namespace(self, kind: str) -> int:
        try:
            descriptor = os.open(f"/proc/{self.init}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            raise SandboxError(
                "the first process of the sandbox has ended at once: a memory limit below a few MiB is too low for any"
            ) from None
        self._exit.callback(os.close, descriptor)
        return descriptor

    def _binds(self) -> list[tuple[str, str]]:
        """Return which file is to be bound over which."""
        if self._views is None:
            return []
        base = self._views.absolute()
        if not base.is_dir():
            raise SandboxError(f"there are no views at {base}: is lxcfs-py running, and is that its mountpoint?")
        present = [name for name in known_files.NAMES if (base / name).exists()]
        wanted = present if self._files is None else self._files
        for name in wanted:
            if name not in present:
                raise SandboxError(f"there is no {name} in {base}: that has {', '.join(present) or 'no views'}")
        return [(str(base / name), f"/{name}") for name in wanted]

    @contextlib.contextmanager
    def _inside(self, then: Optional[Callable[[], None]] = None) -> Iterator[Callable[[], None]]:
        """Have the calling thread's next children inside; yields what each must call before it executes."""
        if self._init is None or self._init.poll() is not None:
            raise SandboxError("the sandbox is not running: its PID 1 has ended")

        def enter() -> None:
            agent = self._agent and _connect(self._agent)
            self._join()
            if self._own_clock and self._time_namespace >= 0:
                syscalls.setns(self._time_namespace, syscalls.CLONE_NEWTIME)
            syscalls.setns(self._cgroup_namespace, syscalls.CLONE_NEWCGROUP)
            directory = Path("/proc/self/cwd").readlink()
            syscalls.setns(self._mount_namespace, syscalls.CLONE_NEWNS)  # which also goes to /
            with contextlib.suppress(OSError):
                os.chdir(directory)
            if agent:
                seccomp.hand_over(agent)
                agent.close()
            if then:
                then()

        with _children_in(self._pid_namespace), _reporting(enter) as preexec:
            yield preexec

    def _kill(self) -> None:
        """End all processes inside, and wait till they are gone."""
        assert self._init is not None
        self._init.kill()
        # The kernel lets PID 1 go when the others are reaped; those started from outside are ours to reap.
        deadline = time.monotonic() + _PATIENCE
        for process in (*self._children, self._init):
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                raise SandboxError(f"process {process.pid} of the sandbox does not end though it was killed") from None
        self._init = None


_MOST_BYTES = 1 << 63  # which no limit of the kernel's reaches


def parse_size(text: str) -> int:
    """Return a size in bytes: "262144", "256M", "1.5G", in powers of 1024. ValueError says what it takes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    size = float(match[1]) * 1024.0 ** " KMGT".index(match[2].upper() or " ") if match else math.inf
    if size >= _MOST_BYTES:
        allowed = f"bytes, or a number with K, M, G or T, such as 256M or 1.5G, below {_MOST_BYTES >> 40}T"
        raise ValueError(f"{text!r} is no size: write {allowed}")
    return int(size)


def _connect(agent: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(agent)
    return connection


def _start_clock() -> None:
    """Enter a time namespace whose clock since boot is at 0, where there can be one: `ps` and `uptime` agree then.

    The caller must be a process with a single thread.
    """
    try:
        syscalls.unshare(syscalls.CLONE_NEWTIME)
    except OSError:  # a kernel without time namespaces
        return
    offset = -(time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000_000)
    Path("/proc/self/timens_offsets").write_text(f"boottime {offset} 0")
    namespace = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(namespace, syscalls.CLONE_NEWTIME)
    os.close(namespace)


@contextlib.contextmanager
def _new_pid_namespace() -> Iterator[None]:
    """Have the calling thread's next child be PID 1 of a new pid namespace."""
    with _children_in(None):
        syscalls.unshare(syscalls.CLONE_NEWPID)
        yield


@contextlib.contextmanager
def _children_in(pid_namespace: Optional[int]) -> Iterator[None]:
    """Have the calling thread's children in another pid namespace; afterwards in its own again."""
    own = os.open("/proc/thread-self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if pid_namespace is not None:
            syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID)
        yield
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWPID)
        os.close(own)


@contextlib.contextmanager
def _reporting(enter: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Wrap a preexec function, of whose errors subprocess says only that there was one: SandboxError says which."""
    reader, writer = os.pipe()

    def preexec() -> None:
        try:
            enter()
        except Exception as error:
            os.write(writer, os.fsencode(str(error)))
            raise

    try:
        yield preexec
    except subprocess.SubprocessError as error:
        os.close(writer)
        writer = -1
        reason = os.fsdecode(os.read(reader, 4096))
        if not reason:
            raise
        raise SandboxError(f"cannot enter the sandbox: {reason}") from error
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _write(file: Path, text: str, hint: str = "") -> None:
    """Write to a file that the kernel has made."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise SandboxError(f"cannot set {file} to {text}: this kernel has no such file") from None
    except OSError as error:
        advice = f" ({hint})" if hint else ""
        raise SandboxError(f"cannot set {file} to {text}: {error.strerror}{advice}") from None


def _remove_cgroup(directory: Path) -> None:
    """Remove a cgroup and what was made in it. The kernel needs a moment after its last process."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            for path, _, _ in os.walk(directory, topdown=False):
                Path(path).rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise SandboxError(f"cannot remove the cgroup {directory}: {error.strerror}") from None
        time.sleep(0.01)
