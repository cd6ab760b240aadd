"""Who is at the other end of a Unix socket: SO_PEERCRED of unix(7)."""

from __future__ import annotations

import os
import socket
import struct

_UCRED = struct.Struct("=iII")  # pid, uid, gid


def of(connection: socket.socket) -> tuple[int, int]:
    """Return the process at the other end of a connection, and its user: of a listener, those that began to listen."""
    pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid


def stranger(connection: socket.socket) -> str:
    """Return who is there, "process 7 of user 1000", unless that is root or this process's own user; "" then."""
    pid, uid = of(connection)
    return "" if uid in (0, os.geteuid()) else f"process {pid} of user {uid}"
