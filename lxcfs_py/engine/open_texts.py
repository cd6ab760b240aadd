"""The texts of open files, in the session's memory file: who is in the middle of one goes on in it after a restart."""

from __future__ import annotations

import itertools
import mmap
import struct
import threading
from collections.abc import Iterator
from typing import NamedTuple, Optional

from lxcfs_py.container.owners import Owners
from lxcfs_py.engine.branches import Branches

VERSION = 1
"""Of what follows: who finds texts laid out in another way starts without any."""

_PAGE = 4096
_INDEX = struct.Struct("=QI4x")  # of a kept text: handle, length; the byte after them is 1 when all of it is written
_WHOLE = 12
_SHELVES = ((4 << 10, 2048), (64 << 10, 512), (2 << 20, 64))  # size and number of the cells that texts are kept in
_AT_ONCE = 4
_INDEX_BYTES = -(-sum(count for _, count in _SHELVES) * _INDEX.size // _PAGE) * _PAGE


class _Cell(NamedTuple):
    shelf: int  # its size's place in _SHELVES
    entry: int  # offset of its _INDEX
    text: int  # offset of its text


class Texts:
    """The texts of open files by their handle, where a successor finds them.

    Bounded: when all cells of a size are taken, the oldest text goes of the container that has the most of them in the
    fullest branch of the cgroup tree; a text of more than 2 MiB is not kept. A reader that is in the middle of such a
    text when its server dies goes on in a newer one.
    """

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        self._memory = memory
        self._offset = offset
        self._lock = threading.Lock()
        self._owners = Owners()
        self._begin()

    def _begin(self) -> None:
        self._held: dict[int, _Cell] = {}  # by handle, the oldest first
        self._free: list[list[_Cell]] = [[] for _ in _SHELVES]
        self._readers: list[dict[int, tuple[int, int]]] = [{} for _ in _SHELVES]  # pid and uid, by shelf and handle
        self._owned = [Branches() for _ in _SHELVES]  # handles whose owner was looked up
        self._owner_of: dict[int, str] = {}

    def clear(self) -> None:
        """Keep nothing of what is there, in whatever layout."""
        self._memory[self._offset : self._offset + _INDEX_BYTES] = bytes(_INDEX_BYTES)

    def load(self) -> None:
        """Find what a predecessor kept. Not before it is gone."""
        self._begin()
        for cell in reversed(list(_cells(self._offset))):
            if self._memory[cell.entry + _WHOLE]:
                self._held[_INDEX.unpack_from(self._memory, cell.entry)[0]] = cell
            else:
                self._free[cell.shelf].append(cell)
        self._held = dict(sorted(self._held.items()))  # handles count up: the oldest is again the first
        for handle, cell in self._held.items():
            self._readers[cell.shelf][handle] = (0, 0)  # nobody knows any more

    def handles_from(self, least: int) -> list[int]:
        """The handles that are `least` or more for which something is kept."""
        with self._lock:
            return [handle for handle in self._held if handle >= least]

    def get(self, handle: int) -> Optional[bytes]:
        """The text that was put for `handle`; None if there is none."""
        with self._lock:
            cell = self._held.get(handle)
            if cell is None:
                return None
            _, length = _INDEX.unpack_from(self._memory, cell.entry)
            return self._memory[cell.text : cell.text + length]

    def put(self, handle: int, text: bytes, reader: tuple[int, int] = (0, 0)) -> None:
        """Keep `text` for `handle`, and no other. `reader` is the pid and uid of who reads it."""
        with self._lock:
            if handle in self._held:
                self._drop(handle)
            cell = self._take(len(text))
            if cell is not None:
                if len(self._free[cell.shelf]) < _SHELVES[cell.shelf][1] // 2:
                    self._look_up(cell.shelf, _AT_ONCE)  # all are known when there is no more room
                self._memory[cell.text : cell.text + len(text)] = text
                _INDEX.pack_into(self._memory, cell.entry, handle, len(text))
                self._memory[cell.entry + _WHOLE] = 1
                self._held[handle] = cell
                self._readers[cell.shelf][handle] = reader

    def _take(self, length: int) -> Optional[_Cell]:
        for shelf, (size, _) in enumerate(_SHELVES):
            if length <= size:
                if not self._free[shelf]:
                    self._make_room(shelf)
                return self._free[shelf].pop()
        return None

    def _make_room(self, shelf: int) -> None:
        """Drop the oldest text of the container that has the most, in the fullest branch."""
        self._look_up(shelf, _AT_ONCE)
        self._drop(next(iter(self._owned[shelf].fullest())))

    def _look_up(self, shelf: int, most: int) -> None:
        """Find out whose the oldest texts are of which that is not known: of so many, since each may take 20 us."""
        readers, owned = self._readers[shelf], self._owned[shelf]
        for handle in list(itertools.islice(readers, most)):
            owner = self._owner_of[handle] = self._owners.of(*readers.pop(handle))
            owned.add(owner, handle)

    def drop(self, handle: int) -> None:
        """Keep nothing for `handle` any longer."""
        with self._lock:
            self._drop(handle)

    def _drop(self, handle: int) -> None:
        cell = self._held.pop(handle, None)
        if cell is not None:
            self._memory[cell.entry + _WHOLE] = 0
            self._free[cell.shelf].append(cell)
            if self._readers[cell.shelf].pop(handle, None) is None:
                self._owned[cell.shelf].remove(self._owner_of.pop(handle), handle)


def _cells(offset: int) -> Iterator[_Cell]:
    """All cells of a memory whose index is at `offset`; the index of all sizes comes first, then their texts."""
    text = offset + _INDEX_BYTES
    for shelf, (size, count) in enumerate(_SHELVES):
        for _ in range(count):
            yield _Cell(shelf, offset, text)
            offset += _INDEX.size
            text += size


def size() -> int:
    """Return how many bytes of memory they take."""
    return _INDEX_BYTES + sum(size * count for size, count in _SHELVES)
