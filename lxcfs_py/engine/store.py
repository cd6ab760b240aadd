"""The descriptors of a session, as whoever started this process keeps them: systemd's descriptor store, or a keeper.

What is kept is neither removed nor stored again, and what is new is stored before the old is let go: this process may
be killed between any two system calls, and its successor must find the session.
"""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Callable, Optional

from lxcfs_py.engine import parcel
from lxcfs_py.engine.session import Session, session_of
from lxcfs_py.linux.notify import SECONDS, notify

# Of a session's descriptors in the store. A new session takes the name that an old one has not.
NAMES = ("lxcfs", "lxcfs-2")

_MOUNTS = ("mount", "mount-2")
"""Of a parcel with a mount that stands nowhere. A new one takes the name that the one before has not."""


class Store:
    """What was kept for this process when it started, and what it gives to be kept."""

    def __init__(self) -> None:
        """Take what the environment of sd_listen_fds(3) hands to this process, and from its children."""
        pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
        self._kept: dict[str, list[int]] = {}
        self._session: Optional[Session] = None
        self.others: dict[str, int] = {}
        """What is kept beside the session, by name: see `keep`."""

        self._before_handing_over: list[Callable[[], None]] = []
        if pid == str(os.getpid()):
            for fd, name in zip(range(3, 3 + int(count or 0)), names.split(":")):
                os.set_inheritable(fd, False)
                if name in NAMES:
                    self._kept.setdefault(name, []).append(fd)
                else:
                    self.others[name] = fd

    def session(self, mountpoint: str) -> Optional[Session]:
        """Return the session that is kept; None where there is none. Another process may serve it.

        It is at `mountpoint` if its memory file cannot tell any more: at what the last caller says.
        """
        if self._session is None:
            sessions = (session_of(descriptors, mountpoint) for descriptors in self._kept.values())
            self._session = next(filter(None, sessions), None)
        elif self._session.is_salvaged:
            self._session.move(mountpoint)
        return self._session

    def keep(self, name: str, descriptor: int, seconds: float = SECONDS) -> None:
        """Let a descriptor beside the session's be kept, under a name that no other has. OSError as `notify` has it.

        This process has it from now on in any case.
        """
        self.others[name] = descriptor
        notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [descriptor], seconds)

    def forget(self, name: str) -> None:
        """Let go of what was kept under a name. OSError."""
        self.others.pop(name, None)
        notify(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def keep_mount(self, mount: int) -> None:
        """Let a mount that stands nowhere be kept, in place of the one before. OSError."""
        before = [name for name in _MOUNTS if name in self.others]
        name = next((name for name in _MOUNTS if name not in before), None)
        if name is None:  # nobody listened when the latest was to be kept
            name = [each for each in self.others if each in _MOUNTS][-1]
            os.close(self.others.pop(name))
        self.keep(name, parcel.pack(mount))
        for other in before:
            if other != name:
                os.close(self.others[other])
                self.forget(other)

    def mount(self) -> Optional[int]:
        """Return the mount that is kept, in a descriptor that is the caller's; None where there is none."""
        for name in _MOUNTS:
            with contextlib.suppress(KeyError, OSError):
                return parcel.unpack(self.others[name])
        return None

    def before_handing_over(self, stop: Callable[[], None]) -> None:
        """Call `stop` before all is handed over to another process: nothing may be kept any more after that."""
        self._before_handing_over.append(stop)

    def hand_over(self) -> dict[str, int]:
        """Return what is kept beside the session, by name, for another process to take."""
        for stop in self._before_handing_over:
            stop()
        return dict(self.others)

    def put(self, session: Session) -> bool:
        """Let a session be kept, and let go of others, whose mounts are gone. False if nobody offers to keep it.

        Without FDPOLL=0, each request would wake systemd, which watches for the descriptor's end.
        """
        if "NOTIFY_SOCKET" not in os.environ:
            return False
        name = next((name for name, kept in self._kept.items() if session.fuse in kept), None)
        if name is None:
            name = next((name for name, kept in self._kept.items() if _holds(kept, session.memory)), None)
        missing = [session.memory] if name else [session.fuse, session.memory]
        name = name or next(name for name in NAMES if name not in self._kept)
        if not _holds(self._kept.get(name, []), session.memory):
            notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", missing)
        self._kept.setdefault(name, []).extend(missing)
        for other in [other for other in self._kept if other != name]:
            notify(f"FDSTOREREMOVE=1\nFDNAME={other}")
            del self._kept[other]
        return True


def _holds(descriptors: list[int], memory: int) -> bool:
    return any(os.path.sameopenfile(fd, memory) for fd in descriptors)


def is_keeper() -> bool:
    """Tell whether a keeper has started this process: its socket is named so."""
    return "/keeper" in os.environ.get("NOTIFY_SOCKET", "")


@functools.cache
def inherited() -> Store:
    """Return this process's store."""
    return Store()
