"""The profile that the kubelet of a node finds."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from lxcfs_py.config import Config, Kubernetes
from lxcfs_py.daemon import degraded, node_profile
from lxcfs_py.runtimes import seccomp_profile

PODS = dataclasses.replace(Config(), kubernetes=Kubernetes(syscalls="pods"))


@pytest.fixture(autouse=True)
def kubelet(tmp_path, monkeypatch):
    monkeypatch.setattr(degraded, "_states", {})
    monkeypatch.setattr(node_profile, "KUBELET", tmp_path / "kubelet")
    installed = tmp_path / "installed.json"
    installed.write_text('{"listenerPath": "/elsewhere", "syscalls": []}')
    monkeypatch.setattr(seccomp_profile, "INSTALLED_AS_OCI", str(installed))
    return tmp_path / "kubelet"


def test_where_pods_are_answered_the_profile_names_the_daemons_socket(kubelet):
    node_profile.apply(Config())
    assert not kubelet.exists()
    node_profile.apply(PODS)
    path = kubelet / "seccomp/lxcfs-py/seccomp.json"
    assert json.loads(path.read_text()) == {"listenerPath": seccomp_profile.SOCKET, "syscalls": []}
    node_profile.apply(dataclasses.replace(PODS, mountpoint="/views"))
    assert json.loads(path.read_text())["listenerPath"] == seccomp_profile.socket_of("/views")
    node_profile.apply(Config())
    assert path.exists(), "pods that name it start anew"
    node_profile.remove("/elsewhere")
    assert path.exists(), "it is another daemon's"
    node_profile.remove("/views")
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [b"\xff", b"[]", bytes(2 << 20), None], ids=["binary", "list", "long", "FIFO"])
def test_what_is_no_profile_is_replaced(kubelet, content):
    path = kubelet / "seccomp/lxcfs-py/seccomp.json"
    path.parent.mkdir(parents=True)
    os.mkfifo(path) if content is None else path.write_bytes(content)
    node_profile.apply(PODS)
    assert json.loads(path.read_text()) == {"listenerPath": seccomp_profile.SOCKET, "syscalls": []}
    assert degraded.states() == {}


@pytest.mark.parametrize("content", ["[" * 200_000, "[5]", "5", "\xff"], ids=["nested", "list", "number", "Latin-1"])
def test_a_damaged_profile_of_the_package_is_said_and_keeps_nobody_from_serving(kubelet, content):
    Path(seccomp_profile.INSTALLED_AS_OCI).write_bytes(content.encode("latin-1"))
    node_profile.apply(PODS)
    assert "do not start here" in degraded.states()["profile"]
    assert not kubelet.exists()


def test_where_it_cannot_be_written_that_is_said(kubelet):
    kubelet.write_text("a file")
    node_profile.apply(PODS)
    assert "do not start here" in degraded.states()["profile"]
    kubelet.unlink()
    node_profile.apply(PODS)
    assert degraded.states() == {}
