"""The agent for system calls as the daemon has it: where it listens, and by whom its listeners are kept."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Callable

from lxcfs_py.daemon import degraded
from lxcfs_py.engine import store
from lxcfs_py.errors import of_system
from lxcfs_py.linux import seccomp
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.syscalls.agent import Agent
from lxcfs_py.syscalls.answers import Figures

_SOCKET = "seccomp.socket"
_LXC_SOCKET = "seccomp.lxc.socket"
"""The names under which the sockets are kept: containers start while no server runs, and are heard by the next one."""

_WAITING = 4096
"""Containers that may wait to be heard; net.core.somaxconn may allow less."""


def start(figures: Figures, mountpoint: str) -> Callable[[], None]:
    """Answer calls by these figures; return what ends it, so that what comes from then on waits for the next server."""
    kept = store.inherited().others
    agent = Agent(figures, _keep, _forget, dict(kept))
    _offer(agent, mountpoint)
    try:
        agent.start()
    except OSError as error:
        degraded.enter("seccomp", f"containers that hand system calls on wait for the next server ({error.strerror})")
    store.inherited().before_handing_over(agent.stop)
    return agent.stop


def _offer(agent: Agent, mountpoint: str) -> None:
    """Let containers hand their calls on, where the kernel takes back what cannot be answered."""
    if not seccomp.can_let_through():
        why = f"this kernel ({os.uname().release}) takes back no call that cannot be answered: Linux 5.5 or later does"
        degraded.enter("seccomp", f"containers cannot hand system calls on: {why}")
        withdraw(mountpoint)
        return
    for name, kind, path in (
        (_SOCKET, socket.SOCK_STREAM, seccomp_profile.socket_of(mountpoint)),
        (_LXC_SOCKET, socket.SOCK_SEQPACKET, seccomp_profile.lxc_socket_of(mountpoint)),
    ):
        try:
            agent.listen(_server(name, kind, path))
        except OSError as error:
            degraded.enter("seccomp", f"containers cannot hand system calls on ({path}: {error.strerror})")


def withdraw(mountpoint: str) -> None:
    """Take the sockets away, since the mount has ended."""
    for path in (seccomp_profile.socket_of(mountpoint), seccomp_profile.lxc_socket_of(mountpoint)):
        _remove(path)


def _server(name: str, kind: socket.SocketKind, path: str) -> socket.socket:
    """Return the socket that is kept under a name, as long as it can be found at its path; else a new one. OSError."""
    kept = store.inherited().others.get(name)
    if kept is not None:
        if os.path.exists(path):
            return socket.socket(fileno=kept)
        _forget(name)
        os.close(kept)
    server = _bind(path, kind)
    _keep(name, server.fileno())
    return server


def _bind(path: str, kind: socket.SocketKind) -> socket.socket:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    _remove(path)
    listener = socket.socket(socket.AF_UNIX, kind)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(_WAITING)
    return listener


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _keep(name: str, descriptor: int) -> None:
    try:
        store.inherited().keep(name, descriptor)
    except OSError as error:
        degraded.enter(
            "store", f"nobody keeps what containers have handed on should this process die ({of_system(error)})"
        )


def _forget(name: str) -> None:
    with contextlib.suppress(OSError):  # whoever kept it is gone
        store.inherited().forget(name)
