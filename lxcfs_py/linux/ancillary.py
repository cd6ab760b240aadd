"""Descriptors that come beside a message: Python's socket.recv_fds heeds no flags before 3.12."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence


def descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """Return those in what recvmsg(2) has beside a message."""
    found: list[int] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += struct.unpack(f"={len(content) // 4}i", content[: len(content) // 4 * 4])
    return found
