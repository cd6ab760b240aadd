"""Policies: which containers have which keys otherwise, and what is said of wrong ones."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from lxcfs_py import config
from lxcfs_py.cgroup import v1, v2
from lxcfs_py.config import Config, ConfigError, Cpu, Files, Memory, Policy
from lxcfs_py.container import visible_cpus
from lxcfs_py.daemon import policies
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.daemon.policies import applied
from lxcfs_py.runtimes.names import Identity
from lxcfs_py.views import sys_cpu

DOCKER = "/docker/0123456789ab"
NAMED = {DOCKER: Identity("docker", "0123456789ab", "db", {"tier": "data", "cpus": "all"}, "postgres:17")}

TEXT = """
[cpu]
mode = "quota"

[[policy]]
cgroup = "/docker/*"
cpu.mode = "cpuset"
memory.swap = false

[[policy]]
image = "postgres:*"
label = "cpus=a*"
[policy.cpu]
mode = "requests"
shares_per_cpu = 512

[[policy]]
label = "tier"
files.enabled = ["proc/meminfo"]
"""


def container(path):
    return SimpleNamespace(paths={"cpu": "/", "memory": path}, configured=None)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    monkeypatch.setattr(policies, "Names", lambda: SimpleNamespace(of=NAMED.get))


def test_the_last_policy_that_holds_has_the_word():
    read = config.parse(TEXT.encode(), "lxcfs.toml")
    assert config.parse(config.dump(read).encode(), "dumped") == read
    found = applied(container(DOCKER), read)
    assert found.cpu == Cpu("requests", 512)
    assert found.memory == Memory(swap=False)
    assert found.files.enabled == ("proc/meminfo",)
    assert (found.loadavg, found.mountpoint) == (read.loadavg, read.mountpoint)


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/docker/another", "cpuset"),
        ("/docker/another/init.scope", "cpuset"),
        ("/docker", "quota"),
        ("/system.slice/docker-1.scope", "quota"),
        ("/", "quota"),
    ],
)
def test_a_pattern_is_of_the_containers_cgroup_or_one_above_it(path, mode):
    assert applied(container(path), config.parse(TEXT.encode(), "lxcfs.toml")).cpu.mode == mode


def test_it_is_looked_up_again_where_the_file_or_the_cgroup_changes():
    box, read = container("/docker/1"), config.parse(TEXT.encode(), "lxcfs.toml")
    assert applied(box, read) is applied(box, read)
    box.paths = {"memory": "/elsewhere"}
    assert applied(box, read).cpu.mode == "quota"
    assert applied(box, Config()) == Config()


@pytest.mark.parametrize(("label", "mode"), [("requests", "requests"), ("all", "cpuset")])
def test_a_container_may_have_a_cpu_mode_by_its_label(monkeypatch, label, mode):
    labelled = Identity("docker", "1", "web", {"lxcfs.py/cpu-mode": label})
    monkeypatch.setattr(policies, "Names", lambda: SimpleNamespace(of=lambda path: labelled))
    assert applied(container("/docker/1"), config.parse(TEXT.encode(), "lxcfs.toml")).cpu.mode == mode


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("policy = 1", "1: policy is 1; allowed: up to 64 tables, [[policy]]"),
        ("[policy]\ncpu.mode = 'quota'", "1: policy is a table; allowed: up to 64 tables, [[policy]]"),
        ("[[policy]]\ncgroup = '/a/*'", '1: policy 1 has no setting; allowed: "files.enabled", "cpu.mode"'),
        ("[[policy]]\ncpu.mode = 'quota'", '1: policy 1 has no condition; allowed: "cgroup", "image", "label"'),
        ("[[policy]]\ncgroup = 'a'\ncpu.mode = 'quota'", '2: policy.cgroup has "a"; allowed: a cgroup\'s path'),
        ("[[policy]]\nimage = 1\ncpu.mode = 'quota'", "2: policy.image is 1; allowed: an image's name"),
        ("[[policy]]\nlabel = ''\ncpu.mode = 'quota'", '2: policy.label is ""; allowed: a label\'s KEY or KEY=VALUE'),
        (
            "[[policy]]\nlabel = 'a'\ncpu.mode = 'x'",
            '3: policy.cpu.mode is "x"; allowed: "quota", "cpuset", "requests"',
        ),
        ("[[policy]]\nlabel = 'a'\nlog.level = 'info'", '3: unknown key "policy.log.level"; '),
        ("[[policy]]\nlabel = 'a'\ncpu.mdoe = 'quota'", '3: unknown key "policy.cpu.mdoe"; did you mean "cpu.mode"?'),
        ("[[policy]]\nlabel = 'a'\ncpu = 2", '3: unknown key "policy.cpu"; '),
        (
            "[[policy]]\nlabel = 'a'\nmemory.swap = true\n[[policy]]\nlabel = 'b'\n[policy.memory]\nswap = 2",
            "7: policy.memory.swap is 2; allowed: true, false",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, error):
    with pytest.raises(ConfigError) as refused:
        config.parse(text.encode(), "lxcfs.toml")
    assert refused.value.errors[0].startswith(f"lxcfs.toml:{error}")


@pytest.mark.parametrize(
    ("shares", "quota", "expected"),
    [(2, None, 1), (1024, None, 1), (1100, None, 2), (2048, None, 2), (9000, None, 4), (4096, 1.5, 2)],
)
def test_in_mode_requests_shares_are_cpus_where_there_is_no_quota(cgroup, shares, quota, expected):
    asked = cgroup(cpu=SimpleNamespace(quota=lambda: quota, shares=lambda: shares))
    host = SimpleNamespace(online=lambda: (0, 1, 2, 3))
    visible = visible_cpus.visible(asked, host, Cpu("requests"))
    assert (visible.cpus, visible.whole) == (tuple(range(expected)), expected == 4)
    assert visible_cpus.visible(asked, host, Cpu("cpuset")).cpus == (0, 1, 2, 3)


@pytest.mark.parametrize(("files_of", "shares"), [({"cpu.weight": 39}, 1024), ({"cpu.weight": 79}, 2048), ({}, 2597)])
def test_weights_are_converted_as_kubernetes_makes_them_of_shares(files, files_of, shares):
    converted = v2.Cpu((files(files_of),)).shares()
    assert shares * 0.97 < converted <= shares + 1, "a weight is a whole number"
    assert v1.Cpu((files({"cpu.shares": shares}),), ()).shares() == shares
    assert v1.Cpu((files({}),), ()).shares() == 1024


@pytest.mark.parametrize("is_enabled", [False, True])
def test_triggers_and_the_names_in_a_tree_go_by_what_is_enabled_for_the_container(recorded, is_enabled):
    machine, tree, pressure = recorded("v2-64cpu"), sys_cpu.TREE, "proc/pressure/cpu"
    names = {True: (pressure, tree.name), False: ()}
    policy = Policy(cgroup="/*", settings=(("files.enabled", names[is_enabled]),))
    enabled = Config(files=Files(names[not is_enabled]), policy=(policy,))
    filesystem = Filesystem(machine.host, SimpleNamespace(of=lambda pid: machine.container), enabled)
    cgroup, *_ = json.loads(filesystem.trigger(os.getpid(), f"/{pressure}", b"some 150000 2000000\0"))
    assert (cgroup != "/") == is_enabled
    hidden = set(tree.names(machine.host, "")) - set(filesystem.readdir(0, f"/{tree.name}"))
    assert bool(hidden) == is_enabled
