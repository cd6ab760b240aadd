"""A server for when none comes to serve a session that is kept: it needs the standard library alone, and no views.

Every known file shows the machine's text. It ends after a while, so that whoever started it starts the real one again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import stat
import time
from collections.abc import Iterator, Mapping

from lxcfs_py.engine import Tree, kernel, session, store
from lxcfs_py.files import DIRECTORIES, NAMES
from lxcfs_py.linux import roots, signals
from lxcfs_py.linux.notify import notify
from lxcfs_py.log import to_stderr

log = logging.getLogger(__name__)

STARTS = 10
"""Starts in a row that have failed when this one's turn comes; from then on it takes turns with the real one."""

_SECONDS = 30.0
_SIGN_OF_LIFE = 5.0
_MOUNTPOINT = "/var/lib/lxcfs"  # of a session whose memory file cannot tell


def is_due() -> bool:
    """Count a start, if something is kept for this process; tell whether this server's turn has come.

    Nothing is counted of a session that another process serves: whoever cannot take it over leaves it there.
    """
    kept = store.inherited().session(_MOUNTPOINT)
    if kept is None or session.is_served(kept.memory):
        return False
    kept.starts = STARTS + 1 if kept.starts == 255 else kept.starts + 1
    return kept.starts > STARTS and kept.starts % 2 == 1


def serve() -> int:
    """Serve what is kept; return 1 after a while, so that it is not taken for an end in order."""
    to_stderr()
    signals.ignore_all_but(signal.SIGTERM, signal.SIGINT)
    log.error(
        "%d starts in a row have failed: for %.0f s, every container sees the machine's own figures", STARTS, _SECONDS
    )
    roots.take()
    kept = store.inherited().session(_MOUNTPOINT)
    if kept is None:
        return 1
    store.inherited().put(kept)
    kernel.Server(Machine(), kept, 2).start()
    _tell("READY=1\nSTATUS=Degraded: no server starts; every container sees the machine's own figures")
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        time.sleep(_SIGN_OF_LIFE)
        _tell("WATCHDOG=1")
    return 1


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # whoever does not listen: readers are served
        notify(text)


class Machine(Tree):
    """The machine's own files, for everybody."""

    def getattr(self, caller: int, path: str) -> Mapping[str, float]:
        """Return what the machine says of a known file."""
        if not _is_known(path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        mode = os.lstat(_real(path)).st_mode if _is_within(path) or path[1:] in NAMES else stat.S_IFDIR | 0o555
        mode = mode & ~0o222 if path != "/proc/slabinfo" else stat.S_IFREG | 0o444
        return {"st_mode": mode, "st_nlink": 2 if stat.S_ISDIR(mode) else 1, "st_uid": 0xFFFFFFFF, "st_gid": 0}

    def attributes(self, path: str) -> Mapping[str, float]:
        """Return the same."""
        return self.getattr(0, path)

    def readlink(self, caller: int, path: str) -> str:
        """Return where a link of the machine's points to."""
        return os.readlink(_real(path))

    def readdir(self, caller: int, path: str) -> list[str]:
        """Return the names of what is known."""
        return [".", "..", *sorted(self._names(path))]

    def _names(self, path: str) -> set[str]:
        if _is_within(path):
            if os.path.islink(_real(path)):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            return set(os.listdir(_real(path)))
        above = path.rstrip("/") + "/"
        return {f"/{name}"[len(above) :].partition("/")[0] for name in NAMES if f"/{name}".startswith(above)}

    def access(self, caller: int, path: str, mode: int) -> None:
        """Refuse to write."""
        if mode & os.W_OK:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def open(self, caller: int, path: str, flags: int) -> None:
        """Refuse to write, and to read what the kernel keeps for root."""
        if flags & os.O_ACCMODE or not int(self.getattr(caller, path)["st_mode"]) & stat.S_IROTH:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)

    def render(self, caller: int, path: str) -> bytes:
        """Return the machine's text; of slabinfo, which the kernel shows to root alone, the header."""
        with open(_real(path), "rb") as file:
            return b"".join(file.readlines()[:2]) if path == "/proc/slabinfo" else file.read()

    def trigger(self, caller: int, path: str, text: bytes) -> str:
        """Refuse: the server that follows takes triggers."""
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)

    def arm(self, trigger: str, owner: str) -> None:
        """Let none fire; the server that follows arms it."""

    def renewed(self, trigger: str) -> str:
        """Leave it to the server that follows."""
        return trigger

    def lengths(self) -> Mapping[str, int]:
        """Return none: who is served for so short a time has mostly been told by the server before."""
        return {}

    def statfs(self) -> Mapping[str, int]:
        """Return the figures of an empty filesystem."""
        return {"f_bsize": 4096, "f_frsize": 4096, "f_namemax": 255}

    def paths(self) -> Iterator[str]:
        """Yield all that is known."""
        waiting = ["/"]
        while waiting:
            path = waiting.pop()
            yield path
            try:
                names = self._names(path)
            except OSError:  # it is none, or is gone
                continue
            waiting += [f"{path.rstrip('/')}/{name}" for name in names]


def _is_within(path: str) -> bool:
    """Tell whether a path is one of the directories that are served whole, or below."""
    return any(f"{path}/".startswith(f"/{name}/") for name in DIRECTORIES)


def _is_known(path: str) -> bool:
    above = path.rstrip("/") + "/"
    return _is_within(path) or any(f"/{name}/".startswith(above) for name in NAMES)


def _real(path: str) -> str:
    return roots.PROC + path[5:] if path.startswith("/proc") else roots.SYS + path[4:]
