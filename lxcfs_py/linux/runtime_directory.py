"""The directory by which processes of this program find each other: who could write there could take their place."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path
from typing import Optional

from lxcfs_py.linux.digest import digest

log = logging.getLogger(__name__)

PATH = "/run/lxcfs-py"

COMMANDS = "status"
"""The kind of the socket at which a server answers commands."""


def path_of(mountpoint: str, kind: str = "") -> str:
    """Return where something is kept for the next server of a mount, or, of no kind, the socket of the one there is."""
    return f"{PATH}/{digest(mountpoint).hex()}{'.' * bool(kind)}{kind}"


def writable_path_of(mountpoint: str, kind: str) -> Optional[str]:
    """Return the same where this process may write there, None where it may not."""
    try:
        make(PATH)
    except OSError:
        return None
    return path_of(mountpoint, kind) if os.access(PATH, os.W_OK) else None


def files_of(mountpoint: str) -> list[Path]:
    """Return all that a server keeps there by its mountpoint's name."""
    return sorted(Path(PATH).glob(f"{digest(mountpoint).hex()}*"))


def forget(mountpoint: str) -> None:
    """Throw away what was kept for the next server of a mount that has ended."""
    with contextlib.suppress(OSError):  # it cannot be listed where no descriptor is to be had
        for path in Path(PATH).glob(f"{digest(mountpoint).hex()}.*"):
            with contextlib.suppress(OSError):
                path.unlink()


def make(path: str) -> None:
    """Make it, or take it from others who own it or may write there. OSError where that cannot be."""
    Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    status = os.stat(path)
    own = (0, os.geteuid())
    if status.st_uid in own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    if status.st_uid not in own:  # the unit has no chown(2)
        os.chown(path, os.geteuid(), os.getegid())
    os.chmod(path, 0o700)
    mode = stat.S_IMODE(status.st_mode)
    log.warning("others could write into %s (user %d, mode %o): it is this user's alone now", path, status.st_uid, mode)
    # A link would lead what is written there elsewhere. Who listens at a socket is asked who that is.
    with os.scandir(path) as entries:
        for entry in entries:
            left = entry.stat(follow_symlinks=False)
            if left.st_uid not in own and not stat.S_ISSOCK(left.st_mode):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
