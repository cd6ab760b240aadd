"""For how long a mount stays away that is taken away again and again; and who holds what it is mounted from."""

from __future__ import annotations

import itertools
import os

import pytest

from lxcfs_py.daemon import own_mount
from lxcfs_py.engine import store


def test_the_pauses_get_longer_and_start_anew_when_the_mount_has_stayed():
    pauses = itertools.accumulate(range(9), lambda pause, _: own_mount.next_pause(pause, pause + 0.1), initial=0.0)
    assert list(pauses) == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert own_mount.next_pause(60.0, 601.0) == 1


@pytest.mark.parametrize(("socket", "told"), [("/run/lxcfs-py/keeper-5f", True), ("/run/systemd/notify", False)])
def test_a_keeper_holds_the_mount_and_systemd_does_not(monkeypatch, socket, told):
    messages = []
    monkeypatch.setenv("NOTIFY_SOCKET", socket)
    monkeypatch.setattr(store, "notify", lambda text, fds: messages.append(text))
    kept = store.Store()
    kept.keep(store.MOUNT, os.O_RDONLY)
    assert bool(messages) is told
    assert kept.others == {store.MOUNT: os.O_RDONLY}
