"""What lxcfs-py doctor says of the mounts of a host, whatever their names are."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lxcfs_py.commands import checks
from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mount_table, roots

ROOT = b"28 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw"
SHARED = b"28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


def found(monkeypatch: pytest.MonkeyPatch, *lines: bytes, mountpoint: str = "/var/lib/lxcfs") -> checks.Found:
    """What is said of propagation where mountinfo has these lines."""
    text = os.fsdecode(b"\n".join(lines) + b"\n")
    monkeypatch.setattr(mount_table, "read", lambda: mount_table.parse(text))
    (finding,) = checks.CHECKS["mount propagation"](Config(mountpoint=mountpoint))
    finding.found.encode()  # as it is printed
    finding.advice.encode()
    return finding


def test_the_mount_around_the_mountpoint_is_shared_or_private(monkeypatch: pytest.MonkeyPatch) -> None:
    var = b"30 28 8:2 / /var rw shared:9 master:3 - xfs /dev/sdb1 rw"
    assert found(monkeypatch, ROOT, var).found == "/var is shared: a new mount reaches containers that follow it"
    private = found(monkeypatch, SHARED, b"30 28 8:2 / /var rw master:3 - xfs /dev/sdb1 rw")
    assert (private.verdict, private.advice) == (checks.WARNING, "mount --make-shared /var")


def test_of_two_mounts_at_one_place_the_upper_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    upper = b"31 28 8:3 / / rw - tmpfs none rw"
    assert found(monkeypatch, SHARED, upper).verdict == checks.WARNING
    assert found(monkeypatch, upper, SHARED).verdict == checks.OK


@pytest.mark.parametrize("name", [b"\xff\xfe", "a\u2028b".encode(), b"a\x0bb"])
def test_any_name_of_another_mount_is_one(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    other = b"33 28 0:50 / /mnt/" + name + b" rw - tmpfs none rw"
    assert found(monkeypatch, SHARED, other).verdict == checks.OK
    inside = f"/mnt/{os.fsdecode(name)}/views"
    assert found(monkeypatch, SHARED, other, mountpoint=inside).verdict == checks.WARNING


def test_blanks_in_a_name_are_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    other = rb"33 28 0:50 / /mnt/two\040words rw - tmpfs none rw"
    assert found(monkeypatch, SHARED, other, mountpoint="/mnt/two words/views").found.startswith("/mnt/two words is")


def test_a_root_that_is_no_mount_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be seen from here" in found(monkeypatch).found


def test_the_c_program_is_told_by_what_no_process_can_keep_waiting_who_asks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = {"7": ("lxcfs", "/usr/bin/lxcfs"), "8": ("lxcfs", "/usr/bin/python3"), "9": ("fifteen-letters", "/x")}
    for pid, (name, program) in programs.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{name}\n")
        (tmp_path / pid / "exe").symlink_to(program)
        os.mkfifo(tmp_path / pid / "cmdline")  # who opens it waits
    monkeypatch.setattr(roots, "PROC", str(tmp_path))
    (finding,) = checks.CHECKS["the C program lxcfs"](Config())
    assert finding.found == "it runs, as process 7"


@pytest.mark.parametrize(
    "error", [OSError(5, "no"), ValueError("\udcff"), LxcfsError("no"), subprocess.TimeoutExpired("systemctl", 1)]
)
def test_a_check_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(config: Config) -> None:
        raise error

    monkeypatch.setattr(checks, "CHECKS", {"first": fail, "second": lambda config: iter([checks.Found("ok", "well")])})
    first, second = checks.all_of(Config())
    assert (first.check, first.verdict) == ("first", checks.WARNING)
    assert second == checks.Finding("second", checks.OK, "well")
    first.found.encode()


def test_a_check_that_may_not_look_says_so_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(config: Config) -> None:
        raise PermissionError(13, "Permission denied", "/proc/1/ns/cgroup")

    monkeypatch.setattr(checks, "CHECKS", {"cgroups": refused})
    (finding,) = checks.all_of(Config())
    assert finding.found == "cannot be checked: /proc/1/ns/cgroup: Permission denied"
