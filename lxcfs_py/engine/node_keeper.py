"""A session that outlives its pod: the systemd of the node holds its descriptors, whatever becomes of the container.

A transient unit has /dev/fuse as its standard input and the memory file as its standard output, and its program sleeps.
It is told over D-Bus, and asked by the next pod, which takes copies of both with pidfd_getfd(2) (Linux 5.6).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import Any

from lxcfs_py.errors import LxcfsError, in_words
from lxcfs_py.linux import syscalls

UNIT = "lxcfs-py-session.service"
BUS = "/run/dbus/system_bus_socket"
_SECONDS = 5.0  # that systemd is given to answer, and to end a unit
_SYSTEMD = "org.freedesktop.systemd1"
_MANAGER = ("/org/freedesktop/systemd1", f"{_SYSTEMD}.Manager")
_PROGRAM = ["/bin/sleep", "infinity"]
_GONE = (f"{_SYSTEMD}.NoSuchUnit", "org.freedesktop.DBus.Error.UnknownObject")


class NodeKeeperError(LxcfsError):
    """What systemd was asked and did not do; `name` is the error's on the bus."""

    def __init__(self, sentence: str, name: str = "") -> None:
        super().__init__(sentence)
        self.name = name


def hold(descriptors: Sequence[int]) -> None:
    """Let the node's systemd hold a session, /dev/fuse and the memory file, in place of an earlier one.

    NodeKeeperError.
    """
    fuse, memory = descriptors
    held = take_back()
    if held:
        is_same = os.path.sameopenfile(held[1], memory)
        for fd in held:
            os.close(fd)
        if is_same:
            return
        release()
    properties = [
        ("Description", ("s", "keeps the mount of lxcfs-py while no pod serves it")),
        ("ExecStart", ("a(sasb)", [(_PROGRAM[0], _PROGRAM, False)])),
        ("StandardInputFileDescriptor", ("h", fuse)),
        ("StandardOutputFileDescriptor", ("h", memory)),
        ("OOMScoreAdjust", ("i", -1000)),
        ("CapabilityBoundingSet", ("t", 0)),
        ("NoNewPrivileges", ("b", True)),
        ("DefaultDependencies", ("b", False)),  # while the node goes down, containers may read until they end
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    _ask(*_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (UNIT, "fail", properties, []))


def take_back() -> list[int]:
    """Return copies of the descriptors that are held, /dev/fuse and the memory file; none where nothing is held.

    NodeKeeperError.
    """
    pid = _main_pid()
    if not pid:
        return []
    try:
        process = os.pidfd_open(pid)
        try:
            return [syscalls.pidfd_getfd(process, fd) for fd in (0, 1)]
        finally:
            os.close(process)
    except OSError as error:
        raise NodeKeeperError(f"what the node's {UNIT} holds cannot be taken back: {error.strerror}") from error


def release() -> None:
    """Let systemd hold nothing any more; return when that is done. NodeKeeperError."""
    if not _main_pid():
        return
    _ask(*_MANAGER, "StopUnit", "ss", (UNIT, "replace"))
    deadline = time.monotonic() + _SECONDS
    while _main_pid():
        if time.monotonic() > deadline:
            raise NodeKeeperError(f"{UNIT} does not end; on the node: systemctl stop {UNIT}")
        time.sleep(0.05)


def _main_pid() -> int:
    """Return the process that holds the session, 0 if there is none. NodeKeeperError."""
    properties = "org.freedesktop.DBus.Properties"
    try:
        (unit,) = _ask(*_MANAGER, "GetUnit", "s", (UNIT,))
        ((_, pid),) = _ask(unit, properties, "Get", "ss", (f"{_SYSTEMD}.Service", "MainPID"))
    except NodeKeeperError as error:
        if error.name in _GONE:
            return 0
        raise
    return int(pid)


def _ask(path: str, interface: str, method: str, signature: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Call a method of the node's systemd; return what it answers. NodeKeeperError."""
    try:
        from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call
        from jeepney.io.blocking import open_dbus_connection
    except ImportError:
        raise NodeKeeperError("asking the node's systemd needs the Python package jeepney (python3-jeepney)") from None
    call = new_method_call(DBusAddress(path, _SYSTEMD, interface), method, signature, arguments)
    try:
        bus = open_dbus_connection(f"unix:path={BUS}", enable_fds=True, auth_timeout=_SECONDS)
        with contextlib.closing(bus):
            reply = bus.send_and_get_reply(call, timeout=_SECONDS)
    except (OSError, ValueError) as error:  # ValueError: the bus lets this process in under no name
        raise NodeKeeperError(f"the node's systemd cannot be asked at {BUS}: {in_words(error)}") from error
    name = reply.header.fields.get(HeaderFields.error_name, "")
    if reply.header.message_type is MessageType.error:
        raise NodeKeeperError(f"the node's systemd refuses {method} of {UNIT}: {', '.join(map(str, reply.body))}", name)
    return tuple(reply.body)
