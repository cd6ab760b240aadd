"""A descriptor in the queue of a socket: who holds the socket holds it, and cannot ask the file behind it anything.

systemd calls fstat(2) on what it is given to keep. Of a FUSE mount that would wait for a server that only systemd can
start.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

_INT = struct.Struct("=i")


def pack(descriptor: int) -> int:
    """Return a socket in which a copy of a descriptor lies. OSError."""
    sender, parcel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with sender, parcel:
        socket.send_fds(sender, [b"x"], [descriptor])
        return parcel.detach()


def unpack(parcel: int) -> int:
    """Return one more copy of what lies in a socket; it stays there. OSError where there is none."""
    if not stat.S_ISSOCK(os.fstat(parcel).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    room = socket.CMSG_SPACE(_INT.size)
    with socket.socket(fileno=os.dup(parcel)) as opened:  # recv_fds passes no flags on, before Python 3.12
        _, ancillary, _, _ = opened.recvmsg(1, room, socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
    if not ancillary:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
    return int(_INT.unpack(ancillary[0][2])[0])
