"""The fusepy library as an engine: libfuse 2 (fusepy) or libfuse 3 (its fork mfusepy)."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Callable, Optional, TypeVar

from lxcfs_py.container.owners import Owners
from lxcfs_py.engine import Tree
from lxcfs_py.engine.sizes import Sizes, has_end

# Debian installs the module as fusepy, PyPI as fuse. OSError (EnvironmentError) when libfuse 2 is missing, as on
# Debian 14: mfusepy takes libfuse 3 too.
try:
    import fusepy as _fuse
except (ImportError, OSError):
    try:
        import fuse as _fuse
    except (ImportError, OSError):
        import mfusepy as _fuse

_LIBFUSE = getattr(_fuse, "fuse_version_major", 2)  # mfusepy says which it has found

# Nothing about the tree changes: the kernel need not ask for names again.
_TIMEOUT_SECONDS = 3600

_T = TypeVar("_T")


_MAX_TEXT_BYTES = 64 << 20
"""What the texts of open files may take together: a container can open as many files as it likes."""


class Texts:
    """The texts of open files by handle. When they take too much room, the oldest go of who has the most."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[str, bytes]] = {}
        self._sizes: Counter[str] = Counter()

    def get(self, handle: int) -> Optional[bytes]:
        """Return the text, None for an unknown handle."""
        return self._texts.get(handle, (None, None))[1]

    def put(self, handle: int, text: bytes, owner: str) -> None:
        """Keep a text in place of the one before."""
        self.drop(handle)
        self._sizes[owner] += len(text)
        self._texts[handle] = owner, text
        while sum(self._sizes.values()) > _MAX_TEXT_BYTES:
            most = max(self._sizes, key=lambda name: self._sizes[name])
            self.drop(next(handle for handle, (owner, _) in self._texts.items() if owner == most))

    def drop(self, handle: int) -> None:
        """Forget a text, if there is one."""
        owner, text = self._texts.pop(handle, ("", b""))
        self._sizes[owner] -= len(text)
        if not self._sizes[owner]:
            del self._sizes[owner]


class Operations:
    """A tree as fusepy's Operations. libfuse has one thread: one of them runs at a time."""

    def __init__(self, tree: Tree) -> None:
        self.answers = threading.Event()
        """Set when libfuse has begun to answer the kernel.

        A process must not ask its own mount: killed while it waits for its own answer, it could not even die.
        """

        self.directory: Optional[int] = None
        """Where this process is to be, as a descriptor: the paths of the machine's own files may begin there."""

        self._tree = tree
        self._texts = Texts()
        self._sizes = Sizes(tree.lengths())
        self._owners = Owners()
        self._handles = itertools.count(1)
        self._since: Optional[float] = None

    def stuck(self, limit: float) -> Optional[str]:
        """Say that one operation has taken for over so many seconds, None when it is not so."""
        since = self._since
        if since is None or time.monotonic() - since <= limit:
            return None
        return f"libfuse's thread has been at one operation for over {limit:g} s"

    # fusepy calls an operation by its name, its fork mfusepy as a method.

    def __call__(self, operation: str, *arguments: Any) -> Any:
        """Run one operation."""
        return getattr(self, operation)(*arguments)

    def init(self, path: str) -> None:
        """Take note that it begins. libfuse 3 has gone to / for that."""
        if self.directory is not None:
            os.fchdir(self.directory)
        self.answers.set()

    def getattr(self, path: str, file: Any = None) -> Mapping[str, Any]:
        """Return a file's attributes. EINVAL for lseek(2), which alone asks by an open file, where that has no end."""
        attributes = self._run(self._tree.getattr, path)
        if not stat.S_ISREG(attributes["st_mode"]):
            return {**attributes, "st_size": 0}
        if file is not None and not has_end(path, attributes["st_mode"]):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        size = self._sizes.of(path)
        sizes = {"st_size": size, "st_blksize": size, "st_blocks": (size + 511) // 512}
        return {**attributes, **sizes, "st_mode": attributes["st_mode"] & ~0o222}

    def readlink(self, path: str) -> str:
        """Return where a link points to."""
        return self._run(self._tree.readlink, path)

    def readdir(self, path: str, handle: int) -> list[str]:
        """Return the names in a directory."""
        return self._run(self._tree.readdir, path)

    def access(self, path: str, mode: int) -> None:
        """Tell, by an errno, what may not be done."""
        self._run(self._tree.access, path, mode)

    def open(self, path: str, file: Any) -> int:
        """Give an open file, a struct fuse_file_info, its handle. EACCES for writing: this engine has no poll(2)."""
        if file.flags & os.O_ACCMODE:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        self._run(self._tree.open, path, file.flags)
        file.fh = next(self._handles)
        file.direct_io = 1
        return 0

    def truncate(self, path: str, *_: Any) -> None:
        """Refuse it, as `open` does for writing. EACCES."""
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def change(self, path: str, *_: Any) -> None:
        """Refuse a change of attributes. EROFS. Those of directories the kernel refuses, as nobody is their user."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    chmod = chown = utimens = change

    def read(self, path: str, size: int, offset: int, file: Any) -> bytes:
        """Return a part of the text, which is rendered afresh whenever a reader starts at offset 0.

        EINVAL where nobody is named who reads: this is for the page cache, where the next reader would find it.
        """
        if not file.lock_owner:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        text = self._texts.get(file.fh) if offset else None
        if text is None:
            text = self._run(self._tree.render, path)
            uid, _, pid = _fuse.fuse_get_context()
            self._texts.put(file.fh, text, self._owners.of(int(pid), int(uid)))
            self._sizes.note(path, len(text))
        return text[offset : offset + size]

    def release(self, path: str, file: Any) -> None:
        """Close a file."""
        self._texts.drop(file.fh)

    def statfs(self, path: str) -> Mapping[str, int]:
        """Return the filesystem's figures."""
        return self._tree.statfs()

    def _run(self, operation: Callable[..., _T], *arguments: Any) -> _T:
        """Ask the tree, for the process whose request is at hand: pid 0 when it has none in this pid namespace."""
        self._since = time.monotonic()
        try:
            return operation(int(_fuse.fuse_get_context()[2]), *arguments)
        finally:
            self._since = None


def serve(tree: Tree, mountpoint: str) -> None:
    """Mount `tree` at `mountpoint` and serve it until it is unmounted. RuntimeError as `run` has it."""
    run(Operations(tree), mountpoint)


def run(operations: Operations, mountpoint: str, options: str = "") -> None:
    """Mount, with more options of mount(2) if there are any, and serve until unmounted.

    RuntimeError when libfuse cannot mount; it has said why on stderr.

    One thread: libfuse's threads are new to Python with every request, and wait for each other all the same.
    """
    operations.directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        _fuse.FUSE(
            operations,
            mountpoint,
            raw_fi=True,
            foreground=True,
            nothreads=True,
            nonempty=_LIBFUSE < 3,  # later ones mount over whatever is there, and do not know the option
            allow_other=os.geteuid() == 0,
            entry_timeout=_TIMEOUT_SECONDS,
            attr_timeout=0,  # without, lseek(2) would not ask
            fsname="lxcfs",
            subtype="lxcfs",
            **({options: True} if options else {}),  # which stand behind -o as they are
        )
    finally:
        os.close(operations.directory)
