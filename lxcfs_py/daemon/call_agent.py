"""The agent for system calls as the daemon has it: where it listens, and by whom its listeners are kept."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Callable

from lxcfs_py.daemon import degraded
from lxcfs_py.engine import store
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.syscalls.agent import Agent
from lxcfs_py.syscalls.answers import Render

_SOCKET = "seccomp.socket"
"""The name under which the socket is kept: containers start while no server runs, and are heard by the next one."""


def start(render: Render, mountpoint: str) -> Callable[[], None]:
    """Answer calls by the texts that `render` gives; return what takes the socket away at the end."""
    kept = store.inherited().others
    agent = Agent(render, _keep, _forget, kept)
    path = seccomp_profile.socket_of(mountpoint)
    try:
        agent.listen(socket.socket(fileno=kept[_SOCKET]) if _SOCKET in kept else _bind(path))
    except OSError as error:
        degraded.enter("seccomp", f"containers cannot hand system calls on ({path}: {error.strerror})")
    agent.start()
    return lambda: _remove(path)


def _bind(path: str) -> socket.socket:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    _remove(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    _keep(_SOCKET, listener.fileno())
    return listener


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _keep(name: str, descriptor: int) -> None:
    try:
        store.inherited().keep(name, descriptor)
    except OSError as error:
        degraded.enter("store", f"nobody keeps what containers have handed on should this process die ({error})")


def _forget(name: str) -> None:
    with contextlib.suppress(OSError):  # whoever kept it is gone
        store.inherited().forget(name)
