"""What the daemon is asked by commands, over a socket that only root can reach: a reload that waits for its result."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mountpoint

ANSWER_SECONDS = 15.0

_REQUEST_SECONDS = 1.0  # who asks must not hold up the daemon
_KIND = "control"


class ControlError(LxcfsError):
    """Why the daemon could not be asked: one sentence for the operator."""


def listen(path: str) -> socket.socket:
    """Return a socket for `answer`, in place of a predecessor's. OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    return listener


def answer(listener: socket.socket, answers: Mapping[str, Callable[[str], Any]]) -> None:
    """Answer one request, a word and a text, with what the function for that word makes of the text, as JSON."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_REQUEST_SECONDS)
            word, text = json.loads(_read(connection))
            connection.sendall(json.dumps(answers[word](text)).encode())


def ask(path: str, word: str, text: str = "") -> Any:
    """Return what the daemon whose socket that is answers. ControlError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            raise ControlError(f"no daemon can be asked ({error.strerror})") from None
        try:
            connection.sendall(json.dumps([word, text]).encode())
            connection.shutdown(socket.SHUT_WR)
            reply = _read(connection)
        except OSError as error:
            raise ControlError(f"the daemon did not answer: {error}") from None
    if not reply:
        raise ControlError("the daemon ended before it answered")
    return json.loads(reply)


def reload(config_path: str) -> tuple[list[str], list[str]]:
    """Let the daemons that serve with a configuration file read it anew; return their errors and remarks.

    ControlError when there is none.
    """
    sockets = [str(path) for path in sorted(Path(mountpoint.RUNTIME_DIRECTORY).glob(f"*.{_KIND}"))]
    theirs = [ask(path, "reload") for path in sockets if _serves_with(path, config_path)]
    if not theirs:
        raise ControlError("no daemon serves with it")
    return [error for errors, _ in theirs for error in errors], [remark for _, remarks in theirs for remark in remarks]


def _serves_with(path: str, config_path: str) -> bool:
    try:
        return bool(ask(path, "file") == config_path)
    except ControlError:  # left by one that was killed
        return False


def path_of(mount: str) -> Optional[str]:
    """Return where the daemon at a mountpoint can be asked, None where there can be no such place."""
    return mountpoint.runtime_file(mount, _KIND)


def _read(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)
