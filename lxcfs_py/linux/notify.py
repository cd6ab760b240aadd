"""What a process tells whoever started it, systemd or a keeper, by the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

try:
    from sdnotify import SystemdNotifier
except ImportError:  # an upgrade of Python takes packages away for a while, and a mount must be served meanwhile
    SystemdNotifier = None


def notify(text: str, descriptors: Sequence[int] = ()) -> bool:
    """Send lines such as "READY=1", with descriptors. False when nobody wants to be told; OSError."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if SystemdNotifier and not descriptors:
        SystemdNotifier(debug=True).notify(text)  # debug: errors are raised
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect("\0" + address[1:] if address.startswith("@") else address)
        socket.send_fds(connection, [text.encode()], list(descriptors))
    return True
