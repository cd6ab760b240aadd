"""What is said of the size of files, whose texts are of other lengths for each reader."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from lxcfs_py.files import DIRECTORIES

SIZE = 4096
"""What stat(2) says of a file in bytes, as sysfs does: who splices a file takes 0 for its end. Of a longer text it has
to say more, for programs that read no more than it says (Node.js)."""

_TREES = tuple(f"/{name}/" for name in DIRECTORIES)


class Sizes:
    """What stat(2) says of each file: that there is room for the longest text that is known of it.

    A block is as large as the file, so that programs take the size for no more than it is: the text ends somewhere in
    the first block (`tail -c`, `wc -c`).
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        """Begin with what is known of the lengths of texts, by path."""
        self._sizes = {path: _room(length) for path, length in lengths.items()}

    def of(self, path: str) -> int:
        """Return a file's size in bytes, which is a power of 2."""
        return self._sizes.get(path, SIZE)

    def note(self, path: str, length: int) -> None:
        """Take note of how long a text is."""
        if length > self._sizes.get(path, SIZE):
            self._sizes[path] = _room(length)


def has_end(path: str, mode: int) -> bool:
    """Tell whether lseek(2) to a file's end leads anywhere. Of the kernel's own, it does in sysfs, and not in /proc."""
    return not stat.S_ISREG(mode) or path.startswith(_TREES)


def _room(length: int) -> int:
    """Return a size for texts that are about so long: some may be longer."""
    return max(SIZE, 1 << (length * 4 // 3).bit_length())
