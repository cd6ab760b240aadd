"""What came of attaching to containers as they start: told to the daemon on the standard output, a word a line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lxcfs_py.attach.errors import AttachError, LeftAloneError, SilentError

if TYPE_CHECKING:
    from lxcfs_py.attach.attach import Outcome

ATTACHED, GIVEN, KEPT, LEFT_ALONE, REFUSED, SILENT, FAILED = RESULTS = (
    "attached",
    "given",  # with its definition, before it is there
    "kept",  # it had them all
    "left alone",
    "refused",  # at least one file
    "silent",  # a filesystem of its does not answer, or it took too long
    "failed",
)


def of(outcomes: Iterable[Outcome]) -> str:
    """Return what came of a container from what came of its files."""
    results = {outcome.result for outcome in outcomes}
    if "refused" in results:
        return REFUSED
    return ATTACHED if results & {"attached", "replaced"} else KEPT


def of_error(error: AttachError) -> str:
    """Return what came of a container to which nothing could be attached."""
    if isinstance(error, LeftAloneError):
        return LEFT_ALONE
    return SILENT if isinstance(error, SilentError) else FAILED


def tell(result: str) -> None:
    """Tell the daemon. Several processes may at once: a line is written as a whole."""
    with contextlib.suppress(OSError):  # it has ended
        os.write(1, f"{result}\n".encode())
