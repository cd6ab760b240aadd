"""Put the views into containers that already run, take them out again, and tell which has them.

For each container a process is forked. It clones the host's mounts of the files (open_tree(2)), enters the
container's mount namespace (setns(2)) and moves the clones onto the container's files (move_mount(2)). Nothing is
executed in the container, and what it arranged there is not trusted (places.py). What may keep that process waiting
are FUSE filesystems: the container's root, asked for its /proc and /sys, and a mount of which is to be known whether
its server lives. Therefore it has a deadline (visits.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from lxcfs_py.attach import mount_users, places, processes, running, servers
from lxcfs_py.attach.errors import AttachError as AttachError
from lxcfs_py.attach.errors import EndedError as EndedError
from lxcfs_py.attach.errors import LeftAloneError as LeftAloneError
from lxcfs_py.attach.errors import SilentError as SilentError
from lxcfs_py.attach.places import Place, RefusedError, Tree
from lxcfs_py.attach.visits import Ask, Visits
from lxcfs_py.errors import of_system
from lxcfs_py.linux import syscalls
from lxcfs_py.linux.mountpoint import FSTYPE, is_dead
from lxcfs_py.runtimes.names import opt_out_in

ENGINE_SECONDS = 30.0

HIDDEN = "hidden"
"""Of a file that a container's engine has masked: it sees none, and is to see none."""

_MAX_ENVIRONMENT = 1 << 16  # bytes


class Outcome(NamedTuple):
    """What became of one file."""

    name: str
    """As in files.NAMES; "" for what concerns all of them."""

    result: str
    """attached, replaced (another server's mount), kept (it was there), other (another living server's, kept),
    detached, absent (nothing to do), hidden (by the container's engine), refused; "left alone" and "ended" where `name`
    is ""."""

    reason: str = ""
    """Of a refusal, and of what is left alone."""


class Wanted(NamedTuple):
    """What is to be done with files that are there."""

    replace: bool = False
    """Also replace, or take out, what another server has there that lives or does not answer."""

    only_dead: bool = False
    """Leave alone what is not a dead server's."""

    dry_run: bool = False
    """Change nothing, and tell what would be."""

    opt_outs: bool = False
    """Leave alone a container that opts out by its environment."""


DEFAULT = Wanted()


class Status(NamedTuple):
    """Which files a container has."""

    pid: int
    """Its init; or, with `within`, a process in a mount namespace of its own in a container."""

    cgroup: str
    files: dict[str, str]
    """By name: live (this mount's), other (of another server that lives), dead (its server has ended), silent (its
    server does not answer), hidden (by the container's engine), none."""

    error: str = ""
    """Why there is nothing in `files`."""

    within: int = 0
    """The init of the container that this mount namespace is in; 0 for a container itself."""


def attach(pid: int, mountpoint: str, names: Sequence[str], wanted: Wanted = DEFAULT) -> list[Outcome]:
    """Mount files of the mount at `mountpoint` over those that a process sees, where they are not mounted already.

    What a dead server's mount has there is replaced. AttachError.
    """
    return _one(attach_all([pid], mountpoint, names, wanted))


def attach_all(pids: Sequence[int], mountpoint: str, names: Sequence[str], wanted: Wanted = DEFAULT) -> list[Any]:
    """Do what `attach` does for many, side by side; return for each its outcomes, or the AttachError."""
    device = _device(mountpoint)
    visits = Visits()
    states = servers.states((use for use in _uses(pids, names) if use.device != device), visits)
    work = partial(_attach, mountpoint, device, names, wanted, states)
    return _outcomes(pids, work, visits)


def detach(pid: int, mountpoint: str, names: Sequence[str], wanted: Wanted = DEFAULT) -> list[Outcome]:
    """Unmount files of the mount at `mountpoint`, and of dead servers, from over those that a process sees.

    AttachError.
    """
    return _one(detach_all([pid], mountpoint, names, wanted))


def detach_all(pids: Sequence[int], mountpoint: str, names: Sequence[str], wanted: Wanted = DEFAULT) -> list[Any]:
    """Do what `detach` does for many, side by side; return for each its outcomes, or the AttachError."""
    visits = Visits()
    states = servers.states(_uses(pids, names), visits)
    return _outcomes(pids, partial(_detach, mount_users.device(mountpoint), names, wanted, states), visits)


def bind(root: str, mountpoint: str, names: Sequence[str]) -> list[Outcome]:
    """Do what `attach` does, in this mount namespace, for a container whose root is a directory yet. AttachError."""
    device = _device(mountpoint)
    whole = running.whole_mount(running.mounts("self"), os.path.realpath(root))
    if whole:
        raise LeftAloneError(f"a whole mount of lxcfs stands in the container, at {ascii(whole)[1:-1]}")
    try:
        return [Outcome(*each) for each in Visits().one(partial(_bind, root, mountpoint, device, names))]
    except OSError as error:
        raise AttachError(f"the mounts of a container at {root} cannot be made: {of_system(error)}") from None


