"""Policies: which containers have which keys otherwise, and what is said of wrong ones."""

from __future__ import annotations

import json
import math
import os
from types import SimpleNamespace

import pytest

from lxcfs_py import config
from lxcfs_py.cgroup import v1, v2
from lxcfs_py.cgroup.tree import Quota
from lxcfs_py.commands import explain
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


@pytest.mark.parametrize(("label", "mode"), [("requests", "requests"), (" Requests ", "requests"), ("all", "cpuset")])
def test_a_container_may_have_a_cpu_mode_by_its_label(monkeypatch, label, mode):
    labelled = Identity("docker", "1", "web", {"lxcfs.py/cpu-mode": label})
    monkeypatch.setattr(policies, "Names", lambda: SimpleNamespace(of=lambda path: labelled))
    assert applied(container("/docker/1"), config.parse(TEXT.encode(), "lxcfs.toml")).cpu.mode == mode


def test_explain_says_which_label_says_nothing(monkeypatch):
    labelled = Identity("docker", "1", "web", {"lxcfs.py/cpu-mode": "all"})
    monkeypatch.setattr(explain, "Names", lambda: SimpleNamespace(of=lambda path: labelled))
    monkeypatch.setattr(explain, "_mounted", lambda subject, name: "")
    subject = SimpleNamespace(container=container("/docker/1"), init=1, policies=[], cgroup=lambda: "/docker/1")
    told = list(explain._subject(subject, 1, "proc/cpuinfo"))
    assert told[-1] == 'lxcfs.py/cpu-mode is "all"; allowed: "quota", "cpuset", "requests"'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("policy = 1", "1: policy is 1; allowed: up to 64 tables, [[policy]]"),
        ("policy = [1]", "1: policy is a list; allowed: up to 64 tables, [[policy]]"),
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
        (
            "[[policy]]\nlabel = 'a'\nlog.level = 'info'",
            '3: policy.log.level is the same for all containers; allowed in a policy: "files',
        ),
        (
            "[[policy]]\nlabel = 'a'\nmountpoint = '/x'",
            "3: policy.mountpoint is the same for all containers, above the first table; allowed in a policy: ",
        ),
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
    asked = cgroup(cpu=SimpleNamespace(quota=lambda: quota and Quota(quota), shares=lambda weights: shares))
    host = SimpleNamespace(online=lambda: (0, 1, 2, 3))
    visible = visible_cpus.visible(asked, host, Cpu("requests"))
    assert (visible.cpus, visible.whole) == (tuple(range(expected)), expected == 4)
    assert visible_cpus.visible(asked, host, Cpu("cpuset")).cpus == (0, 1, 2, 3)


def linear(shares):
    """The weight that runc before 1.3.2 makes of shares."""
    return 1 + (shares - 2) * 9999 // 262142


def quadratic(shares):
    """The weight that runc since 1.3.2 and crun since 1.23 make of shares."""
    if shares <= 2:
        return 1
    logarithm = math.log2(shares)
    return math.ceil(10 ** ((logarithm * logarithm + 125 * logarithm) / 612 - 7 / 34))


MADE_BY = {"linear": linear, "quadratic": quadratic}


def test_the_formulas_are_those_of_the_runtimes():
    assert [linear(shares) for shares in (2, 1024, 262144)] == [1, 39, 10000]
    assert [quadratic(shares) for shares in (2, 1024, 262144)] == [1, 100, 10000]


@pytest.mark.parametrize("weights", MADE_BY)
@pytest.mark.parametrize("asked", [0, 0.1, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 31, 32, 33, 64, 128, 255, 256])
def test_as_many_cpus_as_were_asked_for_come_out_of_the_weight_that_a_runtime_makes_of_them(
    files, cgroup, weights, asked
):
    weight = MADE_BY[weights](max(2, int(asked * 1024)))
    host = SimpleNamespace(online=lambda: tuple(range(512)))
    container = cgroup(cpu=v2.Cpu((files({"cpu.weight": weight}),)))
    seen = visible_cpus.visible(container, host, Cpu("requests", weights=weights))
    assert len(seen.cpus) == max(1, math.ceil(asked))


@pytest.mark.parametrize("weights", MADE_BY)
def test_shares_are_the_least_that_have_the_weight(files, weights):
    for shares in (2, 3, 10, 102, 512, 1000, 1024, 2048, 5000, 65536, 262144):
        weight = MADE_BY[weights](shares)
        converted = v2.Cpu((files({"cpu.weight": weight}),)).shares(weights)
        assert converted <= shares + 0.001
        assert MADE_BY[weights](max(2, math.floor(converted) - 1)) <= weight
    assert v1.Cpu((files({"cpu.shares": 7}),), ()).shares(weights) == 7
    assert v1.Cpu((files({}),), ()).shares(weights) == 1024


@pytest.mark.parametrize("weights", MADE_BY)
@pytest.mark.parametrize("given", [{}, {"cpu.weight": 100}], ids=["not enabled", "not set"])
def test_a_container_of_cgroup_v2_that_asked_for_nothing_sees_one_cpu_as_on_v1(files, cgroup, weights, given):
    host = SimpleNamespace(online=lambda: tuple(range(8)))
    for cpu in (v2.Cpu((files(given),)), v1.Cpu((files({}),), ())):
        assert visible_cpus.visible(cgroup(cpu=cpu), host, Cpu("requests", weights=weights)).cpus == (0,)


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
