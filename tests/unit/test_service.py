"""What the daemon does at its end, which must be short where another server waits for it to leave."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from lxcfs_py.config import Config
from lxcfs_py.daemon import service
from lxcfs_py.engine import kernel, session


def test_after_a_takeover_nothing_is_waited_for(monkeypatch):
    """The files have no server until this process is gone; what it started ends with it."""
    done = []
    ready = threading.Event()
    engine = service.Engine(
        name="kernel",
        answers=lambda: True,
        wait=lambda: ready.wait(10) and service._TAKEN_OVER,
        stop=lambda: done.append("engine"),
        invalidate=lambda path: None,
        stuck=lambda patience: "",
    )
    served = SimpleNamespace(
        filesystem=SimpleNamespace(config=Config()),
        supervisor=SimpleNamespace(apply=lambda config: None, stop=lambda: done.append("supervisor")),
        containers=[],
    )
    monkeypatch.setattr(service, "choose_engine", lambda wanted: ("kernel", "so the test wants it"))
    monkeypatch.setattr(service, "_start_kernel", lambda config: (served, engine))
    monkeypatch.setattr(service, "_listen_for_metrics", lambda *_: lambda: done.append("metrics"))
    monkeypatch.setattr(service, "_run", lambda service, engine, unit, signals, *_: signals.recv(1))
    assert service.serve(Config(), ready.set) == 0
    assert done == []


def test_a_server_leaves_although_nobody_can_be_told_to_keep_its_session_no_longer(monkeypatch):
    def refused():
        raise ConnectionRefusedError

    stopped, leave = [], []
    kept = SimpleNamespace(mountpoint=Config().mountpoint, texts=None, slots=[], agreed=(0, 0))
    server = SimpleNamespace(start=lambda: None, stop=stopped.append, wait=lambda: "", invalidate=lambda path: None)
    monkeypatch.setattr(session, "inherit", lambda: kept)
    monkeypatch.setattr(session, "store_with_systemd", lambda kept: True)
    monkeypatch.setattr(session, "remove_from_store", refused)
    monkeypatch.setattr(session, "offer", lambda kept, function: leave.append(function))
    monkeypatch.setattr(kernel, "Server", lambda *_: server)
    filesystem = SimpleNamespace(hidden=frozenset)
    monkeypatch.setattr(service, "Service", lambda *_: SimpleNamespace(filesystem=filesystem))
    service._start_kernel(Config())
    leave[0]()
    assert stopped == [service._TAKEN_OVER]