def status(mountpoint: str, names: Sequence[str]) -> Iterator[Status]:
    """Yield for each container which of the files it has. What the kernel does not have is left out.

    After each come the mount namespaces within it that have a /proc or /sys of their own and miss some file.
    """
    found = running.processes()
    return _statuses(
        mountpoint,
        names,
        [
            (process.pid, container.pid if process is not container else 0)
            for container in running.containers(found)
            for process in (container, *running.within(container, found, deep=False))
        ],
    )


def status_of(pid: int, mountpoint: str, names: Sequence[str]) -> Optional[Status]:
    """Return which of the files a process sees, whether or not it is a container's first; None where it has ended."""
    return next(_statuses(mountpoint, names, [(pid, 0)]), None)


def _statuses(mountpoint: str, names: Sequence[str], seen: Sequence[tuple[int, int]]) -> Iterator[Status]:
    """Yield the status of processes, each given with the init of the container that it is within, or 0."""
    pids = [pid for pid, _ in seen]
    visits = Visits()
    own = mount_users.device(mountpoint)
    work = partial(_look, names, own, servers.states(_uses(pids, names), visits))
    for (pid, init), look in zip(seen, processes.each([(pid, work) for pid in pids], visits)):
        try:
            cgroup = running.cgroup(pid)
        except OSError:
            continue
        if isinstance(look, EndedError):
            continue
        if isinstance(look, Exception):
            yield Status(pid, cgroup, {}, str(look), init)
        elif not init or set(dict(look).values()) - {HIDDEN} != {servers.LIVE}:
            yield Status(pid, cgroup, dict(look), "", init)


def unserved(pid: int, names: Sequence[str]) -> dict[tuple[str, str], list[str]]:
    """Return the files that a process has of servers that live no more, by how such a one is and by its device."""
    found: dict[tuple[str, str], list[str]] = {}
    uses = {use.path: use for use in _uses([pid], names)}.values()  # of two at one path, the upper one
    states = servers.states(uses, Visits())
    for use in uses:
        state = states.get(use.device, servers.LIVE)
        if state != servers.LIVE:
            found.setdefault((state, use.device), []).append(use.path)
    return found


def targets(init: int) -> list[int]:
    """Return a process, and one of each mount namespace within its container that has its own /proc or /sys."""
    found = running.processes()
    inside = [each for each in found if each.pid == init]
    return [init, *(each.pid for container in inside for each in running.within(container, found, deep=True))]


def all_targets() -> dict[int, list[int]]:
    """Return `targets` of all containers by their inits, each mount namespace once."""
    found = running.processes()
    return {
        container.pid: [container.pid, *(each.pid for each in running.within(container, found, deep=False))]
        for container in running.containers(found)
    }


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


def _one(answers: list[Any]) -> list[Outcome]:
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return list(answer)


def _device(mountpoint: str) -> str:
    device = mount_users.device(mountpoint)
    if device is None:
        raise AttachError(f"nothing is mounted at {mountpoint}; start the daemon: lxcfs-py run {mountpoint}")
    return device


def _outcomes(pids: Sequence[int], work: Callable[..., list[Outcome]], visits: Visits) -> list[Any]:
    """Return for each process the outcomes of its files, or the AttachError."""
    answers = processes.each([(pid, partial(work, pid)) for pid in pids], visits)
    return [[Outcome(*each) for each in answer] if isinstance(answer, list) else answer for answer in answers]


def _uses(pids: Iterable[int], names: Sequence[str]) -> Iterator[servers.Use]:
    """Yield which files of servers stand over some of a process's files."""
    paths = {f"/{name}" for name in names}
    for pid in pids:
        with contextlib.suppress(EndedError):
            for mount in running.mounts(pid):
                if mount.fstype == FSTYPE and mount.mountpoint in paths:
                    yield servers.Use(mount.device, pid, mount.mountpoint)


def _state(place: Place, own: Optional[str], states: Mapping[str, str]) -> str:
    """Return a file's state as Status has it; "other" where it cannot be told whether its server lives."""
    if place.is_bare:
        return "none"
    device = place.top.mount.device
    state = states.get(device, servers.LIVE)
    return "other" if state == servers.LIVE and device != own else state


# In a process of its own, which ends soon: nothing is closed there


def _attach(
    mountpoint: str,
    device: str,
    names: Sequence[str],
    wanted: Wanted,
    states: Mapping[str, str],
    pid: int,
    process: int,
    ask: Ask,
) -> list[Outcome]:
    reason = running.serves(pid)
    if reason:
        raise LeftAloneError(reason)
    if wanted.opt_outs:
        environment = places.read("environ", process, _MAX_ENVIRONMENT).decode(errors="replace").split("\0")
        opt_out = opt_out_in(environment)
        if opt_out:
            raise LeftAloneError(f"it opts out by its environment: {opt_out}")
    tree = places.tree_of(process, ask)
    namespace = os.open("ns/mnt", os.O_RDONLY, dir_fd=process)
    # A clone of a shared mount would be shared too: what the container mounts over it would come over all containers.
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    clones = _clones(mountpoint, device, names, ask)
    syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    return [
        _attempt(name, lambda name: _attach_file(tree, device, clones[name], name, wanted, states)) for name in names
    ]


