"""The webhook's server: reviews, health and metrics over HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Optional

import prometheus_client
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from lxcfs_py.errors import LxcfsError
from lxcfs_py.runtimes.bind_snippets import HostPath
from lxcfs_py.webhook import bodies, connections, review
from lxcfs_py.webhook.certificates import Served

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Coroutine[Any, Any, web.Response]]


class ServerError(LxcfsError):
    """Why the webhook cannot serve: one sentence for the operator."""


def application(served: Served, volumes: Sequence[HostPath], dry_run: bool, syscalls: bool = False) -> web.Application:
    """Return what answers at /all and /opt-in, which differ in the pods that are patched, /healthz and /metrics.

    /all/forbidden and /opt-in/forbidden patch no pod, and say so: they are for namespaces that forbid hostPath. To be
    called in the loop that serves it.
    """
    metrics = prometheus_client.CollectorRegistry(auto_describe=False)
    reviews = prometheus_client.Counter(
        "lxcfs_webhook_reviews", "Requests, by what came of them.", ["outcome"], registry=metrics
    )
    for outcome in ("patched", "unchanged", "failed", "refused"):
        reviews.labels(outcome)
    expiry = prometheus_client.Gauge(
        "lxcfs_webhook_certificate_expiry_timestamp_seconds", "When the certificate ends.", registry=metrics
    )
    expiry.set_function(lambda: served.expiry)

    held = bodies.Bodies()
    parser = ThreadPoolExecutor(1)

    async def answered(body: bytearray, opt_in: bool, is_forbidden: bool) -> review.Answer:
        answer = functools.partial(review.answer, body, volumes, opt_in, is_forbidden, dry_run, syscalls)
        if len(body) <= bodies.SMALL:
            return answer()
        return await asyncio.get_running_loop().run_in_executor(parser, answer)  # others come between two of these

    def reviewer(opt_in: bool, is_forbidden: bool) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            try:
                async with held.whole(request) as body:
                    answer = await answered(body, opt_in, is_forbidden)
            except review.ReviewError as error:
                reviews.labels("refused").inc()
                return web.Response(status=400, text=f"{error}\n")
            except web.HTTPRequestEntityTooLarge:
                reviews.labels("refused").inc()
                return web.Response(status=413, text=f"allowed: {bodies.LARGEST} bytes\n")
            except asyncio.TimeoutError:
                reviews.labels("refused").inc()
                return web.Response(status=408, text=f"allowed: {bodies.SECONDS:.0f} seconds\n")
            except (OSError, web.RequestPayloadError):
                reviews.labels("refused").inc()
                return web.Response(status=400, text="the body did not come whole\n")
            reviews.labels(answer.outcome).inc()
            return web.json_response(answer.review)

        return handle

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def exposition(_request: web.Request) -> web.Response:
        headers = {"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        return web.Response(body=prometheus_client.generate_latest(metrics), headers=headers)

    app = web.Application()
    for path, opt_in in (("/all", False), ("/opt-in", True)):
        app.router.add_post(path, reviewer(opt_in, is_forbidden=False))
        app.router.add_post(f"{path}/forbidden", reviewer(opt_in, is_forbidden=True))
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", exposition)
    return app


async def serve(
    host: Optional[str],
    port: int,
    served: Served,
    follow: Coroutine[Any, Any, None],
    volumes: Sequence[HostPath],
    dry_run: bool,
    syscalls: bool,
) -> None:
    """Serve until SIGTERM or SIGINT; no host is all addresses. ServerError when nobody can listen there.

    `follow` keeps `served` up to date; until there is a certificate, handshakes fail.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    following = asyncio.ensure_future(follow)
    following.add_done_callback(lambda _: stop.set())
    app = application(served, volumes, dry_run, syscalls)
    open_connections = connections.Connections(served.context)
    app.middlewares.append(open_connections.attend)
    runner = _runner(app)
    await runner.setup()
    assert runner.server
    try:
        gc.freeze()  # what is there stays: to look through it for what ended connections leave took 16 ms
        open_connections.serve(_listen(host, port), runner.server)
        log.info("listening at port %d", port)
        await stop.wait()
    finally:
        open_connections.close()
        await runner.server.shutdown(bodies.SECONDS)
        await runner.cleanup()
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


def _runner(app: web.Application) -> web.AppRunner:
    logging.getLogger("aiohttp.server").addFilter(_is_no_clients_fault)
    # An API server compresses nothing, and what is compressed may be of any size.
    return web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=connections.NEXT_SECONDS,
        read_bufsize=bodies.SMALL,
    )


def _is_no_clients_fault(record: logging.LogRecord) -> bool:
    """Tell whether aiohttp is to log this: not what is no HTTP, which it answers with 400, traceback and all."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def _listen(host: Optional[str], port: int) -> list[socket.socket]:
    try:
        return connections.listen(host, port)
    except OSError as error:
        raise ServerError(f"nothing can listen at {host or ''}:{port}: {error.strerror}") from None
