"""What `lxcfs-py explain` says of where figures come from, on made-up and recorded machines."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lxcfs_py.cgroup.layout import Hierarchy, Layout
from lxcfs_py.commands import entries, fields
from lxcfs_py.commands.sources import Subject, size, why_cpus, why_limit
from lxcfs_py.config import Config, Memory
from lxcfs_py.container.visible_cpus import Visible

BY_DEFAULT = Config()


@pytest.fixture
def subject(made, monkeypatch):
    """A function that makes up a container at /box, of cgroup v2, with these files below the hierarchy's mountpoint."""

    def of(files: dict[str, str], config: Config = BY_DEFAULT) -> Any:
        root = made({"cgroup/box/cgroup.procs": "", **{f"cgroup/{name}": text for name, text in files.items()}})
        hierarchy = Hierarchy(2, f"{root}/cgroup", "/")
        known: Any = Subject.__new__(Subject)
        known._layout = Layout(dict.fromkeys(("", "memory", "cpu", "cpuset"), hierarchy))
        known._paths = {"": "/box"}
        known.config = config
        known.host = SimpleNamespace(online=lambda: (0, 1, 2, 3))
        known.container = None
        monkeypatch.setattr(Subject, "visible", lambda self: Visible((0,), None))
        return known

    return of


def test_the_cpus_that_a_partition_has_taken_are_told_where_there_is_no_cpuset(subject):
    effective = "cpuset.cpus.effective"
    assert why_cpus(subject({effective: "0-3\n"})).startswith("no cpuset: it may run on the host's CPUs 0-3")
    assert why_cpus(subject({effective: "0-1\n"})).startswith("the cpuset of / allows CPUs 0-1 of the host's 0-3")
    assert why_cpus(subject({effective: "0-1\n", f"box/{effective}": "1\n"})).startswith(
        "the cpuset of its cgroup allows"
    )


def test_memory_high_is_a_limit_where_the_configuration_makes_it_one(subject):
    made = {"box/memory.max": f"{256 << 20}\n", "box/memory.high": f"{64 << 20}\n"}
    assert [limit.value for limit in subject(made).memory_limits()] == [256 << 20]
    limits = subject(made, Config(memory=Memory(high=True))).memory_limits()
    assert why_limit(limits, "8 GiB", size).startswith(
        "memory.high of its cgroup is 64 MiB; memory.max of its cgroup is 256 MiB; the host has 8 GiB"
    )


def test_the_limits_of_a_parent_that_counts_nothing_below_are_none(subject):
    known = subject(
        {f"{path}memory.limit_in_bytes": f"{size << 20}\n" for path, size in (("up/", 64), ("up/box/", 256))}
    )
    known._layout.hierarchies["memory"] = dataclasses.replace(known._layout.hierarchies["memory"], version=1)
    known._paths["memory"] = "/up/box"
    assert [limit.value for limit in known.memory_limits()] == [256 << 20, 64 << 20]
    Path(known._layout.hierarchies["memory"].directory("/up"), "memory.use_hierarchy").write_text("0\n")
    assert [limit.value for limit in known.memory_limits()] == [256 << 20]


def test_memory_that_no_controller_counts_is_said_to_be_the_hosts(cgroup, container_in, machine):
    for own, source in ((cgroup(), "the host's: no memory"), (machine.container.cgroup, "pgfault")):
        subject: Any = SimpleNamespace(container=container_in(own), host=machine.host, version=lambda _controller: 2)
        (entry,) = entries.of(subject, "proc/vmstat", "pgfault 7\n")
        assert entry.source.startswith(source)


def test_no_event_that_the_cgroup_counts_is_said_to_be_counted_by_nobody(machine):
    counted = {line.split()[0] for line in machine.cgroup("memory", "memory.stat").splitlines()}
    shown = {line.split()[0] for line in machine.own("proc/vmstat").decode().splitlines()}
    version = machine.container.cgroup.memory.__module__.endswith("v2") + 1
    if version == 1:
        counted &= {"pgfault", "pgmajfault"}  # of the others, cgroup v1 counts something else
    assert counted & shown
    said = {field: fields.source("proc/vmstat", field, version) for field in counted & shown}
    assert not {field for field, source in said.items() if source.startswith("0")}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("sda/stat", "diskstats"),
        ("sda/sda1/stat", "diskstats"),
        ("sda/size", "the host's"),
        ("sda/sda1/size", "the host"),
    ],
)
def test_what_a_disk_and_its_partitions_did_is_not_the_hosts(path, told):
    assert told in fields.source("sys/block", path, 2)


def test_zeros_are_not_told_as_the_kernels_pressure():
    def off(resource):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def told(pressure):
        subject = SimpleNamespace(container=SimpleNamespace(cgroup=SimpleNamespace(pressure=pressure)))
        (entry,) = entries.of(subject, "proc/pressure/cpu", "some avg10=0.00 total=0\n")
        return entry.source

    assert told(SimpleNamespace(read=lambda resource: b"some avg10=0.00 total=0\n")).startswith("the kernel's own")
    assert told(SimpleNamespace(read=off)).startswith("zeros: pressure is switched off")
    assert told(SimpleNamespace(read=lambda resource: None)).startswith("zeros: pressure is switched off")
    assert told(None).startswith("zeros: cgroup v1")
