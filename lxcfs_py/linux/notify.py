"""What a process tells whoever started it, systemd or a keeper, by the protocol of sd_notify(3)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from typing import Optional

try:
    from sdnotify import SystemdNotifier
except ImportError:  # an upgrade of Python takes packages away for a while, and a mount must be served meanwhile
    SystemdNotifier = None

SECONDS = 3.0
"""Who is to be told may stand still, or have much to hear: nobody waits longer for that."""

INHERITED = "NOTIFY_INHERITED"
"""The variable by which a keeper gives a process a socket that is connected to its address: "PID:FD".

What the process says arrives then even where the address has been removed, or something has been mounted over it.
"""


def notify(text: str, descriptors: Sequence[int] = (), seconds: float = SECONDS) -> bool:
    """Send lines such as "READY=1", with descriptors. False when nobody wants to be told.

    OSError, EAGAIN where the other side has not listened for so many seconds.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    try:
        inherited = _inherited()
        if SystemdNotifier and not descriptors and inherited is None:
            notifier = SystemdNotifier(debug=True)  # debug: errors are raised
            notifier.socket.settimeout(seconds)
            notifier.notify(text)
            return True
        with inherited or _connected(address) as connection:
            connection.settimeout(seconds)
            socket.send_fds(connection, [text.encode()], list(descriptors))
    except (socket.timeout, BlockingIOError):
        raise BlockingIOError(errno.EAGAIN, "whoever started this process does not listen") from None
    return True


def _inherited() -> Optional[socket.socket]:
    """Return a copy of the socket that a keeper has handed to this process, None where none has."""
    pid, _, descriptor = os.environ.get(INHERITED, "").partition(":")
    if pid != str(os.getpid()):
        return None
    os.set_inheritable(int(descriptor), False)
    return socket.socket(fileno=os.dup(int(descriptor)))


def _connected(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        connection.close()
        raise
    return connection
