"""The mounts of this mount namespace, as /proc/self/mountinfo lists them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lxcfs_py.linux import roots


class Mount(NamedTuple):
    """One mount."""

    device: str
    """Major and minor number of the filesystem, "0:45"."""

    root: str
    """What of the filesystem is mounted: "/" for all of it."""

    mountpoint: str
    fstype: str
    options: str
    """The filesystem's own options."""

    propagation: tuple[str, ...] = ()
    """What goes from it to other mounts, and comes from them: "shared:7", "master:3"."""


def read(root: str = "") -> Iterator[Mount]:
    """Yield the mounts, the upper ones of a mountpoint last. `root` is put before /proc, for a recorded system."""
    proc = f"{root}/proc" if root else roots.PROC
    return parse(os.fsdecode(Path(f"{proc}/self/mountinfo").read_bytes()))


def parse(mountinfo: str) -> Iterator[Mount]:
    """Yield the mounts of a mountinfo file, as proc(5) has it; a line that is otherwise is passed over."""
    for line in filter(None, mountinfo.split("\n")):  # not splitlines: a name may hold any other end of line
        before, _, after = line.partition(" - ")
        try:
            _, _, device, shown, mountpoint, _, *propagation = before.split(" ")
            fstype, _, options = after.split(" ", 2)
        except ValueError:
            continue
        yield Mount(device, _unescape(shown), _unescape(mountpoint), fstype, options, tuple(propagation))


def _unescape(word: str) -> str:
    """Put back the blanks, tabs, newlines and backslashes that the kernel writes as octal numbers."""
    if "\\" not in word:  # mostly; the search takes longer than all the rest
        return word
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)
