"""The agent: takes listeners from container runtimes, and answers the calls that come by them.

A runtime connects to the socket as a container starts, and sends the container's state and the listener (OCI runtime
specification, linux.seccomp.listenerPath). Of the state, the container's id is used, so that no container has more than
its share of the listeners: each process that is started in it by its runtime brings one. Who calls is told by the
kernel with each call. A listener is kept by whoever keeps the session, under a name, and a call is received into memory
that is kept too: a successor answers what this process had taken when it died.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import Callable

from lxcfs_py.linux import roots, seccomp
from lxcfs_py.linux.digest import digest
from lxcfs_py.syscalls.answers import ANSWERS, Render

log = logging.getLogger(__name__)

MAX_LISTENERS = 4096
MAX_OF_ONE = 256
"""Listeners of one container."""

MAX_CONNECTIONS = 64

PREFIX = "seccomp-"
"""Of the names under which listeners are kept."""

MEMORY = "seccomp.memory"
"""The name under which the memory is kept into which calls are received."""

_LISTENER = struct.Struct("=Q")  # in the memory behind the slot: the number of the listener whose call is in it, or 0
_OWNER_SHIFT = 40  # a listener's number: whose it is, and a random part
_PAUSE_SECONDS = 1.0  # without new connections, where there are no descriptors for them
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
_MOST_STATE = 1 << 16  # bytes of a container's state that are read at a time

Keep = Callable[[str, int], None]
Forget = Callable[[str], None]


class Agent:
    """Answers the calls of all containers in one thread, one call of each listener at a time."""

    def __init__(self, render: Render, keep: Keep, forget: Forget, kept: Mapping[str, int]) -> None:
        """Go on with what a predecessor kept: listeners and memory by their names."""
        self._render = render
        self._keep, self._forget = keep, forget
        self._poll = select.epoll()
        self._server: dict[int, socket.socket] = {}
        self._paused: dict[int, float] = {}  # servers, and until when
        self._connections: dict[int, socket.socket] = {}
        self._listeners: dict[int, int] = {}  # by descriptor, the number that names it
        memory = kept.get(MEMORY)
        if memory is None:
            memory = os.memfd_create(MEMORY, os.MFD_CLOEXEC)
            os.ftruncate(memory, mmap.PAGESIZE)
            keep(MEMORY, memory)
        self._memory = mmap.mmap(memory, mmap.PAGESIZE)
        self._slot = memoryview(self._memory)[: seccomp.SLOT]
        for name, descriptor in kept.items():
            if name.startswith(PREFIX):
                self._add(int(name[len(PREFIX) :], 16), descriptor)

    def listen(self, server: socket.socket) -> None:
        """Take listeners from whoever connects to a socket and is root."""
        server.setblocking(False)
        self._server[server.fileno()] = server
        self._poll.register(server, select.EPOLLIN)

    def start(self) -> None:
        """Answer from now on, in a thread of its own."""
        threading.Thread(target=self._run, name="syscalls", daemon=True).start()

    def __len__(self) -> int:
        return len(self._listeners)

    def _run(self) -> None:
        self._take_up()
        while True:
            self._attend_all()

    def _attend_all(self) -> None:
        """Do what there is to do, or wait for it."""
        for descriptor, events in self._poll.poll(_PAUSE_SECONDS if self._paused else None):
            try:
                self._attend(descriptor, events)
            except Exception as error:  # whatever one container does, the others are answered
                log.error("an agent's descriptor cannot be attended to: %r", error)
                self._drop(descriptor)
        for descriptor, until in list(self._paused.items()):
            if time.monotonic() >= until:
                del self._paused[descriptor]
                self._poll.register(descriptor, select.EPOLLIN)

    def _attend(self, descriptor: int, events: int) -> None:
        if descriptor in self._server:
            self._accept(self._server[descriptor])
        elif descriptor in self._connections:
            self._receive_listener(descriptor)
        elif events & select.EPOLLIN:
            self._receive_call(descriptor)
        else:  # nobody is left who could call
            self._drop(descriptor)

    # Listeners

    def _accept(self, server: socket.socket) -> None:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _NO_DESCRIPTORS:
                raise
            self._pause(server.fileno(), error)
            return
        _, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid or len(self._connections) >= MAX_CONNECTIONS:
            connection.close()
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._poll.register(connection, select.EPOLLIN)

    def _pause(self, server: int, error: OSError) -> None:
        """Leave those who connect waiting for a while: they have not got lost, and would be told of in a tight loop."""
        log.error("no listener can be taken for %.0f s: %s", _PAUSE_SECONDS, error.strerror)
        self._poll.unregister(server)
        self._paused[server] = time.monotonic() + _PAUSE_SECONDS

    def _receive_listener(self, descriptor: int) -> None:
        """Take the listeners that a runtime sends; what else it sends is read and thrown away."""
        connection = self._connections[descriptor]
        try:
            message, descriptors, flags, _ = socket.recv_fds(connection, _MOST_STATE, 4)
        except OSError:
            message, descriptors, flags = b"", [], 0
        if flags & socket.MSG_CTRUNC:
            log.error("a listener was lost, as there was no descriptor for it: its container's calls fail")
        owner = _owner(message)
        for listener in descriptors:
            os.set_inheritable(listener, False)
            refusal = self._refusal(owner, listener)
            if refusal:
                log.error("a listener was refused: %s", refusal)
                os.close(listener)
                continue
            number = owner << _OWNER_SHIFT | int.from_bytes(os.urandom(_OWNER_SHIFT // 8), "big")
            self._keep(f"{PREFIX}{number:x}", listener)
            self._add(number, listener)
        if not message:
            self._poll.unregister(descriptor)
            self._connections.pop(descriptor).close()

    def _refusal(self, owner: int, listener: int) -> str:
        """Return why a descriptor is not taken, "" if it is."""
        if not _is_listener(listener):
            return "it is none"
        if len(self._listeners) >= MAX_LISTENERS:
            return f"there are {MAX_LISTENERS} already"
        of_it = sum(number >> _OWNER_SHIFT == owner for number in self._listeners.values())
        return f"its container has {MAX_OF_ONE} already" if of_it >= MAX_OF_ONE else ""

    def _add(self, number: int, listener: int) -> None:
        self._listeners[listener] = number
        self._poll.register(listener, select.EPOLLIN)

    def _drop(self, listener: int) -> None:
        number = self._listeners.pop(listener, None)
        if number is not None:
            self._poll.unregister(listener)
            self._forget(f"{PREFIX}{number:x}")
            os.close(listener)

    # Calls

    def _receive_call(self, listener: int) -> None:
        self._note(self._listeners[listener])
        try:
            seccomp.receive(listener, self._slot)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):
                raise
        else:
            self._answer(listener)
        self._note(0)

    def _take_up(self) -> None:
        """Answer the call that a predecessor had received, if it had not answered it."""
        (number,) = _LISTENER.unpack_from(self._memory, seccomp.SLOT)
        for listener, known in self._listeners.items():
            if number and known == number and seccomp.parse(self._slot).id:
                self._answer(listener)
        self._note(0)

    def _note(self, number: int) -> None:
        _LISTENER.pack_into(self._memory, seccomp.SLOT, number)

    def _answer(self, listener: int) -> None:
        call = seccomp.parse(self._slot)
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any longer
            value = None
            try:
                value = self._write_answer(listener, call)
            except (OSError, ValueError, ArithmeticError, LookupError) as error:
                log.debug("a call of process %d is left to the kernel: %r", call.pid, error)
            if value is None:
                seccomp.let_through(listener, call.id)
            else:
                seccomp.answer(listener, call.id, value)

    def _write_answer(self, listener: int, call: seccomp.Notification) -> int | None:
        """Write an answer into the caller's memory; return what its call is to return, None to leave it to the kernel.

        The memory is that of the very process that waits: it was opened by its pid, and the call was valid after that.
        """
        find = ANSWERS.get((call.arch, call.number))
        answer = find(call, self._render) if find and call.pid else None
        if answer is None:
            return None
        memory = os.open(f"{roots.PROC}/{call.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)
        try:
            if not seccomp.is_valid(listener, call.id):
                return None
            written = os.pwrite(memory, answer.memory, answer.address)
        finally:
            os.close(memory)
        return answer.value if written == len(answer.memory) else None


def _owner(state: bytes) -> int:
    """Return a number that is the same for all listeners of one container, and never 0."""
    try:
        identity = str(json.loads(state)["state"]["id"])
    except (ValueError, LookupError, TypeError, RecursionError):
        identity = ""  # whoever does not say
    return int.from_bytes(digest(identity)[:3], "big") | 1


def _is_listener(descriptor: int) -> bool:
    return os.readlink(f"{roots.PROC}/self/fd/{descriptor}") == "anon_inode:seccomp notify"
