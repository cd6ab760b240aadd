"""The memory that is kept into which calls are received: a successor answers what its predecessor had taken."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from lxcfs_py.linux import seccomp

SLOTS = 64
"""One for the thread that attends, and one for each container that keeps somebody waiting."""

_STRIDE = 4096
_CLEARED = 256  # bytes of a slot, in which is all that tells whether a call has come
_NOTHING = bytes(_CLEARED)
_CALLER = struct.Struct("=Q")  # behind a slot: the number of the caller whose call is in it, or 0


class Slot(NamedTuple):
    """Room for one call."""

    number: int
    call: memoryview
    note: memoryview

    def expect(self, number: int) -> None:
        """Note that a call will be in it, and of which caller."""
        self.call[:_CLEARED] = _NOTHING
        _CALLER.pack_into(self.note, 0, number)

    def forget(self) -> None:
        """Note that there is no call in it any more."""
        _CALLER.pack_into(self.note, 0, 0)


class Memory:
    """All slots, in a file that is kept."""

    def __init__(self, file: int) -> None:
        """Use a file; one of an earlier version, which had a single slot, is made longer."""
        os.ftruncate(file, SLOTS * _STRIDE)
        self._memory = memoryview(mmap.mmap(file, SLOTS * _STRIDE))
        self._free = set(range(SLOTS))

    def taken(self) -> Iterator[tuple[Slot, int]]:
        """Take and yield the slots in which a predecessor left a call, each with its caller's number."""
        for index, number in enumerate(self.callers()):
            if number:
                self._free.remove(index)
                yield self._slot(index), number

    def callers(self) -> list[int]:
        """Return for each slot the number of the caller whose call is in it, 0 where there is none."""
        return [_CALLER.unpack_from(self._slot(index).note)[0] for index in range(SLOTS)]

    def take(self) -> Slot:
        """Take a slot that is free. LookupError when there is none."""
        try:
            return self._slot(self._free.pop())
        except KeyError:
            raise LookupError("all slots are taken") from None

    def give_back(self, slot: Slot) -> None:
        """Let a slot be taken again."""
        slot.forget()
        self._free.add(slot.number)

    def _slot(self, index: int) -> Slot:
        start = index * _STRIDE
        end = start + seccomp.SLOT
        return Slot(index, self._memory[start:end], self._memory[end : end + _CALLER.size])


def new() -> int:
    """Return a file for a Memory."""
    return os.memfd_create("seccomp", os.MFD_CLOEXEC)
