"""lxcfs-py explain and show: why a container sees a figure."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py import cli, files
from lxcfs_py.commands import entries
from lxcfs_py.commands.sources import Subject
from lxcfs_py.config import Config
from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import Daemon

MIB = 1 << 20


@pytest.fixture
def explain(
    start_daemon: Callable[..., Daemon], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What it says of a file for a process, on one line."""
    daemon = start_daemon("kernel")
    config = tmp_path / "explain.toml"
    config.write_text(f'mountpoint = "{daemon.mountpoint}"\n')

    def run(*arguments: Any) -> str:
        cli.main([*map(str, arguments), "--config", str(config)])
        said = capsys.readouterr()
        return " ".join((said.out + said.err).split())

    run.views = daemon.mountpoint  # type: ignore[attr-defined]
    return run


def test_the_cgroup_whose_limit_holds_is_named_with_its_parents_and_the_host(
    explain: Any, sandbox: Callable[..., Sandbox]
) -> None:
    parent = sandbox(memory=64 * MIB)
    child = sandbox(memory=256 * MIB, parent=parent, views=explain.views)
    said = explain("explain", "meminfo:MemTotal", "--pid", child.init)
    assert "MemTotal: 64 MiB" in said
    outer, inner = (f"/{box.cgroup('memory').name}" for box in (parent, child))
    assert f"cgroup {outer}{inner} " in said
    assert f"of {outer} is 64 MiB; its cgroup has 256 MiB; the host has" in said
    assert "mounted and served" in said
    assert "sysinfo(2)" in said
    assert "sysinfo(2)" not in explain("explain", "meminfo:Slab", "--pid", child.init)
    assert "sched_getaffinity(2)" not in explain("explain", "stat:iowait", "--pid", child.init)
    assert "sched_getaffinity(2)" in explain("explain", "stat", "--pid", child.init)


