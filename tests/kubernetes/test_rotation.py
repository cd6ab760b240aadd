"""The webhook's own certificate, with an API server that keeps what Kubernetes says of objects and their versions."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import ssl

import pytest
from cryptography import x509

from lxcfs_py.webhook import certificates
from lxcfs_py.webhook.certificates import LIFETIME, Served
from lxcfs_py.webhook.cluster import Cluster, ClusterError
from lxcfs_py.webhook.rotation import RENEWAL, Rotation
from tests.kubernetes.apiserver import CONFIGURATION, NAME, SECRET, ApiServer

TODAY = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
OVERDUE = TODAY - LIFETIME + RENEWAL - DAY  # a certificate of then is to be renewed since yesterday


class Replica:
    """A webhook's certificate, and a clock that can be set."""

    def __init__(self, cluster: Cluster, today: datetime.datetime = TODAY) -> None:
        self.served = Served()
        self.today = today
        self.rotation = Rotation(cluster, NAME, self.served, lambda: self.today)

    async def step(self) -> bool:
        return await self.rotation.step(settling=0.01)

    async def certificate(self, trusted: bytes) -> bytes:
        """What it serves to who trusts these authorities, as the API server connects to a Service; DER."""
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=self.served.context)
        async with server:
            host, port = server.sockets[0].getsockname()
            trusting = ssl.create_default_context(cadata=trusted.decode())
            name = f"{NAME}.views.svc"
            _, writer = await asyncio.open_connection(host, port, ssl=trusting, server_hostname=name)
            found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            writer.close()
            return found


@pytest.fixture
def api(tmp_path):
    return ApiServer(tmp_path)


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(certificates.first_of(pem).decode())


def test_the_first_replica_makes_a_certificate_and_the_api_server_trusts_it(api):
    async def scenario():
        async with api.running() as cluster:
            replica = Replica(cluster)
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])
            assert api.objects[SECRET]["type"] == "kubernetes.io/tls"
            writes = len(api.writes)
            assert await replica.step()
            assert len(api.writes) == writes, "there is nothing to do"

    asyncio.run(scenario())


def test_replicas_that_start_at_once_agree_on_one_certificate(api):
    async def scenario():
        async with api.running() as cluster:
            replicas = [Replica(cluster) for _ in range(4)]
            assert await asyncio.gather(*(replica.step() for replica in replicas)) == [True] * 4
            served = {await replica.certificate(api.trusted()) for replica in replicas}
            assert served == {der(api.pair()[0])}
            assert [status for method, path, status in api.writes if method == "POST"].count(201) == 1
            assert 409 in [status for _, _, status in api.writes]

    asyncio.run(scenario())


def test_it_is_renewed_before_it_ends_and_replicas_with_the_old_one_are_trusted_meanwhile(api):
    async def scenario():
        async with api.running() as cluster:
            first, second = Replica(cluster, OVERDUE), Replica(cluster, OVERDUE)
            await first.step()
            await second.step()
            old = api.pair()[0]
            first.today = TODAY - 2 * DAY
            await first.step()
            assert api.pair()[0] == old
            first.today = second.today = TODAY
            await first.step()
            new = api.pair()[0]
            assert new != old
            assert await first.certificate(api.trusted()) == der(new)
            assert await second.certificate(api.trusted()) == der(old)
            await second.step()
            assert await second.certificate(api.trusted()) == der(new)
            assert api.trusted().count(b"BEGIN CERTIFICATE") == 2
            left = certificates.expires(new) - first.today
            assert left > RENEWAL

    asyncio.run(scenario())


def test_a_certificate_that_another_replica_made_is_served_when_all_api_servers_know_of_it(api):
    async def scenario():
        async with api.running() as cluster:
            first, second = Replica(cluster, OVERDUE), Replica(cluster, OVERDUE)
            await first.step()
            await second.step()
            old = api.pair()[0]
            first.today = second.today = TODAY
            await first.step()
            settling = asyncio.ensure_future(second.rotation.step(settling=60))
            await asyncio.wait({settling}, timeout=1)
            assert await second.certificate(api.trusted()) == der(old)
            settling.cancel()

    asyncio.run(scenario())


def test_two_that_renew_at_once_write_one_certificate(api):
    async def scenario():
        async with api.running() as cluster:
            replicas = [Replica(cluster, OVERDUE) for _ in range(2)]
            for replica in replicas:
                await replica.step()
                replica.today = TODAY
            api.writes.clear()
            await asyncio.gather(*(replica.step() for replica in replicas))
            assert sorted(status for _, path, status in api.writes if path == SECRET) in ([200], [200, 409])
            for replica in replicas:
                assert await replica.certificate(api.trusted()) == der(api.pair()[0])

    asyncio.run(scenario())


def test_what_somebody_spoils_is_mended(api):
    async def scenario():
        async with api.running() as cluster:
            replica = Replica(cluster)
            await replica.step()
            for hook in api.objects[CONFIGURATION]["webhooks"]:
                hook["clientConfig"]["caBundle"] = ""
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])
            old = api.pair()
            api.put(SECRET, {**api.objects[SECRET], "data": {"tls.crt": "!!!"}})
            assert await replica.step()
            assert api.pair() != old
            del api.objects[SECRET]
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "authorities",
    [certificates.make([f"{NAME}.views.svc"], TODAY).authorities, b"", b"spoilt"],
    ids=["another", "none", "spoilt"],
)
def test_an_authority_that_has_not_signed_the_certificate_is_mended(api, authorities):
    async def scenario():
        async with api.running() as cluster:
            await Replica(cluster).step()
            other = base64.b64encode(authorities).decode()
            api.put(SECRET, {**api.objects[SECRET], "data": {**api.objects[SECRET]["data"], "ca.crt": other}})
            api.put(CONFIGURATION, {"webhooks": [{"clientConfig": {}}]})
            replica = Replica(cluster)
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])

    asyncio.run(scenario())


