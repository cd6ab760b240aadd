"""The few calls to the API server that renewing a certificate needs, with the account that a pod has."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from pathlib import Path
from typing import Any, Optional

import aiohttp

from lxcfs_py.errors import LxcfsError
from lxcfs_py.webhook.patch import Object

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_SECONDS = 10.0


class ClusterError(LxcfsError):
    """Why the API server did not do something: one sentence for the operator."""


class Cluster:
    """The API server of the cluster that this pod is in. All paths are the API's, "/api/v1/…".

    `account` is the directory with token, ca.crt and namespace; the token is read anew for each call, as it changes.
    """

    def __init__(self, url: str, account: Path = ACCOUNT) -> None:
        """ClusterError when there is no such account."""
        self._url = url
        self._account = account
        try:
            self.namespace = (account / "namespace").read_text().strip()
            self._tls = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as error:
            what = "it has no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ClusterError(
                f"there is no service account at {account} ({error.filename or account / 'ca.crt'}: {what}); "
                "--self-signed is for pods of a cluster, --certificate for all else"
            ) from None

    async def get(self, path: str) -> Optional[Object]:
        """Return an object, None if there is none. ClusterError."""
        return await self._call("GET", path, absent=404)

    async def create(self, path: str, new: Object) -> Optional[Object]:
        """Return the object as it was made, None if there is one of that name. ClusterError."""
        return await self._call("POST", path, new, absent=409)

    async def replace(self, path: str, new: Object) -> Optional[Object]:
        """Return the object as it has become, None if it has changed since it was read. ClusterError."""
        return await self._call("PUT", path, new, absent=409)

    async def _call(
        self, method: str, path: str, content: Optional[Object] = None, absent: int = 0
    ) -> Optional[Object]:
        try:
            token = (self._account / "token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            timeout = aiohttp.ClientTimeout(total=_SECONDS)
            async with (
                aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
                session.request(method, self._url + path, json=content, ssl=self._tls) as response,
            ):
                text = await response.read()
            if response.status == absent:
                return None
            if response.status >= 400:
                raise ClusterError(f"the API server refuses {method} {path}: {response.status} {_message(text)}")
            found: Any = json.loads(text)
        except (OSError, ValueError, aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise ClusterError(f"the API server cannot be asked for {method} {path}: {error}") from None
        if not isinstance(found, dict):
            raise ClusterError(f"the API server answers {method} {path} with no object")
        return found


def in_pod() -> Cluster:
    """Return the cluster that this process is in. ClusterError when it is in none."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}") for name in ("HOST", "PORT"))
    if not host or not port:
        raise ClusterError("there is no cluster here: KUBERNETES_SERVICE_HOST and _PORT are not set")
    return Cluster(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}")


def _message(text: bytes) -> str:
    """Return what a Status object says, on one line."""
    try:
        return str(json.loads(text)["message"]).replace("\n", " ")[:300]
    except (ValueError, KeyError, TypeError):
        return ""
