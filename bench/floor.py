"""A constant text under every name that a container sees, served by one of lxcfs-py's engines: the engine's floor.

`python -m bench.floor ENGINE MOUNTPOINT`
"""

from __future__ import annotations

import errno
import importlib
import stat
import sys
from typing import Any

from lxcfs_py.config import Config
from lxcfs_py.files import NAMES

TEXT = b"MemTotal:         262144 kB\n" * 54
"""1.5 kB, the size of a /proc/meminfo."""


class Constant:
    """fusepy `Operations` in which reading costs nothing."""

    def __init__(self) -> None:
        """Derive the directories from the names."""
        self.children: dict[str, set[str]] = {"/": set()}
        for name in NAMES:
            parent = "/"
            for part in name.split("/"):
                self.children[parent].add(part)
                parent = parent.rstrip("/") + "/" + part
                self.children.setdefault(parent, set())

    def __call__(self, op: str, *args: Any) -> Any:
        """Run an operation by its name, as fusepy asks for it."""
        if not hasattr(self, op):
            raise OSError(errno.ENOSYS, op)
        return getattr(self, op)(*args)

    def visible(self, path: str) -> bool:
        """Tell whether there is such a path."""
        return path in self.children

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        """Return the attributes of a file or a directory."""
        if path not in self.children:
            raise OSError(errno.ENOENT, path)
        if self.children[path]:
            return {"st_mode": stat.S_IFDIR | 0o555, "st_nlink": 2}
        return {"st_mode": stat.S_IFREG | 0o444, "st_nlink": 1, "st_size": len(TEXT)}

    def readdir(self, path: str, fh: Any) -> list[str]:
        """Return the names in a directory."""
        return [".", "..", *self.children[path]]

    def open(self, path: str, flags: int) -> int:
        """Open: nothing to keep."""
        return 1

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Return a part of the text."""
        return TEXT[offset : offset + size]

    def release(self, path: str, fh: int) -> int:
        """Close: nothing was kept."""
        return 0

    opendir = open
    releasedir = release

    def init(self, path: str) -> None:
        """Start: nothing to do."""

    destroy = init

    def access(self, path: str, mode: int) -> int:
        """Allow everything."""
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        """Return no figures."""
        return {}


if __name__ == "__main__":
    engine = importlib.import_module(f"lxcfs_py.engine.{sys.argv[1]}")
    options = {"threads": Config().fuse.threads} if sys.argv[1] == "kernel" else {}
    engine.FUSE(Constant(), sys.argv[2], **options)
