"""The webhook's connections: their deadlines, and what becomes of the others where somebody opens a thousand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from aiohttp import web

from lxcfs_py.webhook import connections, server
from lxcfs_py.webhook.certificates import Served
from tests.kubernetes.conftest import Pair, recorded

ATTACKER = ("127.0.0.2", 0)


def unshaken(webhook, plain):
    return webhook.pair.trusting.wrap_socket(plain, do_handshake_on_connect=False, server_hostname="localhost")


def begin(tls):
    """Say the first of a handshake, and wait for nothing."""
    tls.setblocking(False)
    with contextlib.suppress(OSError):
        tls.do_handshake()


@pytest.fixture
def silent(webhook):
    """silent(COUNT, SAID): connections of another address that say nothing after that; None: before a handshake."""
    with contextlib.ExitStack() as stack:

        def connect(count, said):
            for number in range(count):
                plain = socket.create_connection(("127.0.0.1", webhook.port), 10, ATTACKER)
                stack.callback(plain.close)
                if said is None:
                    continue
                tls = stack.enter_context(unshaken(webhook, plain))
                if number < connections.MOST - 1:
                    tls.do_handshake()
                    tls.sendall(said)
                else:  # it waits to be let in
                    begin(tls)

        yield connect


BODY = b"POST /all HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\nabc"


@pytest.mark.parametrize("said", [None, b"", BODY], ids=["before the handshake", "after it", "in a body"])
def test_a_thousand_connections_that_say_nothing_keep_nobody_out(webhook, silent, said):
    with contextlib.closing(webhook.connect()) as kept:
        kept.request("GET", "/healthz")
        assert kept.getresponse().read() == b"ok\n"
        silent(1000, said)
        for _ in range(20):
            assert "patch" in webhook.ask(recorded("deployment"))
        kept.request("POST", "/all", json.dumps(recorded("deployment")).encode())
        assert kept.getresponse().status == 200, "one who has few connections keeps them"
    memory = psutil.Process(webhook.process.pid).memory_info()
    assert memory.rss <= 128 << 20
    assert "Traceback" not in webhook.log.read_text()


def test_clients_that_go_away_in_a_handshake_leave_nothing(webhook):
    for _ in range(2000):
        with unshaken(webhook, socket.create_connection(("127.0.0.1", webhook.port), 10, ATTACKER)) as tls:
            begin(tls)
    assert webhook.request("GET", "/healthz")[0] == 200
    assert psutil.Process(webhook.process.pid).memory_info().rss <= 128 << 20


@pytest.mark.parametrize("stays", [False, True], ids=["each closes its connection", "all connections stay open"])
def test_of_a_burst_of_reviews_from_one_address_each_is_answered(webhook, stays):
    body = json.dumps(recorded("deployment")).encode()
    barrier = threading.Barrier(400)

    def ask(_number):
        connection = webhook.connect()
        connection.timeout = 60
        stack.callback(connection.close)
        barrier.wait()
        connection.request("POST", "/all", body)
        status = connection.getresponse().status
        if not stays:
            connection.close()
        return status

    with contextlib.ExitStack() as stack, ThreadPoolExecutor(barrier.parties) as clients:
        assert Counter(clients.map(ask, range(barrier.parties))) == {200: barrier.parties}
    assert "Traceback" not in webhook.log.read_text()


async def ask(port, trusting, said):
    """What comes back from one who says that, and nothing more."""
    reader, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
    writer.write(said)
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def say_nothing(port, trusting, said):
    reader, _ = await asyncio.open_connection("localhost", port)
    return await reader.read()


async def trickle(port, trusting, said):
    """One who sends a byte now and then, and never the end of the header."""
    _, writer = await asyncio.open_connection("localhost", port, ssl=trusting)
    with contextlib.suppress(OSError, ssl.SSLError):
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)
    return b""


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("client", "said", "answers"),
    [(say_nothing, b"", 0), (ask, b"", 0), (ask, REQUEST[:-2], 0), (trickle, b"", 0), (ask, REQUEST, 1)],
    ids=["no handshake", "no request", "half a header", "a byte now and then", "no second request"],
)
def test_a_connection_without_a_request_is_closed(client, said, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(connections, "FIRST_SECONDS", 0.3)
    monkeypatch.setattr(connections, "NEXT_SECONDS", 0.3)
    pair = Pair(tmp_path)
    served = Served()
    served.load(str(pair.certificate), str(pair.key))

    async def healthz(_request):
        return web.Response(text="ok\n")

    async def scenario():
        accepted = connections.Connections(served.context)
        app = web.Application(middlewares=[accepted.attend])
        app.router.add_get("/healthz", healthz)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listeners = connections.listen("localhost", 0)
        accepted.serve(listeners, runner.server)
        try:
            return await asyncio.wait_for(client(listeners[0].getsockname()[1], pair.trusting, said), 20)
        finally:
            accepted.close()
            await runner.cleanup()

    assert asyncio.run(scenario()).count(b"200 OK") == answers


def test_it_listens_where_the_machine_has_an_address():
    listeners = connections.listen(None, 0)
    try:
        assert {listener.family for listener in listeners} <= {socket.AF_INET, socket.AF_INET6}
        assert listeners
    finally:
        for listener in listeners:
            listener.close()


def test_idle_connections_live_as_long_as_is_said():
    async def scenario():
        runner = server._runner(web.Application())
        await runner.setup()
        seconds = runner.server().keepalive_timeout
        await runner.cleanup()
        return seconds

    assert asyncio.run(scenario()) == connections.NEXT_SECONDS