def _bind(root: str, mountpoint: str, device: str, names: Sequence[str], ask: Ask) -> list[Outcome]:
    # This mount namespace is the container's already: the host's is that of process 1.
    tree = Tree(os.open("/proc/self", os.O_PATH), os.open(root, os.O_PATH | os.O_DIRECTORY), ask, hosts=["1"])
    clones = _clones(mountpoint, device, names, ask)
    wanted = Wanted(replace=True)
    return [_attempt(name, lambda name: _attach_file(tree, device, clones[name], name, wanted, {})) for name in names]


def _attach_file(
    tree: Tree, device: str, clone: Optional[int], name: str, wanted: Wanted, states: Mapping[str, str]
) -> str:
    replaced = False
    while True:
        place = tree.find(name)
        if place is None:
            return "absent"
        if place.base.peers and place.base.peers in tree.peers_of_host:
            raise RefusedError("the container shares its mounts with the host, where it would be mounted too")
        top = place.top.mount
        if (top.fstype, top.device, top.root) == (FSTYPE, device, f"/{name}"):
            return "replaced" if replaced else "kept"
        state = _state(place, device, states)
        if wanted.only_dead and state == "none" and not replaced:
            return "absent"
        if state in ("other", "silent") and not wanted.replace:
            return "other"
        if clone is None:
            raise RefusedError("the daemon does not serve it: is it enabled in the configuration, and that reloaded?")
        tree.check_below(name, place)
        if wanted.dry_run:
            return "attached" if place.is_bare else "replaced"
        if place.is_bare:
            syscalls.move_mount(clone, place.file)
            return "replaced" if replaced else "attached"
        if not _unmount(place, name):
            syscalls.move_mount(clone, place.file)
            return "replaced"
        replaced = True


def _detach(
    own: Optional[str], names: Sequence[str], wanted: Wanted, states: Mapping[str, str], _: int, process: int, ask: Ask
) -> list[Outcome]:
    tree = places.tree_of(process, ask)
    syscalls.setns(os.open("ns/mnt", os.O_RDONLY, dir_fd=process), syscalls.CLONE_NEWNS)
    return [_attempt(name, lambda name: _detach_file(tree, own, name, wanted, states)) for name in names]


def _detach_file(tree: Tree, own: Optional[str], name: str, wanted: Wanted, states: Mapping[str, str]) -> str:
    detached = False
    while True:
        place = tree.find(name)
        if place is None or place.is_bare:
            return "detached" if detached else "absent"
        is_own = place.top.mount.device == own
        is_dead = _state(place, own, states) == servers.DEAD
        if not (is_dead or (not wanted.only_dead and (is_own or wanted.replace))):
            return "detached" if detached else "kept" if is_own else "other"
        if wanted.dry_run:
            return "detached"
        if not _unmount(place, name):
            raise RefusedError("it was there before the container's user namespace was made, which locks it there")
        detached = True


def _attempt(name: str, act: Callable[[str], str]) -> Outcome:
    try:
        return Outcome(name, act(name))
    except places.HiddenError:
        return Outcome(name, HIDDEN)
    except RefusedError as error:
        return Outcome(name, "refused", str(error))
    except OSError as error:
        return Outcome(name, "refused", os.strerror(error.errno or 0))


def _clones(mountpoint: str, device: str, names: Sequence[str], ask: Ask) -> dict[str, Optional[int]]:
    """Return `_clone` of each file. AttachError."""
    ask(device, f"the daemon's mount at {mountpoint}")
    if is_dead(mountpoint):  # the kernel may know its files nevertheless
        raise AttachError(f"the server of the mount at {mountpoint} has ended: start the daemon again")
    return {name: _clone(mountpoint, name) for name in names}


def _clone(mountpoint: str, name: str) -> Optional[int]:
    """Return a mount of the file that is mounted nowhere yet, None when it is not served. AttachError."""
    try:
        return syscalls.clone_mount(f"{mountpoint}/{name}")
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise AttachError(
                f"this kernel ({os.uname().release}) cannot mount into a container that runs: Linux 5.2 or later can; "
                "bind the files when a container is created, as lxcfs-py mounts prints it"
            ) from None
        raise


def _unmount(place: Place, name: str) -> bool:
    """Unmount what is on top at a place, unless a user namespace has locked it there: tell whether that was done."""
    os.fchdir(place.directory)  # named from within its directory, it is what was looked at
    try:
        syscalls.umount(os.path.basename(name), syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def _look(names: Sequence[str], own: Optional[str], states: Mapping[str, str], process: int, ask: Ask) -> list[Any]:
    """Return the states of files, as Status has them."""
    tree = places.tree_of(process, ask)
    found = []
    for name in names:
        try:
            place = tree.find(name)
            if place is not None:
                tree.check_below(name, place)
        except places.HiddenError:
            found.append((name, HIDDEN))
            continue
        except RefusedError:
            found.append((name, "none"))
            continue
        if place is not None:
            found.append((name, _state(place, own, states)))
    return found
