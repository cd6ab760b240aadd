"""What the webhook keeps up with: pods to be created at a fixed rate over TLS, while its certificate changes."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp

from tests.kubernetes.conftest import Pair, Webhook, recorded

RATE = 500
"""Requests per second."""
SECONDS = 5


def measure() -> list[float]:
    """Return how long each request waited for its answer, in ms. OSError when one was not answered with a patch."""
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-bench-") as directory:
        webhook = Webhook(Pair(Path(directory)), Path(directory, "log"))
        try:
            return asyncio.run(_load(webhook))
        finally:
            webhook.stop()


async def _load(webhook: Webhook) -> list[float]:
    start = time.monotonic()
    body = json.dumps(recorded("deployment")).encode()

    async def ask(session: aiohttp.ClientSession, due: float) -> float:
        url = f"https://localhost:{webhook.port}/all"
        async with session.post(url, data=body, ssl=webhook.pair.trusting) as response:
            answer = await response.json()
        if response.status != 200 or "patch" not in answer["response"]:
            raise OSError(f"the webhook answered {response.status}: {answer}")
        return (time.monotonic() - due) * 1000

    requests = []
    # Some connections are kept, as an API server keeps them, and some are new.
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=32)) as kept,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=4, force_close=True)) as new,
    ):
        for number in range(RATE * SECONDS):
            due = start + number / RATE
            await asyncio.sleep(max(0, due - time.monotonic()))
            if number % (RATE * 2) == RATE:
                webhook.pair.swap()
            requests.append(asyncio.ensure_future(ask(new if number % 25 == 0 else kept, due)))
        return await asyncio.gather(*requests)


def sentence(waited: list[float]) -> str:
    """Return what was measured, from the waiting times in ms."""
    worst = max(waited)
    return (
        f"The webhook answered {RATE} requests per second for {SECONDS} s: "
        f"median {statistics.median(waited):.1f} ms, worst {worst:.1f} ms after a request was due.\n"
    )
