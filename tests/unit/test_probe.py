"""What a container is told by each way, as `lxcfs-py doctor` asks it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lxcfs_py.commands import probe
from lxcfs_py.linux import syscalls


@pytest.mark.parametrize("cpus", [1, 80, 81, 4096])
def test_the_cpus_of_large_machines_are_all_counted(cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/meminfo": "MemTotal:       24684092 kB\nMemFree:        1 kB\n",
        "/proc/stat": "".join(f"cpu{n} 100000 0 100000 9000000 0 0 0 0 0 0\n" for n in ["", *range(cpus)]) + "intr 0\n",
        "/proc/uptime": "100.25 1.00\n",
        "/sys/devices/system/cpu/online": ",".join(map(str, range(cpus))) + "\n",
    }
    for path, text in texts.items():
        file = tmp_path / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    really = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **named: really(f"{tmp_path}{path}" if path in texts else path, *rest, **named)
    )
    monkeypatch.setattr(syscalls, "setns", lambda *_: None)
    assert probe._read_inside(os.getpid(), [], texts) == {
        "/proc/meminfo": 24684092 << 10,
        "/proc/stat": cpus,
        "/proc/uptime": 100.25,
        "/sys/devices/system/cpu/online": cpus,
    }


def test_what_cannot_be_read_there_is_told_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open
    monkeypatch.setattr(
        os,
        "open",
        lambda path, *rest, **named: really("/none/such" if str(path).startswith("/sys/") else path, *rest, **named),
    )
    monkeypatch.setattr(syscalls, "setns", lambda *_: None)
    assert probe._read_inside(os.getpid(), [], probe._FIGURES)["/sys/devices/system/cpu/online"] == 0
