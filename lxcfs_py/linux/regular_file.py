"""Files that are opened without waiting, since a path may be a FIFO's, or replaced whole; what is in the way of one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import Optional, Union


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


def read(path: Union[str, os.PathLike[str]], most: int) -> bytes:
    """Return what a file holds. OSError for what is no regular file, EFBIG for one of more than `most` bytes."""
    with open(path, "rb", opener=opener) as file:
        content = file.read(most + 1) or b""  # None of one that has nothing yet
    if len(content) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return content


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


def not_a_directory(path: Union[str, Path]) -> Optional[Path]:
    """Return the part of a path that is there and keeps a directory from being there: a file, a link to nowhere."""
    there = next((each for each in (Path(path), *Path(path).parents) if os.path.lexists(each)), None)
    return None if there is None or there.is_dir() else there
