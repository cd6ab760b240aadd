"""Bodies of reviews: how many large ones are read at a time, and whose."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from aiohttp import web

from lxcfs_py.webhook import bodies, review, server
from lxcfs_py.webhook.certificates import Served
from tests.kubernetes.conftest import recorded

ATTACKER, API_SERVER = "127.0.0.2", "127.0.0.3"
SMALL = recorded("deployment")
LARGE = recorded("deployment")
LARGE["request"]["object"]["metadata"]["annotations"] = {"padding": "x" * 1_000_000}
ANNOUNCED = b"POST /all HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000\r\n\r\n{"
BEGUN = ANNOUNCED + b" " * 100_000


class Clients:
    """Those of a server, by their addresses."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def say(self, address, said):
        """Say that, and leave the connection as it is."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(address, 0))
        writer.write(said)
        await writer.drain()
        return reader, writer

    async def ask(self, address, asked):
        """The first line of the answer to a review."""
        body = json.dumps(asked).encode()
        head = b"POST /all HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        reader, writer = await self.say(address, head + body)
        try:
            return await asyncio.wait_for(reader.readline(), 60)
        finally:
            writer.close()

    async def refused(self):
        """How many requests were, so far."""
        reader, writer = await self.say(API_SERVER, b"GET /metrics HTTP/1.0\r\n\r\n")
        try:
            said = await asyncio.wait_for(reader.read(), 60)
        finally:
            writer.close()
        return float(said.split(b'outcome="refused"} ')[1].split()[0])


@pytest.fixture
def clients(monkeypatch):
    """clients(SCENARIO): have that coroutine function meet a server that waits for bodies as long as it takes."""
    monkeypatch.setattr(bodies, "SECONDS", 600)

    async def serving(scenario):
        runner = server._runner(server.application(Served(), [], dry_run=False))
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            await scenario(Clients(runner.addresses[0][1]))
        finally:
            await runner.server.shutdown(0.1)
            await runner.cleanup()

    return lambda scenario: asyncio.run(asyncio.wait_for(serving(scenario), 120))


def is_answered(line):
    return line == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("said", [ANNOUNCED, BEGUN], ids=["announced", "begun"])
def test_large_bodies_that_come_slowly_keep_no_other_address_out(clients, said):
    async def scenario(those):
        slow = [await those.say(ATTACKER, said) for _ in range(8)]
        await asyncio.sleep(0.2)
        for _ in range(3):
            assert is_answered(await those.ask(API_SERVER, LARGE))
        for _, writer in slow:
            writer.close()

    clients(scenario)


def test_large_bodies_wait_for_a_place_and_small_ones_do_not(clients):
    async def scenario(those):
        slow = [await those.say(API_SERVER, BEGUN) for _ in range(4)]
        await asyncio.sleep(0.2)
        waiting = asyncio.ensure_future(those.ask(API_SERVER, LARGE))
        assert is_answered(await those.ask(API_SERVER, SMALL))
        done, _ = await asyncio.wait({waiting}, timeout=2)
        assert not done
        slow[0][1].close()
        assert is_answered(await waiting)
        for reader, _ in slow[1:]:
            assert not reader.at_eof(), "an address does not take places from itself"

    clients(scenario)


def test_whoever_has_the_fewest_places_goes_first(clients, monkeypatch):
    monkeypatch.setattr(bodies, "_PATIENCE_SECONDS", 600)
    order = []

    async def scenario(those):
        async def ask(address):
            assert is_answered(await those.ask(address, LARGE))
            order.append(address)

        slow = [await those.say(ATTACKER, BEGUN) for _ in range(4)]
        await asyncio.sleep(0.2)
        asking = []
        for address in (ATTACKER, API_SERVER):
            asking.append(asyncio.ensure_future(ask(address)))
            await asyncio.sleep(0.2)
        slow[0][1].close()
        await asyncio.gather(*asking)

    clients(scenario)
    assert order == [API_SERVER, ATTACKER]


def test_small_reviews_are_answered_while_a_large_one_is_looked_at(clients, monkeypatch):
    goes_on = threading.Event()
    answer = review.answer

    def slowly(body, *options):
        assert len(body) <= bodies.SMALL or goes_on.wait(60)
        return answer(body, *options)

    monkeypatch.setattr(review, "answer", slowly)

    async def scenario(those):
        large = asyncio.ensure_future(those.ask(ATTACKER, LARGE))
        await asyncio.sleep(0.2)
        assert is_answered(await those.ask(API_SERVER, SMALL))
        assert not large.done()
        goes_on.set()
        assert is_answered(await large)

    clients(scenario)


def test_who_has_gone_waits_for_no_place(clients):
    async def scenario(those):
        slow = [await those.say(API_SERVER, BEGUN) for _ in range(4)]
        await asyncio.sleep(0.2)
        waiting = [await those.say(ATTACKER, BEGUN) for _ in range(10)]
        await asyncio.sleep(0.2)
        for _, writer in waiting:
            writer.close()
            await writer.wait_closed()
        await those.say(API_SERVER, BEGUN)  # the next one who comes to wait
        while await those.refused() < len(waiting):
            await asyncio.sleep(0.02)
        for _, writer in slow:
            writer.close()

    clients(scenario)
