"""What the kernel allows a process, and what it spares."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_NEVER = "-1000"


def raise_descriptors() -> None:
    """Allow this process, and what it starts, as many descriptors as may be had."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def spare_descriptors(number: int) -> Iterator[None]:
    """Have so many more to give back, whatever is opened meanwhile. OSError EMFILE, ENFILE where they cannot be had."""
    with contextlib.ExitStack() as spare:
        try:
            for _ in range(number):
                spare.callback(os.close, os.open("/", os.O_PATH | os.O_CLOEXEC))
        except OSError as error:
            why = f"{error.strerror}: {number} more are needed (LimitNOFILE=, ulimit -n)"
            raise OSError(error.errno, why) from None
        yield


def spare_from_oom_kills() -> str:
    """Let the kernel kill others where memory runs out, where this process may ask for that; return what was before."""
    before = ""
    with contextlib.suppress(OSError):
        before = _OOM_SCORE.read_text()
        _OOM_SCORE.write_text(_NEVER)
    return before


def set_oom_score(score: str) -> None:
    """Have it as it was before."""
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text(score)
