"""How many tasks of a cgroup v1 are running, sleeping, …: the kernel's CGROUPSTATS (Documentation/accounting).

A generic netlink request with the descriptor of the cgroup's directory, answered with five counters. The kernel
answers it for cgroup v1 alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from typing import NamedTuple, Optional

# <linux/netlink.h>, <linux/genetlink.h>, <linux/cgroupstats.h>
_NETLINK_GENERIC = 16
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_CGROUPSTATS_CMD_GET = 4
_CGROUPSTATS_CMD_ATTR_FD = 1

_HEADER = struct.Struct("=IHHIIBBH")  # nlmsghdr, then genlmsghdr
_ATTRIBUTE = struct.Struct("=HH")
_FD = struct.Struct("=I")
_STATES = struct.Struct("=5Q")  # cgroupstats: sleeping, running, stopped, uninterruptible, waiting for I/O

# One socket for all: with libfuse, every request is run by what Python takes for a new thread.
_asking = threading.Lock()
_connection: Optional[tuple[socket.socket, int]] = None


class Count(NamedTuple):
    """Tasks by state. There is none for all: the kernel leaves out those whose sleep is a freezable one (Linux 6.1)."""

    running: int
    blocked: int


def count(directory: int) -> Count:
    """Return the tasks of one cgroup, without those of the cgroups below it.

    `directory` is a descriptor of its directory. OSError when the kernel refuses.
    """
    global _connection
    with _asking:
        if _connection is None:
            _connection = _connect()
        answer = _ask(*_connection, _CGROUPSTATS_CMD_GET, _CGROUPSTATS_CMD_ATTR_FD, _FD.pack(directory))
    _, running, _, uninterruptible, io_wait = _STATES.unpack_from(answer, _HEADER.size + _ATTRIBUTE.size)
    # Who waits for I/O and may be killed is counted by the last figure alone.
    return Count(running, uninterruptible + io_wait)


def connect() -> None:
    """Connect, where that cannot be done later; where it cannot be done, `count` says so."""
    global _connection
    with contextlib.suppress(OSError):
        _connection = _connect()


def _connect() -> tuple[socket.socket, int]:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_GENERIC)
    # Not settimeout, with which Python asks poll(2) before each call.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 1, 0))
    answer = _ask(connection, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_NAME, b"TASKSTATS\0")
    offset = _HEADER.size
    while offset < len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, offset)
        if kind == _CTRL_ATTR_FAMILY_ID:
            return connection, struct.unpack_from("=H", answer, offset + _ATTRIBUTE.size)[0]
        offset += (length + 3) & ~3
    raise OSError("the kernel knows no TASKSTATS")


def _ask(connection: socket.socket, family: int, command: int, attribute: int, value: bytes) -> bytes:
    body = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), attribute) + value
    body += bytes(-len(body) % 4)
    connection.send(_HEADER.pack(_HEADER.size + len(body), family, _NLM_F_REQUEST, 0, 0, command, 1, 0) + body)
    answer = connection.recv(4096)
    kind = struct.unpack_from("=H", answer, 4)[0]
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(number, os.strerror(number))
    return answer
