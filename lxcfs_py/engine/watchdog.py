"""Whether the workers answer: what must hold before the watchdog is fed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Callable, Optional

from lxcfs_py.engine import protocol

Check = Callable[[float], Optional[str]]
"""Says what has not answered for so many seconds, None when all do. To be called again and again."""


def of_workers(slots: Sequence[memoryview]) -> Check:
    """Look at the kernel engine's slots: each holds the request that a worker is at, opcode 0 when it is at none."""
    at_hand: dict[int, tuple[int, float]] = {}  # by worker: the request's number, and since when it has been seen

    def check(limit: float) -> Optional[str]:
        now = time.monotonic()
        for worker, slot in enumerate(slots):
            _, opcode, unique, _, pid = protocol.IN_HEADER.unpack_from(slot)
            if not opcode:
                at_hand.pop(worker, None)
                continue
            known, since = at_hand.get(worker, (0, 0.0))
            if known != unique:
                at_hand[worker] = unique, now
            elif now - since > limit:
                return (
                    f"worker {worker} has been at one request (opcode {opcode}) of process {pid} for over {limit:g} s"
                )
        return None

    return check
