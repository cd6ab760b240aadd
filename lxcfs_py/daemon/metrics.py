"""What the daemon did, for Prometheus, over HTTP at `metrics.listen`."""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Callable
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.daemon.status import Status
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import threads
from lxcfs_py.linux.address import parse

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 8
_CONNECTION_SECONDS = 5
_KEPT_SECONDS = 1.0

_Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class MetricsError(LxcfsError):
    """Why there are no metrics: one sentence for the operator."""


def listen(address: str, status: Status, filesystem: Filesystem) -> Callable[[], None]:
    """Serve the metrics at "HOST:PORT", nothing at ""; return what stops that. MetricsError when it cannot be done.

    At /healthz it says only whether the daemon serves: 200, or 503 and why not.
    """
    if not address:
        return lambda: None
    try:
        import prometheus_client

        from lxcfs_py.daemon import exposition
    except ImportError:
        raise MetricsError(
            "metrics.listen needs the Python package prometheus-client (python3-prometheus-client)"
        ) from None
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(exposition.Collector(status, filesystem))
    text = _Text(lambda: prometheus_client.generate_latest(registry), prometheus_client.CONTENT_TYPE_LATEST)
    application = _with_healthz(text, status)
    host, port = parse(address)
    try:
        server = _server(host or "", port, application)
    except OSError as error:
        confined = error.errno == errno.EAFNOSUPPORT
        hint = "; the service needs a drop-in for that: lxcfs-py.service(8)" if confined else ""
        raise MetricsError(f"metrics.listen: nothing can listen at {address}: {error.strerror}{hint}") from None
    try:
        threads.start(server.serve_forever, name="metrics")
    except OSError as error:
        server.server_close()
        raise MetricsError(f"metrics.listen: {error.strerror}") from None
    log.info("metrics are at http://%s/metrics", address)

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def _server(host: str, port: int, application: _Application) -> _HttpServer:
    """Return one that listens there; "::" is all of this machine's addresses, whether it has IPv6 or not. OSError."""
    try:
        return make_server(host, port, application, _HttpServer, _QuietHandler)
    except OSError as error:
        if host != "::" or error.errno != errno.EAFNOSUPPORT:
            raise
        return make_server("0.0.0.0", port, application, _HttpServer, _QuietHandler)


class _Text:
    """Answers with the metrics. Their text is made once a second at most, as readers wait while it is made."""

    def __init__(self, make: Callable[[], bytes], content_type: str) -> None:
        self._make, self._content_type = make, content_type
        self._lock = threading.Lock()
        self._text = b""
        self._until = float("-inf")

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._text = self._make()
                self._until = time.monotonic() + _KEPT_SECONDS
            text = self._text
        start_response("200 OK", [("Content-Type", self._content_type)])
        return [text]


def _with_healthz(metrics: _Application, status: Status) -> _Application:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("PATH_INFO") != "/healthz":
            return metrics(environ, start_response)
        trouble = status.trouble()
        start_response("503 Service Unavailable" if trouble else "200 OK", [("Content-Type", "text/plain")])
        return [f"{trouble or 'ok'}\n".encode()]

    return application


class _Connection:
    """One that was accepted, and has a thread of its own."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.is_answered = False
        """Whether its request has come, and the answer is being made."""


class _HttpServer(ThreadingMixIn, WSGIServer):
    """One that takes IPv6 addresses too, and that no silent client keeps from answering others, or from its end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._open: dict[socket.socket, _Connection] = {}  # the oldest first
        self._lock = threading.Lock()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, and ask no name server for this machine's name, as HTTPServer does: it may take its time."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # whatever net.ipv6.bindv6only is
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread. Where there are too many, one gives way first."""
        with self._lock:
            if len(self._open) >= _MAX_CONNECTIONS:
                self._make_room()
            self._open[request] = _Connection(client_address[0])
        super().process_request(request, client_address)

    def begin_answer(self, request: Any) -> None:
        """Let a connection whose request has come stay before those that have sent none."""
        with self._lock:
            if request in self._open:
                self._open[request].is_answered = True

    def _make_room(self) -> None:
        """End one connection: of whoever has the most, the oldest that has sent no request, else the oldest."""
        counts = collections.Counter(one.address for one in self._open.values())
        victim, _ = min(self._open.items(), key=lambda item: (-counts[item[1].address], item[1].is_answered))
        del self._open[victim]
        with contextlib.suppress(OSError):  # it has gone by itself
            victim.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Be that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.pop(request, None)


class _QuietHandler(WSGIRequestHandler):
    """One that does not log each request, nor that a client went away or said nothing."""

    timeout = _CONNECTION_SECONDS
    server: _HttpServer

    def handle(self) -> None:
        """Answer one request."""
        with contextlib.suppress(OSError):
            super().handle()

    def parse_request(self) -> bool:
        """Tell the server that a whole request has come."""
        is_whole = super().parse_request()
        if is_whole:
            self.server.begin_answer(self.connection)
        return is_whole

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
