"""A constant text under every name that a container sees, served by one of lxcfs-py's engines: the engine's floor.

`python -m bench.floor ENGINE MOUNTPOINT`
"""

from __future__ import annotations

import errno
import importlib
import stat
import sys
from collections.abc import Iterator
from typing import Any

from lxcfs_py.config import Config
from lxcfs_py.files import NAMES

TEXT = b"MemTotal:         262144 kB\n" * 54
"""1.5 kB, the size of a /proc/meminfo."""


class Constant:
    """An engine's Tree in which reading costs nothing."""

    def __init__(self) -> None:
        """Derive the directories from the names."""
        self.children: dict[str, set[str]] = {"/": set()}
        for name in NAMES:
            parent = "/"
            for part in name.split("/"):
                self.children[parent].add(part)
                parent = parent.rstrip("/") + "/" + part
                self.children.setdefault(parent, set())

    def attributes(self, path: str) -> dict[str, Any]:
        """Return the attributes of what was listed."""
        return self.getattr(0, path)

    def getattr(self, caller: int, path: str) -> dict[str, Any]:
        """Return the attributes of a file or a directory."""
        if path not in self.children:
            raise OSError(errno.ENOENT, path)
        if self.children[path]:
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2}
        return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1}

    def readlink(self, caller: int, path: str) -> str:
        """There are no links."""
        raise OSError(errno.EINVAL, path)

    def readdir(self, caller: int, path: str) -> list[str]:
        """Return the names in a directory."""
        return [".", "..", *self.children[path]]

    def access(self, caller: int, path: str, mode: int) -> None:
        """Allow everything."""

    open = access

    def render(self, caller: int, path: str) -> bytes:
        """Return the text."""
        return TEXT

    def statfs(self) -> dict[str, int]:
        """Return no figures."""
        return {}

    def lengths(self) -> dict[str, int]:
        """All are as long."""
        return {}

    def paths(self) -> Iterator[str]:
        """Yield all paths."""
        yield from self.children


if __name__ == "__main__":
    engine = importlib.import_module(f"lxcfs_py.engine.{sys.argv[1]}")
    options = {"threads": Config().fuse.threads} if sys.argv[1] == "kernel" else {}
    engine.serve(Constant(), sys.argv[2], **options)
