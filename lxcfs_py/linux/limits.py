"""What the kernel allows a process, and what it spares."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_NEVER = "-1000"


def raise_descriptors() -> None:
    """Allow this process, and what it starts, as many descriptors as may be had."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
