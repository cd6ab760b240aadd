"""Files that are opened without waiting, as what stands at a path may be a FIFO, or replaced as a whole."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Union


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


def replace(path: Union[str, os.PathLike[str]], content: bytes) -> None:
    """Put a file at a path, whole or not at all: who reads it meanwhile reads the one of before. OSError.

    It belongs to whom that one belongs to, and is for whom that one is.
    """
    new = f"{os.fspath(path)}.new"
    with contextlib.suppress(FileNotFoundError):  # it may be somebody else's, and lead elsewhere
        os.unlink(new)
    try:
        with open(new, "xb", opener=opener) as file:
            with contextlib.suppress(OSError):
                before = os.stat(path)
                os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.write(content)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
