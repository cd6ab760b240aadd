"""The fusepy library as an engine: libfuse 2 (fusepy) or libfuse 3 (its fork mfusepy)."""

from __future__ import annotations

import functools
import os
import threading
import time
from typing import Any, Callable, Optional

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


class Observed:
    """Operations, and what can be told of them from outside.

    A process must not ask its own mount: killed while it waits for its own answer, it could not even die.
    """

    def __init__(self, operations: Any) -> None:
        self.answers = threading.Event()
        """Set when libfuse has begun to answer the kernel."""

        self._operations = operations
        self._since: Optional[float] = None

    def init(self, path: str) -> None:
        """Take note that it begins, as fusepy says."""
        self.answers.set()

    def stuck(self, limit: float) -> Optional[str]:
        """Say that one operation has taken for over so many seconds, None when it is not so."""
        since = self._since
        if since is None or time.monotonic() - since <= limit:
            return None
        return f"libfuse's thread has been at one operation for over {limit:g} s"

    # fusepy calls the operations by name, its fork mfusepy as methods.

    def __call__(self, operation: str, *arguments: Any) -> Any:
        if operation == "init":
            return self.init(*arguments)
        return self._run(self._operations, operation, *arguments)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._run, getattr(self._operations, name))

    def _run(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        self._since = time.monotonic()
        try:
            return operation(*arguments)
        finally:
            self._since = None


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
