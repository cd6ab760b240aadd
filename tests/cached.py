"""Where images are kept that take minutes to build: $LXCFS_PY_CACHE, else ~/.cache/lxcfs-py."""

from __future__ import annotations

import os
from pathlib import Path


def directory() -> Path:
    """Return the directory that outlives a test run, which is made where there is none."""
    path = Path(os.environ.get("LXCFS_PY_CACHE") or "~/.cache/lxcfs-py").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path
