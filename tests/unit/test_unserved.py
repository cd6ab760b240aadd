"""What helps a container with files that nobody serves, or that are served by one who does not answer."""

from __future__ import annotations

import pytest

from lxcfs_py.attach.servers import DEAD, SILENT
from lxcfs_py.commands import unserved
from lxcfs_py.config import Config
from lxcfs_py.linux import mount_table, mountpoint, serving

OTHER = "30 28 0:45 / /mnt/other rw - fuse.lxcfs lxcfs rw"
PART = "31 28 0:45 /proc/meminfo /bound rw - fuse.lxcfs lxcfs rw"


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the whole mount of a server that is known, after one of its files, at /mnt/other."""
    monkeypatch.setattr(mount_table, "read", lambda: mount_table.parse(f"{PART}\n{OTHER}\n"))
    monkeypatch.setattr(serving, "cure", lambda place: f"kill -CONT 9 resumes {place}")


def serves(monkeypatch: pytest.MonkeyPatch, *, answers: bool = True) -> None:
    """Something is mounted where this configuration's daemon serves."""
    monkeypatch.setattr(mountpoint, "is_mounted", lambda path: path == "/views")
    monkeypatch.setattr(mountpoint, "answers", lambda path: answers)


def cure(state: str, device: str = "0:45") -> str:
    return unserved.cure(state, device, "--pid 7", Config(mountpoint="/views"))


def test_files_of_one_that_has_ended_are_given_a_new_server_once_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serves(monkeypatch)
    assert cure(DEAD) == "lxcfs-py attach --dead --pid 7"
    serves(monkeypatch, answers=False)
    assert cure(DEAD) == "lxcfs-py attach --dead --pid 7, once a daemon serves /views"
    monkeypatch.setattr(mountpoint, "is_mounted", lambda path: False)
    assert cure(DEAD) == "lxcfs-py attach --dead --pid 7, once a daemon serves /views"


def test_of_one_that_does_not_answer_the_server_is_named_where_its_mount_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serves(monkeypatch, answers=False)
    assert cure(SILENT) == "kill -CONT 9 resumes /mnt/other"
    assert cure(SILENT, "0:46") == "resume or end its server"
    serves(monkeypatch)
    assert cure(SILENT) == (
        "kill -CONT 9 resumes /mnt/other; or give them this daemon's: lxcfs-py attach --replace --pid 7"
    )


def test_where_a_mount_is_is_where_the_whole_of_it_is() -> None:
    assert unserved.where("0:45") == "/mnt/other"
    assert unserved.where("0:46") == ""
