"""The webhook is asked over TLS, as a kube-apiserver asks it, and its patches make pods that Kubernetes takes."""

from __future__ import annotations

import base64
import contextlib
import copy
import datetime
import gzip
import http.client
import json
import os
import subprocess
import sys
import time

import jsonpatch
import kubernetes_validate
import pytest
from cryptography.hazmat.primitives import serialization

from lxcfs_py.config import Config
from lxcfs_py.runtimes.bind_snippets import binds_of, kubernetes_volumes
from lxcfs_py.webhook import certificates
from tests.conftest import ROOT
from tests.kept import wait_for
from tests.kubernetes.conftest import recorded
from tests.kubernetes.test_manifests import VERSIONS

FILES = {volume.target for volume in kubernetes_volumes(binds_of(Config()))}


def patched(webhook, review, path="/all"):
    """The pod as the API server has it after the webhook's answer."""
    response = webhook.ask(review, path)
    pod = review["request"]["object"]
    if "patch" not in response:
        return pod
    assert response["patchType"] == "JSONPatch"
    result = jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"])))
    for version in VERSIONS:
        kubernetes_validate.validate(without_nulls(result), version, strict=True)
    return result


def without_nulls(value):
    """As the API server stores it: creationTimestamp is null in what it sends, and in no object."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def targets(container):
    return {mount["mountPath"] for mount in container.get("volumeMounts", ())}


def test_a_deployments_pod_gets_the_files_in_all_its_containers(webhook):
    review = recorded("deployment")
    spec = patched(webhook, review)["spec"]
    for container in spec["initContainers"] + spec["containers"]:
        assert targets(container) >= FILES
    assert len(spec["volumes"]) == len(FILES) + 1
    # Nothing else has changed.
    for container in spec["initContainers"] + spec["containers"]:
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["mountPath"] not in FILES]
        if not container["volumeMounts"]:
            del container["volumeMounts"]
    spec["volumes"] = spec["volumes"][:1]
    assert spec == review["request"]["object"]["spec"]


def test_a_cronjobs_pod_without_any_volume_gets_the_files(webhook):
    spec = patched(webhook, recorded("cronjob"))["spec"]
    assert targets(spec["containers"][0]) == FILES
    assert len(spec["volumes"]) == len(FILES)


def test_a_pods_own_meminfo_stays(webhook):
    review = recorded("own-meminfo")
    (container,) = patched(webhook, review)["spec"]["containers"]
    mounts = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/proc/meminfo"]
    assert mounts == [{"name": "lxcfs-meminfo", "mountPath": "/proc/meminfo"}]
    assert targets(container) >= FILES


def test_an_ephemeral_container_gets_what_its_pod_has(webhook):
    review = recorded("ephemeral")
    before = review["request"]["object"]["spec"]
    spec = patched(webhook, review)["spec"]
    older, new = spec["ephemeralContainers"]
    assert targets(new) == {"/proc/meminfo", "/proc/cpuinfo"}
    assert older == before["ephemeralContainers"][0]
    assert {**spec, "ephemeralContainers": 0} == {**before, "ephemeralContainers": 0}


def test_a_pod_with_200_volumes_gets_the_files(webhook):
    review = recorded("deployment")
    spec = review["request"]["object"]["spec"]
    spec["volumes"] += [{"name": f"v{number}", "configMap": {"name": f"c{number}"}} for number in range(200)]
    spec["containers"][0]["volumeMounts"] += [
        {"name": f"v{number}", "mountPath": f"/etc/c{number}"} for number in range(200)
    ]
    result = patched(webhook, review)["spec"]
    assert len(result["volumes"]) == 201 + len(FILES)
    assert targets(result["containers"][0]) >= FILES


def test_the_api_server_asks_again_and_nothing_is_added_twice(webhook):
    review = recorded("deployment")
    review["request"]["object"] = patched(webhook, review)
    assert "patch" not in webhook.ask(review)


def test_the_path_tells_whether_pods_have_to_ask(webhook):
    review = recorded("deployment")
    assert "patch" not in webhook.ask(review, "/opt-in")
    review["request"]["object"]["metadata"]["annotations"] = {"lxcfs.py/views": "all"}
    assert "patch" in webhook.ask(review, "/opt-in")
    review["request"]["object"]["metadata"]["annotations"] = {"lxcfs.py/views": "none"}
    assert "patch" not in webhook.ask(review, "/all")


def test_a_dry_run_changes_nothing_and_logs_what_it_would_change(start_webhook):
    webhook = start_webhook("--dry-run")
    assert "patch" not in webhook.ask(recorded("deployment"))
    assert "pod 'shop'/'shop-6c9f7d5b8-' would be patched: [{" in webhook.log.read_text()


@pytest.mark.parametrize(
    "body", [b"garbage", b"\0\xff" * 1000, b"{}", b"[" * 1_000_000], ids=["text", "bytes", "empty", "deep"]
)
def test_garbage_is_refused_and_the_webhook_goes_on(webhook, body):
    assert webhook.request("POST", "/all", body)[0] == 400
    assert "patch" in webhook.ask(recorded("deployment"))


def test_ten_megabytes_are_refused_and_the_largest_pod_is_not(webhook):
    review = recorded("deployment")
    review["request"]["object"]["metadata"]["annotations"] = {"padding": "x" * 3_200_000}
    review["request"]["oldObject"] = copy.deepcopy(review["request"]["object"])
    # The pod is let in as well as patched: it is for the API server to say that it is too large.
    assert "patch" in webhook.ask({**review, "request": {**review["request"], "oldObject": None}})
    assert webhook.request("POST", "/all", json.dumps(review).encode())[0] == 413
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read all of it
        assert webhook.request("POST", "/all", json.dumps({"x": "y" * 10_000_000}).encode())[0] == 413
    assert "patch" in webhook.ask(recorded("deployment"))


def test_a_body_that_is_compressed_is_refused(webhook):
    body = gzip.compress(json.dumps(recorded("deployment")).encode())
    with contextlib.closing(webhook.connect()) as connection:
        connection.request("POST", "/all", body, {"Content-Encoding": "gzip"})
        assert connection.getresponse().status == 400


POST = b"POST /all HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("said", "then", "refused"),
    [
        (POST + b"Content-Length: 500\r\n\r\nabc", b"", 1),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", b"", 1),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", b"cde\r\nno number\r\n", 1),
        (POST + b"Content-Length: abc\r\n\r\n", b"", 0),
        (b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n", b"", 0),
    ],
    ids=["gone in a body", "gone in a chunk", "no chunk", "no length", "no line"],
)
def test_what_is_no_whole_request_is_counted_where_it_began_one_and_logs_nothing(webhook, said, then, refused):
    before = webhook.log.read_text()
    with contextlib.closing(webhook.connect()) as connection:
        connection.connect()
        connection.sock.sendall(said)
        webhook.request("GET", "/healthz")  # the first part is taken by then
        connection.sock.sendall(then)
    wait_for(lambda: outcomes(webhook)["refused"] == refused)
    assert outcomes(webhook) == {"patched": 0, "unchanged": 0, "refused": refused, "failed": 0}
    assert webhook.log.read_text() == before


def samples(webhook):
    _, text = webhook.request("GET", "/metrics")
    return dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))


def outcomes(webhook):
    found = samples(webhook)
    return {name: float(found[f'lxcfs_webhook_reviews_total{{outcome="{name}"}}']) for name in OUTCOMES}


def test_health_and_metrics(webhook):
    assert webhook.request("GET", "/healthz") == (200, b"ok\n")
    webhook.ask(recorded("deployment"))
    webhook.ask(recorded("deployment"), "/opt-in")
    webhook.request("POST", "/all", b"garbage")
    assert outcomes(webhook) == {"patched": 1, "unchanged": 1, "refused": 1, "failed": 0}
    assert float(samples(webhook)["lxcfs_webhook_certificate_expiry_timestamp_seconds"]) > time.time() + 86400


OUTCOMES = ("patched", "unchanged", "refused", "failed")


def test_connections_that_are_open_live_through_another_certificate(webhook):
    with contextlib.closing(webhook.connect()) as connection:
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        first = connection.sock.getpeercert(binary_form=True)
        webhook.pair.swap()
        wait_for(lambda: served(webhook) != first)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
        assert connection.sock.getpeercert(binary_form=True) == first


def served(webhook):
    """The certificate that a new connection gets."""
    with contextlib.closing(webhook.connect()) as connection:
        connection.connect()
        return connection.sock.getpeercert(binary_form=True)


def test_a_certificate_that_does_not_fit_its_key_is_not_taken(webhook):
    before = served(webhook)
    certificate = webhook.pair.certificate.read_bytes()
    webhook.pair.swap()
    good = webhook.pair.key.read_bytes()
    wait_for(lambda: served(webhook) != before)
    before = served(webhook)
    webhook.pair.put(certificate, good)
    wait_for(lambda: "the one of before stays" in webhook.log.read_text())
    assert served(webhook) == before


def test_without_tls_there_is_no_answer(webhook):
    with contextlib.closing(http.client.HTTPConnection("localhost", webhook.port, timeout=10)) as connection:
        connection.request("GET", "/healthz")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            connection.getresponse()


def test_it_ends_in_order_when_told_to(webhook):
    webhook.ask(recorded("deployment"))
    assert webhook.stop() == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (
            ["--listen", "8443"],
            2,
            " webhook: error: argument --listen: nothing can listen at '8443'; allowed: :PORT, HOST:PORT, ",
        ),
        (["--listen", "localhost:99999"], 2, " webhook: error: argument --listen: nothing can listen at"),
        (["--listen", "192.0.2.1:8443"], 1, ": nothing can listen at 192.0.2.1:8443: "),
        (["--certificate", "/dev/zero", "/dev/zero"], 1, ": /dev/zero cannot be read: it is no regular file"),
        (["--certificate", "/none", "/none"], 1, ": /none cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(webhook, options, code, said):
    files = ["--certificate", str(webhook.pair.certificate), str(webhook.pair.key)]
    listen = [] if "--listen" in options else ["--listen", "127.0.0.1:1"]
    command = [sys.executable, "-m", "lxcfs_py", "webhook", *files, *listen, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(f"lxcfs-py{said}")
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stderr


NOW = datetime.datetime.now(datetime.timezone.utc)
PAIR, OTHER = (certificates.make(["lxcfs-py-webhook.views.svc"], NOW) for _ in range(2))
ENCRYPTED = serialization.load_pem_private_key(PAIR.key, None).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
)


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        (PAIR.certificate, OTHER.key, "the key {0}/key is not that of the certificate {0}/certificate"),
        (PAIR.certificate, ENCRYPTED, "the key {0}/key is encrypted; allowed: one that needs no passphrase"),
        (PAIR.certificate, PAIR.certificate, "{0}/key has no private key; allowed: PEM"),
        (PAIR.key, PAIR.key, "{0}/certificate has no certificate that can be read; allowed: PEM"),
        (
            PAIR.certificate,
            PAIR.key[:60] + b"\n-----END PRIVATE KEY-----\n",
            "the certificate {0}/certificate with the key {0}/key cannot be served: one of them cannot be read",
        ),
        (PAIR.certificate, b" " * ((1 << 20) + 1), "{0}/key has more than 1 MiB; allowed: up to that, in PEM"),
    ],
    ids=["another key", "encrypted", "no key", "no certificate", "cut off", "large"],  # the pairs are new each time
)
def test_what_is_wrong_with_a_pair_is_one_sentence_that_names_the_file(tmp_path, certificate, key, said):
    (tmp_path / "certificate").write_bytes(certificate)
    (tmp_path / "key").write_bytes(key)
    with pytest.raises(certificates.CertificateError) as caught:
        certificates.Served().load(f"{tmp_path}/certificate", f"{tmp_path}/key")
    assert str(caught.value) == said.format(tmp_path)


def test_certificate_and_key_may_be_in_one_file_and_nobody_waits_for_a_fifo(tmp_path):
    (tmp_path / "both").write_bytes(PAIR.certificate + PAIR.key)
    certificates.Served().load(f"{tmp_path}/both", f"{tmp_path}/both")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(certificates.CertificateError, match=r"/fifo cannot be read: it is no regular file$"):
        certificates.Served().load(f"{tmp_path}/fifo", f"{tmp_path}/fifo")


def test_without_its_packages_that_is_said():
    program = "import sys; sys.modules['aiohttp'] = None; from lxcfs_py.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "webhook", "--self-signed", "x"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "lxcfs-py: webhook needs the Python packages aiohttp, cryptography and prometheus-client"
    )
    assert done.stderr.count("\n") == 1