def test_a_key_that_is_another_certificates_is_mended(api):
    async def scenario():
        async with api.running() as cluster:
            replica = Replica(cluster)
            await replica.step()
            other = base64.b64encode(certificates.make([f"{NAME}.views.svc"], TODAY).key).decode()
            api.put(SECRET, {**api.objects[SECRET], "data": {**api.objects[SECRET]["data"], "tls.key": other}})
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])

    asyncio.run(scenario())


@pytest.mark.parametrize("hook", [{"clientConfig": {"caBundle": "a"}}, {"clientConfig": {"caBundle": 7}}, {}])
def test_a_bundle_that_cannot_be_read_is_mended(api, hook):
    async def scenario():
        async with api.running() as cluster:
            api.put(CONFIGURATION, {"webhooks": [hook]})
            replica = Replica(cluster)
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])

    asyncio.run(scenario())


def test_a_secret_of_somebody_elses_is_served_and_never_written(api):
    async def scenario():
        async with api.running() as cluster:
            service = f"{NAME}.views.svc"
            almost_over = certificates.make([service], TODAY - LIFETIME + DAY)
            content = dict(zip(("tls.crt", "tls.key", "ca.crt"), almost_over))
            encoded = {key: base64.b64encode(value).decode() for key, value in content.items()}
            api.put(SECRET, {"data": encoded})
            replica = Replica(cluster)
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(almost_over.certificate)
            assert [path for _, path, _ in api.writes] == [CONFIGURATION]
            api.put(SECRET, {"data": {}})
            with pytest.raises(ClusterError, match="not ours"):
                await replica.step()

    asyncio.run(scenario())


def test_authorities_whose_last_line_has_no_end_are_trusted_with_those_of_before(api):
    async def scenario():
        async with api.running() as cluster:
            replica = Replica(cluster)
            await replica.step()
            old = api.trusted()
            new = certificates.make([f"{NAME}.views.svc"], TODAY)
            content = {"tls.crt": new.certificate, "tls.key": new.key, "ca.crt": new.authorities.rstrip()}
            api.put(SECRET, {"data": {key: base64.b64encode(value).decode() for key, value in content.items()}})
            assert await replica.step()
            assert api.trusted() == new.authorities + old
            assert await replica.certificate(api.trusted()) == der(new.certificate)
            writes = len(api.writes)
            assert await replica.step()
            assert len(api.writes) == writes

    asyncio.run(scenario())


def test_one_that_cert_manager_has_taken_over_is_not_written(api):
    async def scenario():
        async with api.running() as cluster:
            replica = Replica(cluster)
            await replica.step()
            annotations = {"cert-manager.io/certificate-name": NAME}
            metadata = {**api.objects[SECRET]["metadata"], "annotations": annotations}
            api.put(SECRET, {**api.objects[SECRET], "metadata": metadata})
            before = api.pair()
            replica.today += LIFETIME
            await replica.step()
            assert api.pair() == before

    asyncio.run(scenario())


def test_there_is_a_certificate_before_there_is_a_webhook_configuration(api):
    async def scenario():
        async with api.running() as cluster:
            configuration = api.objects.pop(CONFIGURATION)
            replica = Replica(cluster)
            assert not await replica.step()
            api.put(CONFIGURATION, configuration)
            assert await replica.step()
            assert await replica.certificate(api.trusted()) == der(api.pair()[0])

    asyncio.run(scenario())


def test_the_token_is_read_anew_and_a_refusal_is_one_sentence(api, tmp_path):
    async def scenario():
        async with api.running() as cluster:
            replica = Replica(cluster)
            await replica.step()
            (tmp_path / "token").write_text("second\n")
            assert await replica.step()
            api.refuses = True
            with pytest.raises(ClusterError, match=f"refuses GET {SECRET}: 403 secrets is forbidden"):
                await replica.step()
        with pytest.raises(ClusterError, match="cannot be asked"):
            await replica.step()

    asyncio.run(scenario())


def test_where_there_is_no_account_that_is_said(tmp_path):
    def said() -> str:
        with pytest.raises(ClusterError, match=f"^there is no service account at {tmp_path} ") as caught:
            Cluster("https://localhost:1", tmp_path)
        return str(caught.value).partition("(")[2].partition(")")[0]

    assert said() == f"{tmp_path}/namespace: No such file or directory"
    (tmp_path / "namespace").write_text("views\n")
    assert said() == f"{tmp_path}/ca.crt: No such file or directory"
    (tmp_path / "ca.crt").write_text("spoilt\n")
    assert said() == f"{tmp_path}/ca.crt: it has no certificate"


def test_the_authority_has_signed_the_certificate_for_the_service_and_signs_nothing_else():
    pair = certificates.make(["a.b.svc"], TODAY)
    authority, certificate = (x509.load_pem_x509_certificate(pem) for pem in (pair.authorities, pair.certificate))
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificates.names_of(pair.certificate) == ["a.b.svc"]
    assert b"PRIVATE KEY" not in pair.certificate + pair.authorities
    assert json.dumps(pair.key.decode()).count("PRIVATE KEY") == 2
