"""The fusepy library as an engine: libfuse 2 (fusepy) or libfuse 3 (its fork mfusepy)."""

from __future__ import annotations

import os
from typing import Any

# Debian installs the module as fusepy, PyPI as fuse. OSError (EnvironmentError) when libfuse itself is missing.
try:
    import fusepy as _fuse
except ImportError:
    try:
        import fuse as _fuse
    except ImportError:
        import mfusepy as _fuse

# Nothing about the tree changes: the kernel need not ask for names and attributes again.
_TIMEOUT_SECONDS = 3600


def caller() -> int:
    """Return the pid of the process whose request is at hand, 0 when it has none in this pid namespace."""
    return int(_fuse.fuse_get_context()[2])


def FUSE(operations: Any, mountpoint: str) -> None:  # noqa: N802
    """Mount, and serve until unmounted. RuntimeError when libfuse cannot mount; it has said why on stderr.

    One thread: libfuse's threads are new to Python with every request, and wait for each other all the same.
    """
    _fuse.FUSE(
        operations,
        mountpoint,
        raw_fi=False,
        foreground=True,
        nothreads=True,
        nonempty=True,
        allow_other=os.geteuid() == 0,
        direct_io=True,
        entry_timeout=_TIMEOUT_SECONDS,
        attr_timeout=_TIMEOUT_SECONDS,
        fsname="lxcfs",
        subtype="lxcfs",
    )
