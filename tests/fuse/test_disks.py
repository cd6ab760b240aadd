"""Disks that come and go, which all containers of the machine see."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import Callable

from bench import devices
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import Daemon

MakeSandbox = Callable[..., Sandbox]


def read(box: Sandbox, path: str) -> str:
    return str(box.run(["cat", path]).stdout)


def test_a_disk_that_comes_is_there_at_the_next_look_and_one_that_goes_is_gone(
    daemon: Daemon, sandbox: MakeSandbox, tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    control = Path("/dev/loop-control")
    require(control.exists(), "loop devices")
    box = sandbox(views=daemon.mountpoint)
    add, remove, number = 0x4C80, 0x4C81, 4711  # <linux/loop.h>: LOOP_CTL_ADD, LOOP_CTL_REMOVE
    with control.open("rb") as loops:
        for _ in range(2):
            fcntl.ioctl(loops, add, number)
            try:
                assert f"loop{number}" in box.run(["ls", "/sys/block"]).stdout
                assert read(box, f"/sys/block/loop{number}/size") == "0\n"
            finally:
                fcntl.ioctl(loops, remove, number)
            assert f"loop{number}" not in box.run(["ls", "/sys/block"]).stdout
            assert "No such file" in box.run(["cat", f"/sys/block/loop{number}/stat"]).stderr


def test_all_of_200_disks_are_listed_as_the_machine_lists_them(
    start_daemon: Callable[..., Daemon], sandbox: MakeSandbox, require: Callable[[object, str], None]
) -> None:
    require(Path("/dev/loop-control").exists(), "loop devices")
    daemon = start_daemon()
    box = sandbox(views=daemon.mountpoint)
    with devices.many(200) as names:
        listing = ["sh", "-c", "ls -1 /sys/block; cat /sys/block/*/size; cat /sys/block/loop5*/stat"]
        own = subprocess.run(listing, text=True, capture_output=True, check=True).stdout.splitlines()
        seen = box.run(listing, check=True).stdout.splitlines()
        assert set(names) <= set(seen)
        assert [line.split() for line in seen[:-200]] == [line.split() for line in own[:-200]]
        assert all(set(line.split()) == {"0"} for line in seen[-200:])
    assert not set(names) & set(os.listdir(daemon.mountpoint / "sys/block"))