def test_why_one_cpu(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(cpus=0.5, cpuset="0", views=explain.views)
    said = explain("explain", "cpuinfo", "--cgroup", box.cgroup("cpu").name)
    assert "CPUs: 0 the cpuset of" in said
    assert "allows CPU 0 of the host's" in said
    assert "allows 0.5 CPUs' worth of time" in said


def test_whether_the_container_has_the_file_is_said(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    without = sandbox(memory=64 * MIB)
    assert "not mounted: it sees the host's" in explain("explain", "meminfo", "--pid", without.init)
    assert "is in no container" in explain("explain", "meminfo", "--pid", os.getpid())


def test_whether_a_container_with_the_hosts_pids_has_the_file_is_said_too(
    explain: Any, sandbox: Callable[..., Sandbox]
) -> None:
    directory = sandbox(memory=64 * MIB).cgroup("memory") / "service"
    directory.mkdir()
    script = "echo $$ >$1/cgroup.procs; mount --bind $2 /proc/meminfo; echo; exec sleep 1000"
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(directory), f"{explain.views}/proc/meminfo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            assert "mounted and served" in explain("explain", "meminfo", "--pid", process.pid)
            assert "not mounted: it sees the host's" in explain("explain", "stat", "--pid", process.pid)
        finally:
            process.kill()
            process.wait()
            directory.rmdir()


@pytest.mark.parametrize("name", files.NAMES)
def test_every_file_can_be_explained(name: str, explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    said = explain("explain", name, "--pid", sandbox(views=explain.views).init)
    assert "bug" not in said
    assert "mounted and served" in said
    assert len(said) > 100


def test_a_field_that_there_is_not_is_answered_with_those_there_are(
    explain: Any, sandbox: Callable[..., Sandbox]
) -> None:
    said = explain("explain", "uptime:nonsense", "--pid", sandbox(views=explain.views).init)
    assert said.endswith("proc/uptime has no field nonsense to explain there is: uptime, idle")


def test_what_was_misspelt_is_answered_with_what_was_meant(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(views=explain.views)
    assert "did you mean MemTotal?" in explain("explain", "meminfo:MemTotl", "--pid", box.init)
    assert "did you mean proc/meminfo?" in explain("explain", "memifno", "--pid", box.init)


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("meminfo:Slab", "Slab: 0 bytes (the host's: "),
        ("meminfo:memtotal", "MemTotal: 64 MiB memory."),
        ("meminfo:Committed_AS", "0: nobody counts it"),
        ("meminfo:Hugepagesize", "the kernel's constant"),
        ("stat:idle", "what is left of the time that the container may use"),
        ("stat:cpu0", "this CPU's part of cpu"),
        ("stat:ctxt", "ctxt: 0 (the host's: "),
        ("stat:btime", "in the reader's time namespace"),
        ("vmstat:pgfault", "pgfault: "),
        ("vmstat:nr_free_pages", "meminfo's field of that kind, in pages"),
        ("cpuinfo:processor", "processor: 0 (the host's: 0)"),
        ("loadavg:last pid", "the latest that a reader had"),
        ("sys/devices/system/cpu/online", "online: 0 (the host's: 0"),
        ("sys/devices/system/cpu/kernel_max", "the host's"),
        ("sys/devices/system/cpu/cpu0/topology/core_cpus_list", "in the host's form"),
    ],
)
def test_a_single_field_has_its_figure_the_hosts_and_its_source(
    field: str, said: str, explain: Any, sandbox: Callable[..., Sandbox]
) -> None:
    box = sandbox(memory=64 * MIB, cpuset="0", views=explain.views)
    assert said in explain("explain", field, "--pid", box.init)


@pytest.mark.parametrize("name", ["meminfo", "vmstat", "stat"])
def test_every_field_that_the_kernel_has_can_be_asked_for(
    name: str, explain: Any, sandbox: Callable[..., Sandbox]
) -> None:
    box = sandbox(views=explain.views)
    subject = Subject(box.init, Config(mountpoint=explain.views))
    text = box.run(["cat", f"/proc/{name}"]).stdout
    labels = {entry.label for entry in entries.of(subject, f"proc/{name}", text)}
    assert {line.split()[0].rstrip(":") for line in text.splitlines()} <= labels


def test_what_is_hidden_from_a_container_cannot_be_shown_of_it(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(cpuset="0", views=explain.views)
    hidden = "sys/devices/system/cpu/cpu1/topology/core_id"
    assert "No such file" in explain("show", hidden, "--pid", box.init)
    assert "No such file" in explain("explain", hidden, "--pid", box.init)


def test_links_are_followed_as_the_containers_kernel_does(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(memory=64 * MIB, views=explain.views)
    disk = next(path.name for path in Path("/sys/block").iterdir() if Path(path, "stat").read_text().split()[0] != "0")
    numbers = Path("/sys/block", disk, "dev").read_text().strip()
    shown = {
        path: explain("show", path, "--pid", box.init)
        for path in (f"sys/block/{disk}/stat", f"sys/class/block/{disk}/stat", f"sys/dev/block/{numbers}/stat")
    }
    assert set(shown.values()) == {" ".join(box.run(["cat", f"/sys/block/{disk}/stat"]).stdout.split())}
    assert f"{numbers}/stat: " in explain("explain", f"sys/dev/block/{numbers}/stat", "--pid", box.init)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("sys/devices/system/cpu/../../../../etc/passwd", "No such file"),
        ("sys/devices/system/cpu/online:x", "No such file"),
        ("sys/devices/system/cpu", "is a directory"),
        ("sys/devices/system/cpu/cpu0", "is a directory"),
        ("proc", "is a directory"),
        ("/", "is a directory"),
        ("", "is a directory"),
    ],
)
def test_what_is_no_file_is_said_in_a_sentence(path: str, said: str, explain: Any) -> None:
    for pid in (os.getpid(), os.getppid()):
        shown = explain("show", path, "--pid", pid)
        assert shown.startswith(f"lxcfs-py: {path!r} ")
        assert said in shown


def test_no_figures_are_told_of_a_file_that_is_not_enabled(
    explain: Any, sandbox: Callable[..., Sandbox], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = sandbox(memory=64 * MIB)
    without = tmp_path / "without.toml"
    without.write_text(f'mountpoint = "{explain.views}"\n[files]\nenabled = ["proc/stat"]\n')
    cli.main(["explain", "meminfo", "--pid", str(box.init), "--config", str(without)])
    said = capsys.readouterr().out
    assert "not enabled" in said
    assert "MemTotal" not in said


@pytest.mark.usefixtures("filters")
def test_a_clock_of_its_own_is_told(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(views=explain.views, own_clock=True)
    assert "the clock since boot of its time namespace" in explain("explain", "uptime", "--pid", box.init)
    told = json.loads(explain("doctor", "--json", "--pid", box.init))
    assert {each["verdict"] for each in told if each["check"] == "age"} == {"ok"}


@pytest.mark.slow
def test_show_asks_the_daemon_for_the_load(explain: Any, sandbox: Callable[..., Sandbox]) -> None:
    box = sandbox(views=explain.views)
    box.popen(["sh", "-c", "while :; do :; done"])
    box.run(["cat", "/proc/loadavg"])
    deadline = time.monotonic() + 30
    while explain("show", "loadavg", "--pid", box.init).startswith("0.00"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
