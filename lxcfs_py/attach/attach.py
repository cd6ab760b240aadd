"""Put the views into containers that already run, take them out again, and tell which has them.

For each container a helper process is forked. It clones the host's mounts of the files (open_tree(2)), enters the
container's mount namespace (setns(2)) and moves the clones onto the container's files (move_mount(2)). Nothing is
executed in the container, and what it arranged there is not trusted: its /proc and /sys are entered one component at a
time, without following symbolic links, and only as long as the mount table says that they are the kernel's own. What
else may be a FUSE filesystem that never answers: the container's root, asked for its /proc and /sys, and a mount of
which `status` wants to know whether its server lives. Therefore the helper has a time limit.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn, Optional

from lxcfs_py.attach import mount_users
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mount_table, syscalls
from lxcfs_py.linux.mount_table import Mount
from lxcfs_py.linux.mountpoint import FSTYPE, is_dead

HELPER_SECONDS = 10.0
ENGINE_SECONDS = 30.0

# What a container's /proc and /sys have to be.
_KERNEL_FILESYSTEMS = {"proc": "proc", "sys": "sysfs"}

# What the kernel says of a process that has ended, or that only its parent has still to be told of.
_ENDED = (errno.ESRCH, errno.ENOENT, errno.EINVAL)


class AttachError(LxcfsError):
    """Why nothing could be done with a container: one sentence for the operator."""


class EndedError(AttachError):
    """The container has ended."""


class _RefusedError(LxcfsError):
    """Why a file is left alone."""


class Outcome(NamedTuple):
    """What became of one file."""

    name: str
    """As in files.NAMES."""

    result: str
    """attached, replaced (another server's mount), kept (it was there), detached, absent (nothing to do), refused."""

    reason: str = ""
    """Of a refusal."""


class Status(NamedTuple):
    """Which files a container has."""

    pid: int
    """Its init."""

    cgroup: str
    files: dict[str, str]
    """By name: live (this mount's), other (of another server that lives), dead (its server has ended), none."""

    error: str = ""
    """Why there is nothing in `files`."""


class _Mounted(NamedTuple):
    id: int
    peers: str
    """The peer group that it is in, "shared:7", "" when mounts below it stay in its mount namespace."""

    mount: Mount


class _Place(NamedTuple):
    """Where a file of the container's is: open descriptors, and what is mounted at it."""

    directory: int
    file: int
    base: _Mounted
    """The container's /proc or /sys."""

    top: _Mounted
    """The base, or a mount of FSTYPE over the file."""


def attach(pid: int, mountpoint: str, names: Sequence[str]) -> list[Outcome]:
    """Mount files of the mount at `mountpoint` over those that a process sees, where they are not mounted already.

    What another server's mount, dead or alive, has there is replaced. AttachError, of which EndedError is one.
    """
    device = _device(mountpoint)
    return [Outcome(*each) for each in _for_process(pid, lambda process: _attach(process, mountpoint, device, names))]


def detach(pid: int, names: Sequence[str]) -> list[Outcome]:
    """Unmount files of any server of this kind from over those that a process sees. AttachError."""
    return [Outcome(*each) for each in _for_process(pid, lambda process: _detach(process, names))]


def bind(root: str, mountpoint: str, names: Sequence[str]) -> list[Outcome]:
    """Do what `attach` does, in this mount namespace, for a container whose root is a directory yet. AttachError."""
    device = _device(mountpoint)
    try:
        return [Outcome(*each) for each in _in_helper(lambda: _bind(root, mountpoint, device, names))]
    except OSError as error:
        raise AttachError(f"the mounts of a container at {root} cannot be made: {error}") from None


def status(mountpoint: str, names: Sequence[str]) -> Iterator[Status]:
    """Yield for each container which of the files it has. What the kernel does not have is left out."""
    device = mount_users.device(mountpoint)
    for pid in containers():
        try:
            cgroup = _cgroup(pid)
            yield Status(pid, cgroup, dict(_for_process(pid, lambda process: _look(process, device, names))))
        except (EndedError, OSError):
            continue
        except AttachError as error:
            yield Status(pid, cgroup, {}, str(error))


def containers() -> Iterator[int]:
    """Yield the first processes of the pid namespaces below this one that have a mount namespace of their own."""
    known = host_mount_namespaces()
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            text = Path(f"/proc/{pid}/status").read_bytes()
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        except OSError:  # it has ended, or is not for us to see
            continue
        pids = text.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()
        if len(pids) > 1 and pids[-1] == b"1" and namespace not in known:
            known.add(namespace)
            yield pid


def host_mount_namespaces() -> set[int]:
    """Return the mount namespaces in which there is no container: this process's, and that of process 1."""
    namespaces = set()
    for pid in ("self", "1"):
        with contextlib.suppress(OSError):
            namespaces.add(os.stat(f"/proc/{pid}/ns/mnt").st_ino)
    return namespaces


def engine_pid(engine: str, name: str) -> int:
    """Return the first process of a container that "docker" or "podman" knows by that name or id. AttachError."""
    command = [engine, "container", "inspect", "--format", "{{.State.Pid}} {{.Id}}", "--", name]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ENGINE_SECONDS, errors="replace"
        )
    except FileNotFoundError:
        raise AttachError(f"there is no command {engine} here to ask for {name}; give the container's --pid") from None
    except subprocess.TimeoutExpired:
        raise AttachError(f"{engine} did not say within {ENGINE_SECONDS:.0f} s which process {name} is") from None
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise AttachError(f"{engine} does not say which process {name} is: {reason}")
    pid, identity = done.stdout.split()
    if pid == "0":
        raise AttachError(f"the container {name} is not running")
    try:
        found = identity in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        found = False
    if not found:
        raise AttachError(
            f"{engine} says that {name} is process {pid}, which on this machine is another or none: either it has just "
            f"ended, or {engine} speaks for another machine"
        )
    return int(pid)


