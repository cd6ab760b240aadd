"""Where the daemon takes calls, and where it cannot."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from lxcfs_py.daemon import call_agent, degraded
from lxcfs_py.engine import store
from lxcfs_py.linux import seccomp
from lxcfs_py.runtimes import seccomp_profile


def test_where_no_call_can_be_let_through_none_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before Linux 5.5: a program would be told ENOSYS, where the kernel alone had an answer."""
    sockets = [tmp_path / name for name in ("seccomp.sock", "seccomp-lxc.sock")]
    for socket in sockets:
        socket.touch()  # of an older version
    monkeypatch.setattr(seccomp_profile, "SOCKET", str(sockets[0]))
    monkeypatch.setattr(degraded, "_states", {})
    monkeypatch.setattr(seccomp, "can_let_through", lambda: False)
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(others={}, before_handing_over=lambda _: None))
    agent = SimpleNamespace(start=lambda: None, stop=lambda: None)
    monkeypatch.setattr(call_agent, "Agent", lambda *_: agent)
    assert call_agent.start(SimpleNamespace(), "/var/lib/lxcfs") is agent.stop
    assert not any(socket.exists() for socket in sockets)
    assert "Linux 5.5 or later does" in degraded.states()["seccomp"]
