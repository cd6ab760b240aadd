"""Where the files of a container are: its /proc and /sys, entered one component at a time.

What a container arranged there is not trusted: symbolic links are not followed, and only what the mount table says is
the kernel's own is entered.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Optional

from lxcfs_py.attach.errors import AttachError
from lxcfs_py.attach.visits import Ask
from lxcfs_py.errors import LxcfsError
from lxcfs_py.files import FILES
from lxcfs_py.linux import mount_table
from lxcfs_py.linux.mount_table import Mount
from lxcfs_py.linux.mountpoint import FSTYPE

# What a container's /proc and /sys have to be.
_KERNEL_FILESYSTEMS = {"proc": "proc", "sys": "sysfs"}

_MAX_MOUNTINFO = 16 << 20  # bytes


class RefusedError(LxcfsError):
    """Why a file is left alone."""


class HiddenError(RefusedError):
    """The container's engine has hidden the file from it."""


class Mounted(NamedTuple):
    """A mount with what else the kernel says of it."""

    id: int
    parent: int
    """The id of the mount that it is on."""

    peers: str
    """The peer group that it is in, "shared:7", "" when mounts below it stay in its mount namespace."""

    mount: Mount


class Place(NamedTuple):
    """Where a file of the container's is: open descriptors, and what is mounted at it."""

    directory: int
    file: int
    base: Mounted
    """The container's /proc or /sys."""

    top: Mounted
    """The base, or a mount of FSTYPE over the file."""

    @property
    def is_bare(self) -> bool:
        """True when nothing is mounted over the file."""
        return self.top.id == self.base.id


class Tree:
    """The /proc and /sys below a root that a process sees. Its descriptors are closed by the process's end."""

    def __init__(self, process: int, root: int, ask: Ask, hosts: Sequence[str] = ("self", "1")) -> None:
        """`process` and `root` are descriptors; `hosts` are processes in the host's mount namespace."""
        self.peers_of_host: set[str] = set()
        for pid in hosts:
            with contextlib.suppress(OSError):
                seen = mounts(os.open(f"/proc/{pid}", os.O_PATH), most=-1)
                self.peers_of_host |= {mount.peers for mount in seen.values()}
        self._process = process
        self._root = root
        self._descriptors = os.open("/proc/self/fdinfo", os.O_PATH | os.O_DIRECTORY)
        below = mounts(process).get(self._mount_id(root))
        self._ask_root = partial(ask, below.mount.device if below else "", "the container's root filesystem")

    def find(self, name: str) -> Optional[Place]:
        """Return where a file is, None if there is none. RefusedError if it is not the kernel's, or not to be seen.

        HiddenError where it is hidden as engines do it. SilentError if the root is known not to answer.
        """
        kind, *between, last = name.split("/")
        self._ask_root()
        try:
            directory = _open(kind, self._root, os.O_DIRECTORY)
        except OSError as error:
            raise RefusedError(f"the container has no /{kind} ({error.strerror})") from None
        seen = mounts(self._process)
        base = seen.get(self._mount_id(directory))
        if base is None or (base.mount.fstype, base.mount.root) != (_KERNEL_FILESYSTEMS[kind], "/"):
            raise RefusedError(f"the container's /{kind} is not the kernel's own {_KERNEL_FILESYSTEMS[kind]}")
        try:
            for component in between:
                directory = _open(component, directory, os.O_DIRECTORY)
                if self._mount_id(directory) != base.id:
                    raise RefusedError(f"the container has something else mounted over a directory of /{name}")
            file = _open(last, directory)
        except FileNotFoundError:
            return None
        top = seen.get(self._mount_id(file))
        if top is not None and _is_mask(top.mount):
            raise HiddenError("it is masked")
        if top is None or (top.id != base.id and top.mount.fstype != FSTYPE):
            # A subtype of FUSE is the container's to choose: it may hold what a terminal or a log takes amiss. ascii()
            # needs no codec, which would have to be imported here, where the host's files are out of sight.
            what = ascii(top.mount.fstype)[1:-1] if top else "something else"
            raise RefusedError(f"the container has {what} mounted over it")
        return Place(directory, file, base, top)

    def check_below(self, name: str, place: Place) -> None:
        """Raise RefusedError where something is mounted below a bare directory: a mount over that would uncover it.

        Files of this kind are let pass, and engines' masks of what is empty in the daemon's directory.
        """
        if not (place.is_bare and FILES[name].is_directory):
            return
        path = f"{place.base.mount.mountpoint}/{name.partition('/')[2]}/"
        for each in mounts(self._process).values():
            mount = each.mount
            if each.parent != place.base.id or not mount.mountpoint.startswith(path) or mount.fstype == FSTYPE:
                continue
            below = mount.mountpoint[len(path) :]
            if not _is_mask(mount):
                raise RefusedError(
                    f"the container has {ascii(mount.fstype)[1:-1]} mounted at {ascii(below)[1:-1]} in it"
                )
            if not re.fullmatch(FILES[name].masked, below):
                raise RefusedError(f"the container's engine has masked {ascii(below)[1:-1]} in it")

    def open(self, path: str) -> tuple[int, str]:
        """Return a descriptor of what stands at a path, without following links, and the device that it is on.

        OSError.
        """
        *between, last = path.strip("/").split("/")
        directory = self._root
        self._ask_root()
        for component in between:
            directory = _open(component, directory, os.O_DIRECTORY)
        descriptor = _open(last, directory)
        top = mounts(self._process).get(self._mount_id(descriptor))
        return descriptor, top.mount.device if top else ""

    def _mount_id(self, descriptor: int) -> int:
        """Return the id of the mount that an open descriptor is on, without asking the filesystem."""
        text = read(str(descriptor), self._descriptors)
        return int(text.partition(b"mnt_id:")[2].split()[0])


def tree_of(process: int, ask: Ask) -> Tree:
    """Return what a process sees, of which a descriptor of /proc/PID is given."""
    return Tree(process, os.open("root", os.O_PATH | os.O_DIRECTORY, dir_fd=process), ask)


def mounts(process: int, most: int = _MAX_MOUNTINFO) -> dict[int, Mounted]:
    """Return the mounts that a process sees, by their ids, from /proc/PID/mountinfo. AttachError if it is too long."""
    found = {}
    text = read("mountinfo", process, most)
    if len(text) == most:
        raise AttachError(f"the container has too many mounts: what the kernel says of them exceeds {most >> 20} MiB")
    for line in filter(None, text.decode("utf-8", "surrogateescape").split("\n")):
        (mount,) = mount_table.parse(line)
        number, parent, _ = line.split(" ", 2)
        peers = next((field for field in mount.propagation if field.startswith("shared:")), "")
        found[int(number)] = Mounted(int(number), int(parent), peers, mount)
    return found


def read(name: str, directory: int, size: int = -1) -> bytes:
    """Return what a file of the kernel's holds, or its first `size` bytes. OSError."""
    with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
        return file.read(size)


def _is_mask(mount: Mount) -> bool:
    """Tell whether a mount is what engines put over masked paths: an empty directory that stays so, or /dev/null."""
    if mount.root == "/null":
        return mount.fstype in ("tmpfs", "devtmpfs")
    return (mount.fstype, mount.root, mount.options.split(",")[0]) == ("tmpfs", "/", "ro")


def _open(name: str, directory: int, flags: int = 0) -> int:
    return os.open(name, os.O_PATH | os.O_NOFOLLOW | flags, dir_fd=directory)
