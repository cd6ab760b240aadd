"""A webhook that runs, and requests to it as a kube-apiserver makes them."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.webhook import certificates
from tests.conftest import ROOT, STOP
from tests.kept import wait_for

REVIEWS = Path(__file__).parent / "reviews"


def recorded(name: str) -> dict[str, Any]:
    """An AdmissionReview in the shape in which an API server sends it."""
    review: dict[str, Any] = json.loads((REVIEWS / f"{name}.json").read_text())
    return review


class Pair:
    """A certificate in files, as in a Secret's volume: a new one comes by the swap of a symbolic link."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate, self.key = directory / "..data/tls.crt", directory / "..data/tls.key"
        now = datetime.datetime.now(datetime.timezone.utc)
        pairs = [certificates.make(["localhost"], now) for _ in range(8)]
        authorities = b"".join(pair.authorities for pair in pairs).decode()
        self.trusting = ssl.create_default_context(cadata=authorities)  # whichever is served
        self._pairs = iter(pairs)
        self._number = 0
        self.swap()

    def swap(self) -> None:
        """Put another certificate, by another authority, in the place of the one that is there."""
        pair = next(self._pairs)
        self.put(pair.certificate, pair.key)

    def put(self, certificate: bytes, key: bytes) -> None:
        self._number += 1
        new = self.directory / f"..{self._number}"
        new.mkdir()
        (new / "tls.crt").write_bytes(certificate)
        (new / "tls.key").write_bytes(key)
        (self.directory / "..new").symlink_to(new)
        (self.directory / "..new").rename(self.directory / "..data")


class Webhook:
    """`lxcfs-py webhook` in a process of its own."""

    def __init__(self, pair: Pair, log: Path, *options: str) -> None:
        self.pair, self.log = pair, log
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        files = ("--certificate", str(pair.certificate), str(pair.key))
        command = [sys.executable, "-m", "lxcfs_py", "webhook", *files, "--listen", f"127.0.0.1:{self.port}", *options]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        try:
            wait_for(lambda: "listening" in log.read_text() or self.process.poll() is not None)
            assert self.process.poll() is None, log.read_text()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP)
            raise

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection("localhost", self.port, context=self.pair.trusting, timeout=10)

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer, over a connection of its own."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body or None, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()

    def ask(self, review: dict[str, Any], path: str = "/all") -> dict[str, Any]:
        """The `response` of the AdmissionReview that answers this one."""
        status, body = self.request("POST", path, json.dumps(review).encode())
        assert status == 200, body
        answer = json.loads(body)
        assert (answer["apiVersion"], answer["kind"]) == ("admission.k8s.io/v1", "AdmissionReview")
        assert answer["response"]["uid"] == review["request"]["uid"]
        assert answer["response"]["allowed"] is True
        response: dict[str, Any] = answer["response"]
        return response


@pytest.fixture
def start_webhook(tmp_path: Path) -> Iterator[Callable[..., Webhook]]:
    """start_webhook(*OPTIONS): a Webhook that is stopped when the test is over."""
    with contextlib.ExitStack() as stack:

        def start(*options: str) -> Webhook:
            (tmp_path / "secret").mkdir()
            webhook = Webhook(Pair(tmp_path / "secret"), tmp_path / "log", *options)
            stack.callback(webhook.stop)
            return webhook

        yield start


@pytest.fixture
def webhook(start_webhook: Callable[..., Webhook]) -> Webhook:
    return start_webhook()
