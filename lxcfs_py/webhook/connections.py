"""TLS connections, at most so many: whoever opens a lot of them, or says nothing, keeps nobody else out."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Callable, Optional, cast

from aiohttp import web
from aiohttp.typedefs import Handler

log = logging.getLogger(__name__)

MOST = 128  # at a time: each takes up to 0.4 MB
FIRST_SECONDS = 10.0  # for a handshake and the header of the first request
NEXT_SECONDS = 120.0  # from one request to the next; an API server closes what it has not used for 90 seconds
_BACKLOG = 1024
_RETRY_SECONDS = 0.1


def listen(host: Optional[str], port: int) -> list[socket.socket]:
    """Return sockets that listen at each address of a host, of this machine where that is None. OSError."""
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        absent: Optional[OSError] = None
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            try:
                listeners.append(opened.enter_context(socket.create_server(address, family=family, backlog=_BACKLOG)))
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                absent = error  # a machine may have IPv4 alone, or IPv6
        if absent and not listeners:
            raise absent
        opened.pop_all()
    return listeners


class _Connection:
    """One that was accepted: a handshake, then requests that come within a time."""

    def __init__(self, address: str, protocol: web.RequestHandler, handshake: asyncio.Task[None]) -> None:
        self.address = address
        self.is_busy = False
        self._protocol, self._handshake = protocol, handshake
        self._deadline: Optional[asyncio.TimerHandle] = None
        self.expect_request(FIRST_SECONDS)

    def expect_request(self, seconds: float) -> None:
        """End it unless the header of a request has come by then."""
        self.is_busy = False
        self._deadline = asyncio.get_running_loop().call_later(seconds, self.end)

    def begin_request(self) -> None:
        """Leave its time to whoever handles its request."""
        self.is_busy = True
        if self._deadline:
            self._deadline.cancel()

    def end(self) -> None:
        """Close it, whatever it is about."""
        if self._deadline:
            self._deadline.cancel()
        if self._protocol.transport:
            self._protocol.transport.abort()
        else:
            self._handshake.cancel()

    def has_ended(self) -> bool:
        """Tell whether nobody is connected any more."""
        return self._handshake.done() and self._protocol.transport is None


class Connections:
    """Accepts connections and lets an aiohttp server handle their requests."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._open: dict[web.RequestHandler, _Connection] = {}  # the one first that was used least recently
        self._accepting: list[asyncio.Task[None]] = []

    def serve(self, listeners: Sequence[socket.socket], server: Callable[[], web.RequestHandler]) -> None:
        """Accept what comes at these sockets from now on."""
        for listener in listeners:
            listener.setblocking(False)
            self._accepting.append(asyncio.ensure_future(self._accept(listener, server)))

    def close(self) -> None:
        """Accept nothing more; what is open stays."""
        for task in self._accepting:
            task.cancel()

    @web.middleware
    async def attend(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Be the application's outermost middleware: a request that is handled has a time limit of its own."""
        protocol = request.protocol
        connection = self._open.pop(protocol, None)
        if connection is None:  # it has just been ended
            return await handler(request)
        self._open[protocol] = connection
        connection.begin_request()
        try:
            return await handler(request)
        finally:
            connection.expect_request(NEXT_SECONDS)

    async def _accept(self, listener: socket.socket, server: Callable[[], web.RequestHandler]) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    accepted, address = await loop.sock_accept(listener)
                except OSError as error:
                    log.warning("a connection cannot be accepted: %s", error.strerror)
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                self._make_room()
                protocol = server()
                handshake = asyncio.ensure_future(self._shake_hands(accepted, protocol))
                self._open[protocol] = _Connection(address[0], protocol, handshake)

    async def _shake_hands(self, accepted: socket.socket, protocol: web.RequestHandler) -> None:
        loop = cast("asyncio.BaseEventLoop", asyncio.get_running_loop())
        with contextlib.suppress(OSError, asyncio.TimeoutError):  # the other side's fault, and it is told
            await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._context, ssl_handshake_timeout=FIRST_SECONDS
            )

    def _make_room(self) -> None:
        """End one connection where there are too many: of whoever has the most, the one that is idle the longest."""
        self._open = {protocol: one for protocol, one in self._open.items() if not one.has_ended()}
        if len(self._open) < MOST:
            return
        counts = collections.Counter(one.address for one in self._open.values())
        protocol, victim = min(self._open.items(), key=lambda item: (-counts[item[1].address], item[1].is_busy))
        victim.end()
        del self._open[protocol]
