"""Files that are opened without waiting: what stands at a path may be a FIFO, or a device without an end."""

from __future__ import annotations

import os
import stat


def opener(path: str, flags: int) -> int:
    """Open for `open(..., opener=opener)`. OSError for what is neither a regular file nor a directory.

    open() itself refuses a directory.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        os.close(descriptor)
        raise OSError(0, "it is no regular file", path)
    return descriptor