# In the caller's process


def _device(mountpoint: str) -> str:
    device = mount_users.device(mountpoint)
    if device is None:
        raise AttachError(f"nothing is mounted at {mountpoint}; start the daemon: lxcfs-py run {mountpoint}")
    return device


def _cgroup(pid: int) -> str:
    """Return a container's cgroup: that of memory on v1, else the unified one. OSError."""
    from lxcfs_py.container.containers import (
        container_paths,  # here, as the processes that enter containers are to be small
    )

    paths = container_paths(pid, Path(f"/proc/{pid}/cgroup").read_bytes())
    return paths.get("memory") or paths.get("", "/")


def _for_process(pid: int, work: Callable[[int], Any]) -> Any:
    """Return what `work` returns in a helper process; it is given a descriptor of /proc/PID, which only PID has."""
    try:
        process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise EndedError(f"there is no process {pid}") from None
    try:
        if os.stat("ns/mnt", dir_fd=process).st_ino in host_mount_namespaces():
            raise AttachError(f"process {pid} is in no container: it has the host's own mounts")
        result = _in_helper(lambda: work(process))
        if _has_ended(process):
            raise EndedError(f"process {pid} has ended")
        return result
    except OSError as error:
        if _has_ended(process):
            raise EndedError(f"process {pid} has ended") from None
        if error.errno in (errno.EPERM, errno.EACCES):
            raise AttachError(
                f"the mounts of process {pid} are out of reach ({error.strerror}): run this as root, with CAP_SYS_ADMIN"
            ) from None
        raise AttachError(f"the mounts of process {pid} are out of reach: {error}") from None
    finally:
        os.close(process)


def _has_ended(process: int) -> bool:
    try:
        os.stat("ns/mnt", dir_fd=process)
    except OSError as error:
        return error.errno in _ENDED
    return False


def _in_helper(work: Callable[[], Any]) -> Any:
    """Return what `work` returns, as JSON has it, in a forked process. AttachError and OSError are passed on."""
    reader, writer = os.pipe()
    helper = os.fork()
    if not helper:
        _help(work, writer)
    os.close(writer)
    try:
        kind, *reply = json.loads(_read_reply(reader))
    finally:
        os.close(reader)
        _end(helper)
    if kind == "result":
        return reply[0]
    if kind == "OSError":
        raise OSError(*reply)
    raise AttachError(*reply) if kind == "AttachError" else RuntimeError(*reply)


def _help(work: Callable[[], Any], writer: int) -> NoReturn:
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # who waits for the end of our output must not wait for a helper that hangs
            os.dup2(null, standard)
        reply: tuple[Any, ...]
        try:
            reply = ("result", work())
        except AttachError as error:
            reply = ("AttachError", str(error))
        except OSError as error:
            reply = ("OSError", error.errno, error.strerror, error.filename)
        except Exception:
            reply = ("bug", traceback.format_exc())
        os.write(writer, json.dumps(reply).encode())  # far less than a pipe holds
    finally:
        os._exit(0)


