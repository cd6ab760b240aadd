"""A reload that waits for its result: `lxcfs-py reload` asks the daemon over a socket that only root can reach."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Callable

from lxcfs_py.errors import LxcfsError

ANSWER_SECONDS = 15.0

_REQUEST = b"reload"


class ControlError(LxcfsError):
    """Why the daemon could not be asked: one sentence for the operator."""


def listen(path: str) -> socket.socket:
    """Return a socket for `answer`, in place of a predecessor's. OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    return listener


def answer(listener: socket.socket, reload: Callable[[], tuple[list[str], list[str]]]) -> None:
    """Answer one request with what `reload` returns: errors, which mean that nothing has changed, and remarks."""
    connection, _ = listener.accept()
    connection.settimeout(1)  # who asks must not hold up the daemon
    with connection, contextlib.suppress(OSError):
        if connection.recv(len(_REQUEST)) == _REQUEST:
            connection.send(json.dumps(reload()).encode())


def ask(path: str) -> tuple[list[str], list[str]]:
    """Let the daemon whose socket that is reload; return its errors and its remarks. ControlError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            raise ControlError(f"no daemon can be asked to reload this file ({error.strerror})") from None
        try:
            connection.send(_REQUEST)
            reply = connection.recv(1 << 20)
        except OSError as error:
            raise ControlError(f"the daemon did not say whether it has reloaded: {error}") from None
    if not reply:
        raise ControlError("the daemon ended before it said whether it has reloaded")
    errors, remarks = json.loads(reply)
    return errors, remarks
