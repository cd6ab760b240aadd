"""The server of the metrics, with clients that connect and say nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from collections import Counter
from types import SimpleNamespace

import pytest

from lxcfs_py.daemon import metrics


@pytest.fixture
def served():
    """The port of a server, and what stops it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    filesystem = SimpleNamespace(reads=Counter({"proc/uptime": 3}), failures=0)

    class Containers:
        unplaced = 0

        def __len__(self):
            return 0

    return port, metrics.listen(f"127.0.0.1:{port}", filesystem, Containers())


def test_a_client_that_says_nothing_keeps_nobody_from_the_metrics_and_the_server_not_from_its_end(served):
    port, stop = served
    with socket.create_connection(("127.0.0.1", port)):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=3) as answer:
            assert b'lxcfs_reads_total{file="proc/uptime"} 3.0' in answer.read()
        stopping = threading.Thread(target=stop, daemon=True)
        stopping.start()
        stopping.join(3)
        assert not stopping.is_alive()


def test_clients_that_say_nothing_are_bounded(served):
    port, stop = served
    with contextlib.ExitStack() as stack:
        stack.callback(stop)

        def connect():
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=3))

        silent = [connect() for _ in range(metrics._MAX_CONNECTIONS)]
        assert connect().recv(1) == b"", "one more is closed at once"
        silent[0].settimeout(0.1)
        with pytest.raises(socket.timeout):
            silent[0].recv(1)


def test_a_client_that_says_nothing_is_let_go_without_a_word(served, monkeypatch, capfd):
    port, stop = served
    monkeypatch.setattr(metrics._QuietHandler, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        assert connection.recv(1) == b""
    stop()
    assert capfd.readouterr().err == ""
