"""Bodies of reviews: of large ones so many are held at a time, and whoever sends them slowly keeps nobody else out."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Optional

from aiohttp import web

LARGEST = 6 << 20  # two pods as large as an API server takes them, the new one and the one of before, and more around
SECONDS = 10.0
SMALL = 64 << 10  # more than pods mostly have; every connection may have that much here

_PLACES = 4
_PATIENCE_SECONDS = 1.0  # with a large one that does not come whole, while others wait


class _Large:
    """A body that has a place, or waits for one."""

    def __init__(self, request: web.Request) -> None:
        self.address = request.remote
        self._request = request
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_slow = False

    def end(self) -> None:
        """Close its connection, by which its reader is told."""
        if self._request.transport:
            self._request.transport.abort()

    def has_ended(self) -> bool:
        """Tell whether its connection is closed."""
        return self._request.transport is None


class Bodies:
    """Reads bodies of requests: small ones at once, large ones where there is a place for them.

    Whoever has the fewest places goes first.
    """

    def __init__(self) -> None:
        self._held: list[_Large] = []
        self._waiting: list[_Large] = []  # the one first that came first

    @contextlib.asynccontextmanager
    async def whole(self, request: web.Request) -> AsyncIterator[bytearray]:
        """Give a request's body, which is held as long as the block runs.

        HTTPRequestEntityTooLarge; asyncio.TimeoutError; OSError or RequestPayloadError where it does not come whole.
        """
        body = bytearray()
        with contextlib.ExitStack() as held:
            held.callback(body.clear)  # what became of it may keep it in a cycle
            await asyncio.wait_for(self._read(request, body, held), SECONDS)
            yield body

    async def _read(self, request: web.Request, body: bytearray, held: contextlib.ExitStack) -> None:
        await _read_on(request, body, SMALL + 1)
        if len(body) > SMALL:
            large = held.enter_context(self._place(request))
            await large.turn
            with self._patience(large):
                await _read_on(request, body, LARGEST + 1)
        if len(body) > LARGEST:
            raise web.HTTPRequestEntityTooLarge(LARGEST, len(body))

    @contextlib.contextmanager
    def _place(self, request: web.Request) -> Iterator[_Large]:
        """Have a body wait for its turn, and have a place, as long as the block runs."""
        large = _Large(request)
        self._waiting.append(large)
        self._let_in()
        try:
            yield large
        finally:
            for those in (self._waiting, self._held):
                if large in those:
                    those.remove(large)
            self._let_in()

    @contextlib.contextmanager
    def _patience(self, large: _Large) -> Iterator[None]:
        """Have a body give way to others, where the block runs for long."""

        def lose() -> None:
            large.is_slow = True
            self._let_in()

        timer = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, lose)
        try:
            yield
        finally:
            timer.cancel()
            large.is_slow = False

    def _let_in(self) -> None:
        """Give places to those who wait, to whoever has the fewest first, while there are some."""
        for large in filter(_Large.has_ended, tuple(self._waiting)):  # its reader is told as soon as it goes on
            self._give(large)
        while self._waiting:
            counts = collections.Counter(large.address for large in self._held)
            first = min(self._waiting, key=lambda large: counts[large.address])
            if len(self._held) >= _PLACES and not self._make_room(counts, counts[first.address]):
                return
            self._give(first)
            self._held.append(first)

    def _give(self, large: _Large) -> None:
        self._waiting.remove(large)
        if not large.turn.done():  # it may just have been given up
            large.turn.set_result(None)

    def _make_room(self, counts: collections.Counter[Optional[str]], fewer: int) -> bool:
        """End a slow one of whoever has the most, and more than that; tell whether there was one."""
        victims = [large for large in self._held if large.is_slow and counts[large.address] > fewer]
        if not victims:
            return False
        victim = max(victims, key=lambda large: counts[large.address])
        self._held.remove(victim)
        victim.end()
        return True


async def _read_on(request: web.Request, body: bytearray, most: int) -> None:
    """Read a body to its end, or until it has so many bytes."""
    while len(body) < most and (chunk := await request.content.read(min(most - len(body), SMALL))):
        body += chunk
