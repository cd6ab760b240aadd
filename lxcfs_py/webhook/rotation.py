"""The webhook's own certificate: made, kept in a Secret, told to the API server, and renewed in time.

Several replicas do the same thing side by side. Who finds that the certificate has to be renewed writes a new one; of
two who do, the API server takes the first, by the object's resourceVersion, and the other reads that. A Secret that
somebody else made, such as cert-manager, is served and never written.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import logging
from typing import Callable, Optional

from lxcfs_py.webhook import certificates
from lxcfs_py.webhook.certificates import CertificateError, Pair, Served
from lxcfs_py.webhook.cluster import Cluster, ClusterError
from lxcfs_py.webhook.patch import Object

log = logging.getLogger(__name__)

RENEWAL = datetime.timedelta(days=120)  # before the end of a certificate
LOOK_SECONDS = 60.0
_RETRY_SECONDS = 2.0
_SETTLING_SECONDS = 10.0  # for all API servers to know of a new authority
_ATTEMPTS = 5

_OURS = {"app.kubernetes.io/managed-by": "lxcfs-py"}  # the label of a Secret that is ours to write
_CERT_MANAGERS = "cert-manager.io/certificate-name"  # the annotation of one that cert-manager has made its own
_CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


class Rotation:
    """The Service, the Secret and the MutatingWebhookConfiguration are all called `name`."""

    def __init__(
        self, cluster: Cluster, name: str, served: Served, now: Callable[[], datetime.datetime] = _utc_now
    ) -> None:
        self._cluster = cluster
        self._name = name
        self._served = served
        self._now = now
        self._loaded: Optional[Pair] = None
        service = f"{name}.{cluster.namespace}.svc"
        self._names = [service, f"{service}.cluster.local"]
        self._secrets = f"/api/v1/namespaces/{cluster.namespace}/secrets"

    async def follow(self) -> None:
        """Renew what has to be renewed, and serve with what is there. Does not return."""
        while True:
            try:
                published = await self.step()
            except (ClusterError, CertificateError) as error:
                log.error("%s; trying again", error)
                published = False
            await asyncio.sleep(LOOK_SECONDS if published else _RETRY_SECONDS)

    async def step(self, settling: float = _SETTLING_SECONDS) -> bool:
        """Bring Secret, API server and server in line; tell whether the API server knows the authority.

        ClusterError, CertificateError.
        """
        pair = await self._pair()
        published = await self._publish(pair.authorities)
        if pair != self._loaded:
            if self._loaded:  # whichever replica told it: it still takes the one that is served
                await asyncio.sleep(settling)
            self._served.load_pair(pair)
            self._loaded = pair
        return published

    async def _pair(self) -> Pair:
        """Return what is in the Secret, renewed if need be."""
        path = f"{self._secrets}/{self._name}"
        for _ in range(_ATTEMPTS):
            secret = await self._cluster.get(path)
            pair = _pair_of(secret)
            if secret is not None and not _is_ours(secret):
                if pair is None:
                    raise ClusterError(f"the Secret {self._name} is not ours, and has no tls.crt, tls.key and ca.crt")
                return pair
            if pair and self._is_good(pair):
                return pair
            new = certificates.make(self._names, self._now())
            if secret is None:
                metadata = {"name": self._name, "namespace": self._cluster.namespace, "labels": _OURS}
                made = await self._cluster.create(self._secrets, _secret({"metadata": metadata}, new))
            else:
                made = await self._cluster.replace(path, _secret(secret, new))
            if made is not None:
                log.info("made a new certificate for %s", self._names[0])
                return new
        raise ClusterError(f"the Secret {self._name} is changed by others all the time")

    def _is_good(self, pair: Pair) -> bool:
        try:
            certificates.check(pair)
            left = certificates.expires(pair.certificate) - self._now()
            return left > RENEWAL and certificates.names_of(pair.certificate) == self._names
        except (CertificateError, ValueError):
            return False

    async def _publish(self, authorities: bytes) -> bool:
        """Let the API server trust these; tell whether it does.

        The authority of before is trusted too: replicas that have not looked yet serve with its certificate.
        """
        path = f"{_CONFIGURATIONS}/{self._name}"
        authorities = authorities.rstrip() + b"\n"  # another certificate comes after it
        for _ in range(_ATTEMPTS):
            configuration = await self._cluster.get(path)
            if configuration is None:
                log.warning("there is no MutatingWebhookConfiguration %s yet", self._name)
                return False
            clients = [webhook.setdefault("clientConfig", {}) for webhook in configuration.get("webhooks") or ()]
            bundles = [_bundle_of(client) for client in clients]
            if all(bundle.startswith(authorities) for bundle in bundles):
                return True
            for client, bundle in zip(clients, bundles):
                trusted = authorities + certificates.first_of(bundle)
                client["caBundle"] = base64.b64encode(trusted).decode()
            if await self._cluster.replace(path, configuration) is not None:
                return True
        raise ClusterError(f"the MutatingWebhookConfiguration {self._name} is changed by others all the time")


def _bundle_of(client: Object) -> bytes:
    """Return what a clientConfig trusts; nothing if that cannot be read."""
    try:
        return base64.b64decode(client.get("caBundle") or "")
    except (TypeError, ValueError):
        return b""


def _is_ours(secret: Object) -> bool:
    metadata = secret.get("metadata") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return _OURS.items() <= labels.items() and _CERT_MANAGERS not in annotations


def _pair_of(secret: Optional[Object]) -> Optional[Pair]:
    content = (secret or {}).get("data") or {}
    try:
        return Pair(*(base64.b64decode(content[key]) for key in ("tls.crt", "tls.key", "ca.crt")))
    except (KeyError, TypeError, ValueError):
        return None


def _secret(secret: Object, pair: Pair) -> Object:
    content = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": pair.authorities}
    encoded = {key: base64.b64encode(value).decode() for key, value in content.items()}
    return {"type": "kubernetes.io/tls", **secret, "apiVersion": "v1", "kind": "Secret", "data": encoded}
