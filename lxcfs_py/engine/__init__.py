"""Who speaks to the kernel: an engine mounts a tree, keeps its open files, and says with each request who asks."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any, Optional, Protocol


class End(enum.Enum):
    """Why an engine has ended."""

    STOPPED = "stopped"
    UNMOUNTED = "unmounted"
    TAKEN_OVER = "another server has taken over"
    FAILED = "failed"


class Armed(Protocol):
    """A trigger that somebody looks at several times a second."""

    def fires(self) -> bool:
        """Look whether it fires now. OSError, ENODEV where what it is for is gone."""


class Tree(Protocol):
    """What an engine serves. What is there, and what it says, may depend on the caller: a pid, 0 if it is not known.

    Paths are absolute within the mount, without "." and "..". Errors are OSError with an errno: ENOENT for what is not
    there for the caller, but who has a file open goes on with it.
    """

    def getattr(self, caller: int, path: str, /) -> Mapping[str, Any]:
        """Return a file's attributes by the names of os.stat_result; times in seconds since the epoch, no size."""

    def attributes(self, path: str, /) -> Mapping[str, Any]:
        """Return what `getattr` does, for whomever it is there."""

    def readlink(self, caller: int, path: str, /) -> str:
        """Return where a link points to."""

    def readdir(self, caller: int, path: str, /) -> list[str]:
        """Return the names in a directory, "." and ".." first."""

    def access(self, caller: int, path: str, mode: int, /) -> None:
        """Raise EACCES where the caller may not do what `mode`, as access(2) has it, asks for."""

    def open(self, caller: int, path: str, flags: int, /) -> None:
        """Raise EACCES where the caller may not open the file with these flags of open(2)."""

    def trigger(self, caller: int, path: str, text: bytes, /) -> str:
        """Return what `arm` makes a trigger of that the caller wrote into a file. EINVAL where it is none."""

    def arm(self, trigger: str, owner: str, /) -> Optional[Armed]:
        """Return what fires as an owner's trigger says, None where it never does. OSError."""

    def renewed(self, trigger: str, /) -> str:
        """Return the trigger as it is by now: another one where whom it is for has moved. OSError."""

    def render(self, caller: int, path: str, /) -> bytes:
        """Return a file's text as of now."""

    def lengths(self) -> Mapping[str, int]:
        """Return about how long the texts of files may be in bytes, as far as that is known."""

    def statfs(self) -> Mapping[str, int]:
        """Return the filesystem's figures by the names of os.statvfs_result."""

    def paths(self) -> Iterator[str]:
        """Yield every path that anybody may have open or mounted, whether it is there for others or not.

        Those that are there for all callers come first.
        """
