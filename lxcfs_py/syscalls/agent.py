"""The agent: takes listeners from container runtimes, and answers the calls that come by them.

A runtime connects to the socket as a container starts, and sends the container's state and the listener (OCI runtime
specification, linux.seccomp.listenerPath). Nothing of the state is used: who calls is told by the kernel with each
call. A listener is kept by whoever keeps the session, under a name, and a call is received into memory that is kept
too: a successor answers what this process had taken when it died.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Callable

from lxcfs_py.linux import roots, seccomp
from lxcfs_py.syscalls.answers import ANSWERS, Render

log = logging.getLogger(__name__)

MAX_LISTENERS = 4096
MAX_CONNECTIONS = 64

PREFIX = "seccomp-"
"""Of the names under which listeners are kept."""

MEMORY = "seccomp.memory"
"""The name under which the memory is kept into which calls are received."""

_LISTENER = struct.Struct("=Q")  # in the memory behind the slot: the number of the listener whose call is in it, or 0
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
            for descriptor, events in self._poll.poll():
                try:
                    self._attend(descriptor, events)
                except Exception as error:  # whatever one container does, the others are answered
                    log.error("an agent's descriptor cannot be attended to: %r", error)
                    self._drop(descriptor)

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
        with contextlib.suppress(BlockingIOError):
            connection, _ = server.accept()
            _, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid or len(self._connections) >= MAX_CONNECTIONS:
                connection.close()
                return
            connection.setblocking(False)
            self._connections[connection.fileno()] = connection
            self._poll.register(connection, select.EPOLLIN)

    def _receive_listener(self, descriptor: int) -> None:
        """Take the listeners that a runtime sends; what else it sends is read and thrown away."""
        connection = self._connections[descriptor]
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, _MOST_STATE, 4)
        except OSError:
            message, descriptors = b"", []
        for listener in descriptors:
            os.set_inheritable(listener, False)
            if len(self._listeners) >= MAX_LISTENERS or not _is_listener(listener):
                log.error("a listener was refused: it is none, or there are %d already", len(self._listeners))
                os.close(listener)
                continue
            number = int.from_bytes(os.urandom(7), "big") + 1
            self._keep(f"{PREFIX}{number:x}", listener)
            self._add(number, listener)
        if not message:
            self._poll.unregister(descriptor)
            self._connections.pop(descriptor).close()

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


def _is_listener(descriptor: int) -> bool:
    return os.readlink(f"{roots.PROC}/self/fd/{descriptor}") == "anon_inode:seccomp notify"