def _read_reply(reader: int) -> bytes:
    reply = b""
    deadline = time.monotonic() + HELPER_SECONDS
    while select.select([reader], [], [], max(deadline - time.monotonic(), 0))[0]:
        part = os.read(reader, 1 << 16)
        if not part:
            return reply or b'["AttachError", "the helper process was killed"]'
        reply += part
    raise AttachError(f"a mount in it, or the daemon's, did not answer within {HELPER_SECONDS:.0f} s")


def _end(helper: int) -> None:
    """End the helper and reap it; one that the kernel does not let go, as it waits for some server, is left behind."""
    os.kill(helper, signal.SIGKILL)
    for _ in range(200):
        if os.waitpid(helper, os.WNOHANG)[0]:
            return
        time.sleep(0.005)


# In the helper process, which ends soon: nothing is closed there


class _Tree:
    """The /proc and /sys below a root that a process sees."""

    def __init__(self, process: int, root: int, hosts: Sequence[str] = ("self", "1")) -> None:
        self.peers_of_host = set()
        for pid in hosts:
            with contextlib.suppress(OSError):
                self.peers_of_host |= {mount.peers for mount in _mounts(os.open(f"/proc/{pid}", os.O_PATH)).values()}
        self._process = process
        self._root = root
        self._descriptors = os.open("/proc/self/fdinfo", os.O_PATH | os.O_DIRECTORY)

    def find(self, name: str) -> Optional[_Place]:
        """Return where a file is, None if there is none. _RefusedError if it is not the kernel's, or not to be seen."""
        kind, *between, last = name.split("/")
        try:
            directory = _open(kind, self._root, os.O_DIRECTORY)
        except OSError as error:
            raise _RefusedError(f"the container has no /{kind} ({error.strerror})") from None
        mounts = _mounts(self._process)
        base = mounts.get(self._mount_id(directory))
        if base is None or (base.mount.fstype, base.mount.root) != (_KERNEL_FILESYSTEMS[kind], "/"):
            raise _RefusedError(f"the container's /{kind} is not the kernel's own {_KERNEL_FILESYSTEMS[kind]}")
        try:
            for component in between:
                directory = _open(component, directory, os.O_DIRECTORY)
                if self._mount_id(directory) != base.id:
                    raise _RefusedError(f"the container has something else mounted over a directory of /{name}")
            file = _open(last, directory)
        except FileNotFoundError:
            return None
        top = mounts.get(self._mount_id(file))
        if top is None or (top.id != base.id and top.mount.fstype != FSTYPE):
            # A subtype of FUSE is the container's to choose: it may hold what a terminal or a log takes amiss. ascii()
            # needs no codec, which would have to be imported here, where the host's files are out of sight.
            what = ascii(top.mount.fstype)[1:-1] if top else "something else"
            raise _RefusedError(f"the container has {what} mounted over it")
        return _Place(directory, file, base, top)

    def _mount_id(self, descriptor: int) -> int:
        """Return the id of the mount that an open descriptor is on, without asking the filesystem."""
        text = _read(str(descriptor), self._descriptors)
        return int(text.partition(b"mnt_id:")[2].split()[0])


def _tree_of(process: int) -> _Tree:
    return _Tree(process, os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=process))


def _attach(process: int, mountpoint: str, device: str, names: Sequence[str]) -> list[Outcome]:
    tree = _tree_of(process)
    namespace = os.open("ns/mnt", os.O_RDONLY, dir_fd=process)
    # A clone of a shared mount would be shared too: what the container mounts over it would come over all containers.
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    clones = _clones(mountpoint, names)
    syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    return [_attempt(name, lambda name: _attach_file(tree, device, clones[name], name)) for name in names]


def _bind(root: str, mountpoint: str, device: str, names: Sequence[str]) -> list[Outcome]:
    # This mount namespace is the container's already: the host's is that of process 1.
    tree = _Tree(os.open("/proc/self", os.O_PATH), os.open(root, os.O_PATH | os.O_DIRECTORY), hosts=["1"])
    clones = _clones(mountpoint, names)
    return [_attempt(name, lambda name: _attach_file(tree, device, clones[name], name)) for name in names]


