"""TLS connections, at most so many: whoever opens a lot of them, or says nothing, keeps nobody else out."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import gc
import logging
import socket
import ssl
from collections.abc import Sequence
from typing import Callable, Optional, cast

from aiohttp import web
from aiohttp.typedefs import Handler

log = logging.getLogger(__name__)

MOST = 128  # at a time: each takes up to 0.4 MB; who comes then waits, which takes a descriptor
FIRST_SECONDS = 10.0  # for a handshake and the header of the first request
NEXT_SECONDS = 120.0  # from one request to the next; an API server closes what it has not used for 90 seconds
_PATIENCE_SECONDS = 1.0  # with one that is in the middle of something, while others wait
_MOST_WAITING = 512
_COLLECTED_AFTER = 32  # connections: Python knows how many objects one that has ended leaves, not how large they are
_BACKLOG = 1024
_RETRY_SECONDS = 0.1
_MOMENT_SECONDS = 0.02  # from one look for room to the next


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
    """One that has been let in: a handshake, then requests that come within a time."""

    def __init__(self, address: str, protocol: web.RequestHandler, handshake: asyncio.Task[None]) -> None:
        self.address = address
        self._protocol, self._handshake = protocol, handshake
        self._is_between_requests = False
        self._expect_request(FIRST_SECONDS)

    def begin_request(self) -> None:
        """Leave its time to whoever handles its request."""
        self._deadline.cancel()
        self._is_between_requests = False
        self._since = asyncio.get_running_loop().time()

    def end_request(self) -> None:
        """Wait for the next one, for a time."""
        self._is_between_requests = True
        self._expect_request(NEXT_SECONDS)

    def _expect_request(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._since = loop.time()
        self._deadline: asyncio.TimerHandle = loop.call_later(seconds, self.end)

    def end(self) -> None:
        """Close it, whatever it is about."""
        self._deadline.cancel()
        if self._protocol.transport:
            self._protocol.transport.abort()
        else:
            self._handshake.cancel()

    def is_idle(self) -> bool:
        """Tell whether it has its answers, and asks for nothing: an API server makes another one when it needs it."""
        transport = cast("Optional[asyncio.WriteTransport]", self._protocol.transport)
        return self._is_between_requests and not (transport and transport.get_write_buffer_size())

    def is_slow(self) -> bool:
        """Tell whether it has been about the same handshake, or the same request, for a while."""
        return asyncio.get_running_loop().time() - self._since > _PATIENCE_SECONDS

    def has_ended(self) -> bool:
        """Tell whether nobody is connected any more."""
        return self._handshake.done() and self._protocol.transport is None


class Connections:
    """Accepts connections and lets an aiohttp server handle their requests.

    No more than MOST are let in; the others wait, and whoever has the fewest is let in first.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._open: dict[web.RequestHandler, _Connection] = {}  # the one first that was used least recently
        self._waiting: dict[socket.socket, str] = {}  # the address of each; the one first that came first
        self._accepting: list[asyncio.Task[None]] = []
        self._let_in_so_far = 0
        self._next_look: Optional[asyncio.TimerHandle] = None

    def serve(self, listeners: Sequence[socket.socket], server: Callable[[], web.RequestHandler]) -> None:
        """Accept what comes at these sockets from now on."""
        for listener in listeners:
            listener.setblocking(False)
            self._accepting.append(asyncio.ensure_future(self._accept(listener, server)))

    def close(self) -> None:
        """Accept nothing more, and let nobody in; what is open stays."""
        for task in self._accepting:
            task.cancel()
        if self._next_look:
            self._next_look.cancel()
        for waiting in self._waiting:
            waiting.close()

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
            connection.end_request()

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
                self._waiting[accepted] = address[0]
                if len(self._waiting) > _MOST_WAITING:
                    self._turn_one_away()
                if not self._next_look:
                    self._let_in(server)

    def _turn_one_away(self) -> None:
        """Close one that waits: of whoever has the most, the one that came first."""
        counts = collections.Counter(self._waiting.values())
        victim = max(self._waiting, key=lambda one: counts[self._waiting[one]])
        del self._waiting[victim]
        victim.close()

    def _let_in(self, server: Callable[[], web.RequestHandler]) -> None:
        """Let in who waits, of whoever has the fewest first, while there is room; in a moment, look again."""
        self._next_look = None
        self._open = {protocol: one for protocol, one in self._open.items() if not one.has_ended()}
        counts = collections.Counter(one.address for one in self._open.values())
        while self._waiting:
            accepted, address = min(self._waiting.items(), key=lambda item: counts[item[1]])
            if len(self._open) >= MOST and not self._make_room(address, counts):
                self._next_look = asyncio.get_running_loop().call_later(_MOMENT_SECONDS, self._let_in, server)
                return
            del self._waiting[accepted]
            counts[address] += 1
            self._let_in_so_far += 1
            if self._let_in_so_far % _COLLECTED_AFTER == 0:
                gc.collect()
            protocol = server()
            handshake = asyncio.ensure_future(self._shake_hands(accepted, protocol))
            self._open[protocol] = _Connection(address, protocol, handshake)

    def _make_room(self, address: str, counts: collections.Counter[str]) -> bool:
        """End one connection for one from this address; tell whether there was one that may be ended.

        It is one of an address that has its share or more: one that is idle, or else one that is slow where the address
        that waits has fewer.
        """
        share = MOST / len({address, *filter(counts.get, counts)})
        above = [item for item in self._open.items() if counts[item[1].address] >= share]
        victims = [item for item in above if item[1].is_idle()]
        if not victims:
            victims = [item for item in above if counts[item[1].address] > counts[address] and item[1].is_slow()]
        if not victims:
            return False
        protocol, victim = max(victims, key=lambda item: counts[item[1].address])
        victim.end()
        del self._open[protocol]
        counts[victim.address] -= 1
        return True

    async def _shake_hands(self, accepted: socket.socket, protocol: web.RequestHandler) -> None:
        loop = cast("asyncio.BaseEventLoop", asyncio.get_running_loop())
        with contextlib.suppress(OSError, asyncio.TimeoutError):  # the other side's fault, and it is told
            await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=self._context, ssl_handshake_timeout=FIRST_SECONDS
            )
