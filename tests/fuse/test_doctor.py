"""lxcfs-py doctor: what could be wrong, and what a container is told."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py import cli
from lxcfs_py.commands import checks
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import Daemon

MIB = 1 << 20


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """What it finds for a mountpoint, by check, and its exit code under ""."""

    def run(views: object, *options: object) -> Any:
        config = tmp_path / "doctor.toml"
        config.write_text(f'mountpoint = "{views}"\n')
        code = cli.main(["doctor", "--json", "--config", str(config), *map(str, options)])
        found: dict[str, Any] = {"": code}
        for finding in json.loads(capsys.readouterr().out):
            found.setdefault(finding["check"], []).append(finding)
        return found

    return run


def test_every_check_says_something_and_each_problem_what_to_do(
    doctor: Any, tmp_path: Path, sandbox: Callable[..., Sandbox]
) -> None:
    sandbox()
    found = doctor(tmp_path / "views")
    assert set(found) - {""} == set(checks.CHECKS)
    assert found[""] == 1
    for findings in found.values():
        for finding in findings if isinstance(findings, list) else []:
            assert finding["found"]
            assert finding["verdict"] == "ok" or finding["advice"] or "not looked at" in finding["found"]
    assert found["daemon"][0]["verdict"] == "problem"


def test_a_mount_that_is_left_over_is_a_problem_and_holds_nobody_up(
    doctor: Any, start_daemon: Callable[..., Daemon]
) -> None:
    daemon = start_daemon("kernel")
    assert doctor(daemon.mountpoint)["mountpoint"][0]["verdict"] == "ok"
    daemon.process.send_signal(signal.SIGSTOP)
    (silent,) = doctor(daemon.mountpoint)["mountpoint"]
    daemon.process.kill()
    daemon.process.wait(10)
    (dead,) = doctor(daemon.mountpoint)["mountpoint"]
    assert [each["verdict"] for each in (silent, dead)] == ["problem"] * 2
    assert "does not answer" in silent["found"]
    assert "has ended" in dead["found"]


def test_a_container_without_files_is_named(
    doctor: Any, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    daemon = start_daemon("kernel")
    with_files, without = sandbox(views=daemon.mountpoint), sandbox()
    found = doctor(daemon.mountpoint)
    assert found["daemon"][0]["verdict"] == "ok", found["daemon"]
    text = " ".join(finding["found"] for finding in found["containers"])
    assert f"(process {without.init}): " in text
    assert f"(process {with_files.init}): " not in text


def test_a_container_is_asked_by_each_way_beside_what_is_right(
    doctor: Any, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    daemon = start_daemon("kernel")
    box = sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)
    found = doctor(daemon.mountpoint, "--pid", box.init)
    files, sysinfo = found["memory"]
    assert files == {"check": "memory", "verdict": "ok", "found": "/proc/meminfo says 256 MiB", "advice": ""}
    assert sysinfo["found"].endswith("; 256 MiB is right")
    assert "agent" in sysinfo["advice"]
    assert [finding["verdict"] for finding in found["CPUs"][:2]] == ["ok", "ok"]
    bare = doctor(daemon.mountpoint, "--pid", sandbox(memory=128 * MIB).init)
    assert bare["memory"][0]["verdict"] == "warning"
    assert "lxcfs-py attach" in bare["memory"][0]["advice"]


@pytest.mark.slow
def test_where_nobody_serves_a_containers_files_that_is_said_and_what_helps(
    doctor: Any, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    own, other = start_daemon("kernel"), start_daemon("kernel")
    box = sandbox(memory=256 * MIB, views=other.mountpoint)

    def told(views: object = own.mountpoint) -> Any:
        found = doctor(views, "--pid", box.init)
        (finding,) = found.pop("files")
        assert (found.pop(""), finding["verdict"]) == (1, "problem")
        assert finding["found"].startswith("/proc/cpuinfo, ")
        assert not any("/proc" in other["found"] for others in found.values() for other in others)
        return finding

    other.process.send_signal(signal.SIGSTOP)
    silent = told()
    assert silent["found"].endswith("does not answer: who reads them waits")
    assert f"kill -KILL {other.process.pid} ends it, and the mount" in silent["advice"]
    assert silent["advice"].endswith(f"; or give them this daemon's: lxcfs-py attach --replace --pid {box.init}")
    assert silent["advice"].startswith(told(other.mountpoint)["advice"])
    (mount,) = doctor(own.mountpoint)["dead mounts"]
    assert mount["found"].endswith("with files whose server does not answer: who reads them waits")
    other.process.kill()
    other.process.wait(10)
    dead = told()
    assert dead["found"].endswith("has ended: reading them fails")
    assert dead["advice"] == f"lxcfs-py attach --dead --pid {box.init}"
    assert told(other.mountpoint)["advice"] == f"{dead['advice']}, once a daemon serves {other.mountpoint}"
    (mount,) = doctor(own.mountpoint)["dead mounts"]
    assert mount["found"].endswith("with files whose server has ended: reading them fails")
    assert mount["advice"] == "lxcfs-py attach --dead --all"


def test_nothing_of_the_question_stays_in_the_container(
    doctor: Any, start_daemon: Callable[..., Daemon], sandbox: Callable[..., Sandbox]
) -> None:
    daemon = start_daemon("kernel")
    box = sandbox(memory=256 * MIB, views=daemon.mountpoint)
    doctor(daemon.mountpoint, "--pid", box.init)
    assert (box.cgroup("memory") / "cgroup.procs").read_text().split() == [str(box.init)]
