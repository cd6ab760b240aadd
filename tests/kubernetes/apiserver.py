"""An API server that keeps what Kubernetes says of objects and their versions."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from lxcfs_py.webhook import certificates
from lxcfs_py.webhook.certificates import Served
from lxcfs_py.webhook.cluster import Cluster

NAME = "lxcfs-py-webhook"
SECRET = f"/api/v1/namespaces/views/secrets/{NAME}"
CONFIGURATION = f"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{NAME}"


class ApiServer:
    """Objects by their path: 404 for what is not there, 409 for what is there or has changed since it was read."""

    def __init__(self, directory: Path) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.writes: list[tuple[str, str, int]] = []
        self.refuses = False
        self._version = 0
        self._directory = directory
        self.put(CONFIGURATION, {"webhooks": [{"name": name, "clientConfig": {}} for name in ("a", "b")]})

    def put(self, path: str, item: dict[str, Any]) -> None:
        self._version += 1
        metadata = {**item.get("metadata", {}), "name": NAME, "resourceVersion": str(self._version)}
        self.objects[path] = {**item, "metadata": metadata}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        """Serve while the block runs; gives a Cluster for it, whose account is in the directory."""
        pair = certificates.make(["localhost"], datetime.datetime.now(datetime.timezone.utc))
        (self._directory / "ca.crt").write_bytes(pair.authorities)
        (self._directory / "namespace").write_text("views")
        (self._directory / "token").write_text("first\n")
        served = Served()
        served.load_pair(pair)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=served.context)
        await site.start()
        try:
            self.port = runner.addresses[0][1]
            yield Cluster(f"https://localhost:{self.port}", self._directory)
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        content = await request.json() if request.can_read_body else None
        await asyncio.sleep(0)  # others may come in between
        status, item = self._answer(request, content)
        if request.method != "GET":
            self.writes.append((request.method, request.path, status))
        return web.json_response(item, status=status)

    def _answer(self, request: web.Request, content: Any) -> tuple[int, dict[str, Any]]:
        if request.headers["Authorization"] != f"Bearer {(self._directory / 'token').read_text().strip()}":
            return failure(401, "Unauthorized")
        if self.refuses:
            return failure(403, "secrets is forbidden")
        path = request.path
        if request.method == "POST":
            path = f"{path}/{content['metadata']['name']}"
            if path in self.objects:
                return failure(409, "AlreadyExists")
        elif path not in self.objects:
            return failure(404, "NotFound")
        if request.method == "GET":
            return 200, self.objects[path]
        if request.method == "PUT":
            version = content["metadata"]["resourceVersion"]
            if version != self.objects[path]["metadata"]["resourceVersion"]:
                return failure(409, "Conflict: the object has been modified")
        self.put(path, content)
        return 201 if request.method == "POST" else 200, self.objects[path]

    def pair(self) -> tuple[bytes, bytes]:
        """Certificate and key in the Secret."""
        content = self.objects[SECRET]["data"]
        return base64.b64decode(content["tls.crt"]), base64.b64decode(content["tls.key"])

    def trusted(self) -> bytes:
        """What all webhooks of the configuration are trusted by."""
        (bundle,) = {hook["clientConfig"]["caBundle"] for hook in self.objects[CONFIGURATION]["webhooks"]}
        return base64.b64decode(bundle)


def failure(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"kind": "Status", "status": "Failure", "message": message, "code": status}