def _attach_file(tree: _Tree, device: str, clone: Optional[int], name: str) -> str:
    replaced = False
    while True:
        place = tree.find(name)
        if place is None:
            return "absent"
        if place.base.peers and place.base.peers in tree.peers_of_host:
            raise _RefusedError("the container shares its mounts with the host, where it would be mounted too")
        top = place.top.mount
        if (top.fstype, top.device, top.root) == (FSTYPE, device, f"/{name}"):
            return "kept"
        if clone is None:
            raise _RefusedError("the daemon does not serve it: is it enabled in the configuration, and that reloaded?")
        if place.top.id == place.base.id:
            syscalls.move_mount(clone, place.file)
            return "replaced" if replaced else "attached"
        if not _unmount(place, name):
            syscalls.move_mount(clone, place.file)
            return "replaced"
        replaced = True


def _detach(process: int, names: Sequence[str]) -> list[Outcome]:
    tree = _tree_of(process)
    syscalls.setns(os.open("ns/mnt", os.O_RDONLY, dir_fd=process), syscalls.CLONE_NEWNS)
    return [_attempt(name, lambda name: _detach_file(tree, name)) for name in names]


def _detach_file(tree: _Tree, name: str) -> str:
    detached = False
    while True:
        place = tree.find(name)
        if place is None or place.top.id == place.base.id:
            return "detached" if detached else "absent"
        if not _unmount(place, name):
            raise _RefusedError("it was there before the container's user namespace was made, which locks it there")
        detached = True


def _attempt(name: str, act: Callable[[str], str]) -> Outcome:
    try:
        return Outcome(name, act(name))
    except _RefusedError as error:
        return Outcome(name, "refused", str(error))
    except OSError as error:
        return Outcome(name, "refused", os.strerror(error.errno or 0))


def _clones(mountpoint: str, names: Sequence[str]) -> dict[str, Optional[int]]:
    """Return `_clone` of each file. AttachError."""
    if is_dead(mountpoint):  # the kernel may know its files nevertheless
        raise AttachError(f"the server of the mount at {mountpoint} has ended: start the daemon again")
    return {name: _clone(mountpoint, name) for name in names}


def _clone(mountpoint: str, name: str) -> Optional[int]:
    """Return a mount of the file that is mounted nowhere yet, None when it is not served. AttachError."""
    try:
        return syscalls.open_tree(f"{mountpoint}/{name}", syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise AttachError(
                f"this kernel ({os.uname().release}) cannot mount into a container that runs: Linux 5.2 or later can; "
                "bind the files when a container is created, as lxcfs-py mounts prints it"
            ) from None
        raise


def _unmount(place: _Place, name: str) -> bool:
    """Unmount what is on top at a place, unless a user namespace has locked it there: tell whether that was done."""
    os.fchdir(place.directory)  # named from within its directory, it is what was looked at
    try:
        syscalls.umount(os.path.basename(name), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _look(process: int, device: Optional[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the states of files, as Status has them."""
    tree = _tree_of(process)
    dead: dict[str, bool] = {}
    states = []
    for name in names:
        try:
            place = tree.find(name)
        except _RefusedError:
            states.append((name, "none"))
            continue
        if place is None:
            continue
        top = place.top.mount
        if place.top.id == place.base.id:
            states.append((name, "none"))
            continue
        if top.device not in dead:
            dead[top.device] = is_dead(f"/proc/self/fd/{place.file}")
        states.append((name, "dead" if dead[top.device] else "live" if top.device == device else "other"))
    return states


def _mounts(process: int) -> dict[int, _Mounted]:
    """Return the mounts that a process sees, by their ids, from /proc/PID/mountinfo."""
    mounts = {}
    for line in filter(None, os.fsdecode(_read("mountinfo", process)).split("\n")):
        (mount,) = mount_table.parse(line)
        number, _, _, _, _, _, *optional = line.partition(" - ")[0].split(" ")
        peers = next((field for field in optional if field.startswith("shared:")), "")
        mounts[int(number)] = _Mounted(int(number), peers, mount)
    return mounts


def _open(name: str, directory: int, flags: int = 0) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | flags, dir_fd=directory)


def _read(name: str, directory: int) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read()
