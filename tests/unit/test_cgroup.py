"""Which cgroups there are and what each controller says, in made-up hierarchies and on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.cgroup import layout, open_cgroup, taskstats, tree, v1, v2
from lxcfs_py.cgroup.layout import Hierarchy, find, parse_paths
from lxcfs_py.cgroup.tree import Quota, Room
from lxcfs_py.linux import mount_table
from lxcfs_py.linux.kernel_files import KernelDirectory

CLONE_NEWUSER = 0x10000000

V1 = {
    "memory": "memory",
    "cpu": "cpu",
    "cpuacct": "cpuacct",
    "cpuset": "cpuset",
    "blkio": "blkio",
    "pids": "pids",
    "hugetlb": "hugetlb",
    "systemd": "xattr,name=systemd",
}


def mountinfo(*mounts: tuple[str, str, str, str]) -> dict[str, str]:
    """The mount table for what is mounted where, given as mountpoint, type, options, root."""
    lines = [
        f"{30 + n} 23 0:{28 + n} {root} {mountpoint} rw,relatime shared:{n} - {fstype} {fstype} rw,{options}\n"
        for n, (mountpoint, fstype, options, root) in enumerate(mounts)
    ]
    return {"proc/self/mountinfo": "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n" + "".join(lines)}


def all_v1() -> dict[str, str]:
    return mountinfo(*((f"/sys/fs/cgroup/{name}", "cgroup", options, "/") for name, options in V1.items()))


def all_v2(controllers: str = "cpuset cpu io memory hugetlb pids") -> dict[str, str]:
    mounts = mountinfo(("/sys/fs/cgroup", "cgroup2", "nsdelegate", "/"))
    return {**mounts, "sys/fs/cgroup/cgroup.controllers": f"{controllers}\n"}


def in_v1(controller: str, path: str, **files: str) -> dict[str, str]:
    return {f"sys/fs/cgroup/{controller}{path}/{controller}.{name}": text for name, text in files.items()}


PATHS_V2 = {"": "/parent/box"}


# What is mounted where


def test_each_v1_controller_is_found_where_it_is_mounted(made):
    root = made(all_v1())
    found = find(str(root))
    assert {name: found.version(name) for name in V1} == dict.fromkeys(V1, 1)
    levels = found.levels("memory", {"memory": "/parent/box"}, {})
    assert [level.path for level in levels] == [f"{root}/sys/fs/cgroup/memory/parent{below}" for below in ("/box", "")]
    assert found.version("io") == found.version("") == 0


def test_controllers_that_share_a_mount_are_both_found_there(made):
    root = made(mountinfo(("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct", "/")))
    found = find(str(root))
    paths = parse_paths(b"7:cpu,cpuacct:/box\n")
    for controller in ("cpu", "cpuacct"):
        (level,) = found.levels(controller, paths, {})
        assert level.path == f"{root}/sys/fs/cgroup/cpu,cpuacct/box"


def test_the_unified_hierarchy_has_the_controllers_that_it_names(made):
    root = made(all_v2("cpu memory"))
    found = find(str(root))
    assert sorted(found.hierarchies) == ["", "cpu", "memory"]
    assert found.version("cpu") == found.version("") == 2
    assert found.version("io") == 0
    assert [level.path for level in found.levels("cpu", PATHS_V2, {})] == [
        f"{root}/sys/fs/cgroup/parent/box",
        f"{root}/sys/fs/cgroup/parent",
    ]


def test_a_hybrid_takes_each_controller_from_where_it_is(made):
    root = made(
        {
            **mountinfo(
                ("/sys/fs/cgroup/memory", "cgroup", "memory", "/"),
                ("/sys/fs/cgroup/unified", "cgroup2", "nsdelegate", "/"),
            ),
            "sys/fs/cgroup/unified/cgroup.controllers": "cpu\n",
            **in_v1("memory", "/box", limit_in_bytes="1048576\n", usage_in_bytes="4096\n"),
            "sys/fs/cgroup/unified/box/cpu.max": "50000 100000\n",
            "sys/fs/cgroup/unified/box/cpu.pressure": "some\n",
        }
    )
    cgroup = open_cgroup(find(str(root)), {"memory": "/box", "": "/box"})
    assert isinstance(cgroup.memory, v1.Memory)
    assert isinstance(cgroup.cpu, v2.Cpu)
    assert cgroup.memory.room()[:2] == (1 << 20, (1 << 20) - 4096)
    assert cgroup.cpu.quota() == Quota(0.5)
    assert cgroup.pressure.read("cpu") == b"some\n"
    assert cgroup.cpuset is cgroup.io is cgroup.hugetlb is None


@pytest.fixture
def beside_v1(made):
    """beside_v1(paths, *controllers) is a cgroup of a machine that has these controllers in v1, and v2 without any.

    The unified hierarchy has a cgroup of an engine, with two threads, and one called /box with one.
    """

    def make(paths, *controllers):
        mounts = [(f"/sys/fs/cgroup/{name}", "cgroup", name, "/") for name in controllers]
        tree = mountinfo(*mounts, ("/sys/fs/cgroup/unified", "cgroup2", "nsdelegate", "/"))
        for cgroup, threads in (("engine.service", "1\n2\n"), ("box", "3\n")):
            directory = f"sys/fs/cgroup/unified/{cgroup}"
            tree |= {f"{directory}/cgroup.{kind}": threads for kind in ("threads", "procs")}
            tree[f"{directory}/cpu.pressure"] = f"some of {cgroup}\n"
            tree[f"{directory}/cpu.stat"] = "usage_usec 5\nuser_usec 3\nsystem_usec 2\n"
        tree |= {
            f"sys/fs/cgroup/{name}/box/{kind}": "3\n" for name in controllers for kind in ("cgroup.procs", "tasks")
        }
        return open_cgroup(find(str(made(tree))), paths)

    return make


def test_what_v2_counts_of_an_engine_is_not_its_containers(beside_v1):
    """Docker's cgroupfs driver makes cgroups of v1 and leaves its containers in its own unified one."""
    cgroup = beside_v1({"memory": "/box", "": "/engine.service"}, "memory")
    assert cgroup.pressure is cgroup.cpu is None
    assert isinstance(cgroup.tasks, v1.Tasks)
    assert cgroup.tasks.pids(9) == [3]
    assert isinstance(beside_v1({"pids": "/box", "": "/engine.service"}, "pids").tasks, v1.Tasks)


@pytest.mark.parametrize("paths", [{"memory": "/box", "": "/box"}, {"memory": "/", "": "/box"}, {"": "/box"}])
def test_what_v2_counts_beside_v1_is_a_containers_that_has_a_cgroup_there(paths, beside_v1):
    """systemd's has the path of v1's; and there may be none of v1 but the root."""
    cgroup = beside_v1(paths, "memory")
    assert cgroup.pressure.read("cpu") == b"some of box\n"
    assert cgroup.cpu.usage() == (3000, 0, 2000)
    assert cgroup.tasks.pids(9) == [3]


@pytest.mark.parametrize("own", [{"cpu": "/box"}, {"cpuacct": "/box"}, {"cpu": "/box", "cpuacct": "/box"}])
def test_cpu_and_cpuacct_of_v1_may_have_a_cgroup_each_or_one_of_them_alone(own, made):
    quota = in_v1("cpu", "/box", cfs_quota_us="50000\n", cfs_period_us="100000\n", shares="2048\n")
    usage = in_v1("cpuacct", "/box", usage_all="cpu user system\n0 5000000 7000000\n")
    cpu = open_cgroup(find(str(made({**all_v1(), **quota, **usage}))), own).cpu
    assert (cpu.quota(), cpu.shares("linear")) == ((Quota(0.5), 2048) if "cpu" in own else (None, 1024))
    assert cpu.usage() == ((5000000, 0, 7000000) if "cpuacct" in own else (0, 0, 0))


def test_a_mount_of_a_part_of_a_hierarchy_shows_what_is_in_that_part(made):
    root = made(mountinfo(("/sys/fs/cgroup/memory", "cgroup", "memory", "/docker/abc")))
    found = find(str(root))
    assert [level.path for level in found.levels("memory", {"memory": "/docker/abc/inner"}, {})] == [
        f"{root}/sys/fs/cgroup/memory/inner"
    ]
    for outside in ("/docker/abc", "/docker/abcd", "/docker", "/other", "/"):
        assert found.levels("memory", {"memory": outside}, {}) == ()


def test_of_several_mounts_of_a_hierarchy_the_one_that_shows_all_of_it_is_taken(made):
    mounts = (
        ("/var/lib/box/cgroup", "cgroup", "memory", "/docker/abc"),
        ("/sys/fs/cgroup/memory", "cgroup", "memory", "/"),
        ("/mnt/again", "cgroup", "memory", "/"),
    )
    root = made(mountinfo(*mounts))
    assert find(str(root)).hierarchies["memory"] == Hierarchy(1, f"{root}/sys/fs/cgroup/memory", "/")


def test_mountpoints_with_blanks_are_read_as_the_kernel_writes_them(made):
    root = made(mountinfo(("/mnt/a\\040b\\134c", "cgroup", "memory", "/")))
    assert find(str(root)).hierarchies["memory"].mountpoint == f"{root}/mnt/a b\\c"
    assert [mount.mountpoint for mount in mount_table.read(str(root))] == ["/", "/mnt/a b\\c"]


def test_without_any_hierarchy_there_are_no_figures(made):
    cgroup = open_cgroup(find(str(made(mountinfo()))), {})
    assert all(getattr(cgroup, name) is None for name in cgroup.__slots__)


def test_the_root_of_a_hierarchy_is_no_container(made):
    for tree_ in (all_v1(), all_v2()):
        found = find(str(made(tree_)))
        assert found.levels("memory", {"memory": "/", "": "/"}, {}) == found.levels("memory", {}, {}) == ()


def test_containers_share_the_open_files_of_the_parents_they_have_in_common_and_no_others(made):
    found = find(str(made(all_v1())))
    box = {"memory": "/parent/box"}
    one, again = found.levels("memory", box, {}), found.levels("memory", box, {})
    other = found.levels("memory", {"memory": "/parent/other"}, {})
    assert one[1] is again[1] is other[1]
    assert one[0] is not again[0]  # another cgroup may have come to stand there
    own = {}
    assert found.levels("memory", box, own)[0] is found.levels("memory", box, own)[0]


@pytest.mark.parametrize(
    ("depth", "above"),
    [
        (65, list(range(64, 0, -1))),
        (66, [*range(65, 33, -1), *range(32, 0, -1)]),
        (1000, [*range(999, 967, -1), *range(32, 0, -1)]),
    ],
)
def test_of_a_deep_path_the_levels_near_the_cgroup_and_near_the_root_are_looked_at(depth, above, made):
    levels = find(str(made(all_v1()))).levels("memory", {"memory": "/a" * depth}, {})
    assert [level.path.partition("/memory")[2] for level in levels] == ["/a" * number for number in (depth, *above)]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (b"0::/\n", {"": "/"}),
        (b"0::/user.slice/a:b\n", {"": "/user.slice/a:b"}),
        (b"7:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c\n", {"cpu": "/a", "cpuacct": "/a", "systemd": "/b", "": "/c"}),
        (b"5:memory:/caf\xc3\xa9\xff\n", {"memory": os.fsdecode(b"/caf\xc3\xa9\xff")}),
        (b"", {}),
    ],
)
def test_the_paths_of_a_process_are_parsed(text, paths):
    assert parse_paths(text) == paths


@given(st.binary(max_size=200))
def test_any_bytes_as_a_processs_cgroups_are_some_paths(text):
    assert isinstance(parse_paths(text), dict)


@pytest.mark.parametrize(
    ("hierarchical", "limit", "swap"),
    [("1\n", 100 << 20, 20 << 20), (None, 100 << 20, 20 << 20), ("0\n", 300 << 20, 60 << 20)],
)
def test_a_parents_limits_of_v1_hold_where_it_counts_what_is_below(hierarchical, limit, swap, made):
    def level(path, limit, both):
        return in_v1(
            "memory",
            path,
            **{
                "limit_in_bytes": f"{limit << 20}\n",
                "stat": "",
                "usage_in_bytes": "0\n",
                "memsw.limit_in_bytes": f"{both << 20}\n",
                "memsw.usage_in_bytes": "0\n",
            },
        )

    tree = {**level("/a", 100, 120), **level("/a/b", 200, 500), **level("/a/b/box", 300, 360)}
    if hierarchical:
        tree |= in_v1("memory", "/a/b", use_hierarchy=hierarchical) | in_v1("memory", "/a", use_hierarchy="1\n")
    root = made({**all_v1(), **tree})
    memory = open_cgroup(find(str(root)), {"memory": "/a/b/box"}).memory
    assert memory.room().limit == limit
    assert memory.swap()[0].limit == swap


# A daemon in a container


def test_a_daemon_that_sees_only_a_part_of_the_cgroups_says_which(made, monkeypatch):
    root = made(
        {
            **mountinfo(("/sys/fs/cgroup/memory", "cgroup", "memory", "/docker/abc")),
            "proc/1/cgroup": "4:memory:/init.scope\n",
            "sys/fs/cgroup/memory/cgroup.procs": "",
        }
    )
    part = find(str(root))
    monkeypatch.setattr(layout, "find", lambda: part)
    monkeypatch.setattr(layout.roots, "PROC", str(root / "proc"))
    with pytest.raises(layout.LayoutError, match="of memory, what is below /docker/abc"):
        layout.find_for_all()
    (root / "proc/1/cgroup").write_text("4:memory:/docker/abc/init.scope\n")  # in a container, for those in there
    assert layout.find_for_all() is part


@pytest.mark.parametrize("mounts", [(), (("/sys/fs/cgroup", "cgroup2", "rw", "/"),)], ids=["unmounted", "covered"])
def test_a_daemon_that_sees_no_cgroup_at_all_says_so(made, monkeypatch, mounts):
    root = made({**mountinfo(*mounts), "proc/1/cgroup": "0::/init.scope\n"})
    none = find(str(root))
    monkeypatch.setattr(layout, "find", lambda: none)
    monkeypatch.setattr(layout.roots, "PROC", str(root / "proc"))
    with pytest.raises(layout.LayoutError, match="no cgroups can be seen here"):
        layout.find_for_all()


# Limits along the ancestors. Those of memory are in test_meminfo.py.


@pytest.fixture(scope="session")
def quota(files):
    def of(version, *levels):
        directories = tuple(map(files, levels))
        return (v1.Cpu(directories, ()) if version == 1 else v2.Cpu(directories)).quota()

    return of


def cfs(quota: int, period: int = 100_000) -> dict[str, int]:
    return {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}


def test_the_smallest_cpu_quota_along_the_parents_wins_whatever_its_period(quota):
    assert quota(1, cfs(-1), cfs(150_000), cfs(75_000, 50_000)) == Quota(1.5, level=1)
    assert quota(1, cfs(20_000, 10_000), cfs(150_000)) == Quota(1.5, level=1)
    assert quota(1, cfs(150_000), cfs(20_000, 10_000)) == Quota(1.5)
    parents = {"cpu.max": "150000 100000"}, {"cpu.max": "800000 400000"}
    assert quota(2, {"cpu.max": "max 100000"}, *parents) == Quota(1.5, level=1)
    assert quota(2, {"cpu.max": "200000 1000000"}, *parents) == Quota(0.2, 1_000_000_000)


def test_what_all_use_whose_quota_it_is_is_that_levels(files, made):
    own, parent = (files({"cpu.stat": f"user_usec {used}\nsystem_usec 0"}) for used in (1, 3))
    assert v2.Cpu((own, parent)).usage(1) == (3000, 0, 0)
    tree = all_v1()
    for used, place in ((1, "/pod/box"), (3, "/pod")):
        tree |= in_v1("cpu", place, shares="2\n") | in_v1("cpuacct", place, usage_all=f"cpu user system\n0 {used} 0\n")
    root = str(made(tree))
    assert open_cgroup(find(root), {"cpu": "/pod/box", "cpuacct": "/pod/box"}).cpu.usage(1) == (3, 0, 0)
    elsewhere = open_cgroup(find(root), {"cpu": "/pod/box", "cpuacct": "/pod"}).cpu
    assert [elsewhere.usage(level) for level in (0, 1)] == [(3, 0, 0), (3, 0, 0)]


def test_without_a_cpu_quota_there_is_none(quota):
    assert quota(1, cfs(-1), cfs(-1)) is None
    assert quota(2, {"cpu.max": "max 100000"}, {"cpu.max": "max 50000"}) is None
    # A kernel without CFS bandwidth control, a level where the controller is not enabled
    assert quota(1, {}, {}) is None
    assert quota(2, {}, {}) is None
    assert quota(2, {}, {"cpu.max": "50000 100000"}, {}) == Quota(0.5, level=1)


def test_the_cpuset_of_v1_is_the_effective_one_and_on_old_kernels_the_given_one(files):
    assert v1.Cpuset((files({"cpuset.effective_cpus": "0-1", "cpuset.cpus": "0-3"}),)).cpus() == b"0-1\n"
    assert v1.Cpuset((files({"cpuset.cpus": "0-3"}),)).cpus() == b"0-3\n"


def test_the_cpuset_of_v2_is_the_nearest_levels_that_has_the_controller(files):
    levels = [files({}), files({"cpuset.cpus.effective": "2-3"}), files({"cpuset.cpus.effective": "0-7"})]
    assert v2.Cpuset(tuple(levels)).cpus() == b"2-3\n"
    assert v2.Cpuset((files({}),)).cpus() is None


@pytest.mark.parametrize(
    ("own", "inner", "shown"),
    [
        ({"effective": "", "exclusive.effective": "2-9"}, "2-9", b"2-9\n"),
        ({"effective": "2-3", "exclusive.effective": "2-9"}, "4-9", b"2-9\n"),
        ({"effective": "2-3", "exclusive.effective": "10-13"}, "10-13", b"2-3,10-13\n"),  # a remote one
        ({"effective": "2-9", "exclusive.effective": "2-9"}, "2-5", b"2-9\n"),
        # No partition has what it might be given: others run there.
        ({"effective": "2-3", "exclusive.effective": "2-3,10-13"}, "2-3", b"2-3\n"),
        # Before Linux 6.7
        ({"effective": "", "partition": "root"}, "2-9", b"2-9\n"),
        ({"effective": "2-3", "partition": "isolated"}, "4-9", b"2-9\n"),
        ({"effective": "2-3", "partition": "root invalid (Parent is not a partition root)"}, "2-3", b"2-3\n"),
    ],
)
def test_the_cpus_of_partitions_below_a_cgroup_are_its_own(own, inner, shown, made):
    box = {f"sys/fs/cgroup/parent/box/cpuset.cpus.{name}": f"{text}\n" for name, text in own.items()}
    others = {
        "sys/fs/cgroup/parent/cpuset.cpus.effective": "0-1,10-15\n",
        "sys/fs/cgroup/parent/box/inner/cpuset.cpus.effective": f"{inner}\n",
        "sys/fs/cgroup/parent/box/without/cgroup.procs": "",
        "sys/fs/cgroup/parent/other/cpuset.cpus.effective": "16-19\n",
    }
    root = made({**all_v2(), **others, **box})
    assert open_cgroup(find(str(root)), PATHS_V2).cpuset.cpus() == shown


def test_at_the_cpus_of_partitions_is_looked_once_a_second(made, monkeypatch):
    own = "sys/fs/cgroup/parent/box/cpuset.cpus"
    root = made({**all_v2(), f"{own}.effective": "2-9\n", f"{own}.exclusive.effective": "\n"})
    cpuset, read = open_cgroup(find(str(root)), PATHS_V2).cpuset, []
    assert cpuset.cpus() == b"2-9\n"
    kernels = KernelDirectory.read
    monkeypatch.setattr(KernelDirectory, "read", lambda self, name: read.append(name) or kernels(self, name))
    assert cpuset.cpus() == b"2-9\n"
    assert read == ["cpuset.cpus.effective"]


def test_cpus_that_are_taken_from_a_cgroup_with_partitions_are_gone_at_once(made):
    own = "sys/fs/cgroup/parent/box/cpuset.cpus"
    inner = "sys/fs/cgroup/parent/box/inner/cpuset.cpus.effective"
    root = made({**all_v2(), f"{own}.effective": "0-3\n", f"{own}.exclusive.effective": "0-7\n", inner: "4-7\n"})
    cpuset = open_cgroup(find(str(root)), PATHS_V2).cpuset
    assert cpuset.cpus() == b"0-7\n"
    made({f"{own}.effective": "0-1\n", f"{own}.exclusive.effective": "0-1\n", inner: "0-1\n"})
    assert cpuset.cpus() == b"0-1\n"


def test_where_all_that_is_exclusive_is_its_own_nobody_looks_below_a_cgroup(made, monkeypatch):
    own = "sys/fs/cgroup/parent/box/cpuset.cpus"
    root = made({**all_v2(), f"{own}.effective": "0-3\n", f"{own}.exclusive.effective": "2-3\n"})
    monkeypatch.setattr(v2, "subtree", None)
    assert open_cgroup(find(str(root)), PATHS_V2).cpuset.cpus() == b"0-3\n"


def test_where_no_level_has_the_cpuset_controller_the_root_says_what_partitions_have_left(made):
    effective = {"sys/fs/cgroup/cpuset.cpus.effective": "0-3\n", "sys/fs/cgroup/cpuset.mems.effective": "0\n"}
    root = made({**all_v2(), **effective, "sys/fs/cgroup/parent/box/cgroup.procs": ""})
    cgroup = open_cgroup(find(str(root)), PATHS_V2)
    assert (cgroup.cpuset.cpus(), cgroup.cpuset.mems()) == (b"0-3\n", b"0\n")
    made({"sys/fs/cgroup/parent/cpuset.cpus.effective": "2-3\n"})
    assert open_cgroup(find(str(root)), PATHS_V2).cpuset.cpus() == b"2-3\n"


def test_huge_pages_are_limited_by_the_smallest_along_the_parents(files):
    old = [
        files({"hugetlb.2MB.limit_in_bytes": limit, "hugetlb.2MB.usage_in_bytes": 4 << 20})
        for limit in (9223372036852678656, 16 << 20, 32 << 20)
    ]
    new = [files({"hugetlb.2MB.max": limit, "hugetlb.2MB.current": 4 << 20}) for limit in ("max", 16 << 20, 32 << 20)]
    for hugetlb in (v1.Hugetlb(tuple(old)), v2.Hugetlb(tuple(new))):
        room, used, _ = hugetlb.room("2MB")
        assert (room.limit, room.free, used) == (16 << 20, 12 << 20, 4 << 20)
    for hugetlb in (v1.Hugetlb(tuple(old[:1])), v2.Hugetlb(tuple(new[:1]))):
        assert hugetlb.room("2MB") == (Room(), 4 << 20, 0)


def test_huge_pages_that_are_reserved_are_free_to_who_has_reserved_them_alone(files):
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}

    def level(version, used, reserved, limit):
        current = names[version][1]
        counted = {f"hugetlb.2MB.{current}": used << 20, f"hugetlb.2MB.rsvd.{current}": reserved << 20}
        limits = {1: {"hugetlb.2MB.limit_in_bytes": 9223372036852678656}, 2: {"hugetlb.2MB.max": "max"}}[version]
        return files({**counted, **limits, f"hugetlb.2MB.rsvd.{names[version][0]}": limit << 20})

    for version, module in ((1, v1), (2, v2)):
        own, above = level(version, used=2, reserved=8, limit=20), level(version, used=4, reserved=24, limit=32)
        room, used, reserved = module.Hugetlb((own,)).room("2MB")
        assert (room.limit, room.free, used, reserved) == (20 << 20, 18 << 20, 2 << 20, 6 << 20)
        room, _, _ = module.Hugetlb((own, above)).room("2MB")
        assert (room.limit, room.free) == (20 << 20, (32 - 24 + 6) << 20)


def test_huge_pages_where_the_controller_is_not_enabled_are_limited_by_those_above_alone(files):
    above = files({"hugetlb.2MB.max": 16 << 20, "hugetlb.2MB.current": 4 << 20})
    assert v2.Hugetlb((files({}), files({}))).room("2MB") == (Room(), 0, 0)
    assert v2.Hugetlb((files({}), above)).room("2MB") == (Room(16 << 20, 12 << 20, 12 << 20), 0, 0)


# What was used


def test_cpu_time_of_v1_comes_from_cpuacct_wherever_that_is_mounted(files):
    usage = "cpu user system\n0 1500000000 16000000\n1 68000000 1039847752\n7 1 2"
    cpu = v1.Cpu((files({}),), (files({"cpuacct.usage_all": usage}),))
    assert cpu.usage_per_cpu((0, 2, 7)) == [(1500000000, 0, 16000000), (0, 0, 0), (1, 0, 2)]
    assert cpu.counted_cpus() == (0, 1, 7)
    assert cpu.usage() == (1568000001, 0, 1055847754)
    without = v1.Cpu((files({}),), ())
    assert without.usage_per_cpu((0,)) is None
    assert without.usage() == (0, 0, 0)


def test_cpu_time_of_v1_is_that_of_the_cpus_that_are_asked_for(files):
    cpu = v1.Cpu((files({}),), (files({"cpuacct.usage_all": "cpu user system\n0 10 11\n1 20 21\n2 30 31\n"}),))
    assert cpu.usage_per_cpu((0, 2, 3)) == [(10, 0, 11), (30, 0, 31), (0, 0, 0)]


def test_cpu_time_of_v2_is_a_total_in_microseconds(files):
    cpu = v2.Cpu((files({"cpu.stat": "usage_usec 5\nuser_usec 2\nsystem_usec 3\nnr_periods 9"}),))
    assert cpu.usage() == (2000, 0, 3000)
    assert cpu.usage_per_cpu((0,)) is None


def test_nice_time_which_linux_counts_by_cgroup_since_6_12_is_a_part_of_the_user_time(files):
    stat = "usage_usec 9\nuser_usec 6\nsystem_usec 3\nnice_usec {}"
    assert v2.Cpu((files({"cpu.stat": stat.format(4)}),)).usage() == (2000, 4000, 3000)
    assert v2.Cpu((files({"cpu.stat": stat.format(7)}),)).usage() == (0, 6000, 3000)  # it counts that by ticks


def test_io_of_v1_counts_what_is_below_too_where_the_kernel_does(files):
    def counts(scale):
        return (
            f"7:0 Read {scale * 8}\n7:0 Write {scale * 4}\n7:0 Sync 9\n7:0 Async 9\n7:0 Discard {scale * 2}\n"
            f"7:0 Total 99\n254:0 Read {scale}\nTotal 99"
        )

    own = {"blkio.throttle.io_service_bytes": counts(1), "blkio.throttle.io_serviced": counts(10)}
    recursive = {f"{name}_recursive": text.replace("7:0", "7:1") for name, text in own.items()}
    expected = {b"rbytes": 8, b"wbytes": 4, b"dbytes": 2, b"rios": 80, b"wios": 40, b"dios": 20}
    vda = {b"rbytes": 1, b"rios": 10}
    assert v1.Io((files(own),)).stat() == {b"7:0": expected, b"254:0": vda}
    assert v1.Io((files({**own, **recursive}),)).stat() == {b"7:1": expected, b"254:0": vda}
    assert v1.Io((files({}),)).stat() == {}


def test_io_of_v2_is_taken_key_by_key_whatever_else_is_there(files):
    text = "8:0 rbytes=4096 wbytes=1 rios=2 wios=3 dbytes=4 dios=5 cost.usage=7 use_delay=x\n8:16 \n"
    stat = v2.Io((files({"io.stat": text}),)).stat()
    assert stat[b"8:0"][b"rbytes"] == 4096
    assert stat[b"8:0"][b"dios"] == 5
    assert stat[b"8:16"] == {}
    assert v2.Io((files({}),)).stat() == {}


def test_io_of_linux_5_15_which_leaves_out_line_ends_goes_to_the_right_device(files):
    text = "7:1 7:0 8:0 rbytes=4096 wbytes=1 rios=2 wios=3 dbytes=0 dios=0\n8:16 253:0 rbytes=8 rios=9"
    stat = v2.Io((files({"io.stat": text}),)).stat()
    assert {device for device, counts in stat.items() if counts} == {b"8:0", b"253:0"}
    assert (stat[b"8:0"][b"rbytes"], stat[b"253:0"]) == (4096, {b"rbytes": 8, b"rios": 9})


def test_what_a_v2_controller_that_is_not_enabled_counts_is_nothing(files):
    levels = (files({}), files({}))
    assert v2.Memory(levels).room() == Room()
    assert not any(v2.Memory(levels).stat().values())
    assert v2.Memory(levels).swap() == (Room(), 0)
    assert v2.Tasks(levels, "/proc").forked() == 0
    assert v2.Pressure(levels).read("cpu") is None


def test_a_controller_that_is_enabled_later_is_seen_within_a_second(made, monkeypatch):
    root = made({**all_v2(), "sys/fs/cgroup/parent/box/cpu.stat": "user_usec 1\n"})
    cgroup = open_cgroup(find(str(root)), PATHS_V2)
    now = time.monotonic()
    monkeypatch.setattr("lxcfs_py.linux.kernel_files.time.monotonic", lambda: now)
    assert (cgroup.memory, cgroup.cpu.quota()) == (None, None)
    made(
        {
            "sys/fs/cgroup/parent/box/memory.max": "1048576\n",
            "sys/fs/cgroup/parent/box/memory.current": "4096\n",
            "sys/fs/cgroup/parent/cpu.max": "50000 100000\n",
        }
    )
    now += 1.1
    assert (cgroup.memory.room()[:2], cgroup.cpu.quota()) == ((1 << 20, (1 << 20) - 4096), Quota(0.5, level=1))


def test_memory_is_counted_as_long_as_the_cgroup_or_one_above_it_has_the_controller(files, cgroup, monkeypatch):
    own, parent = (files({"memory.current": 4096, "memory.stat": "anon 4096"}) for _ in range(2))
    memory = v2.Memory((own, parent))
    assert cgroup(memory=memory).memory is memory
    asked: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(files, "get", lambda _self, name: asked.append(name))
        assert memory.is_counted()
    assert asked == [], "of an ordinary container nobody looks again"
    own.files.clear()
    assert (memory.stat()["AnonPages"], cgroup(memory=memory).memory) == (0, memory)
    parent.files.clear()
    assert (memory.stat()["AnonPages"], cgroup(memory=memory).memory) == (0, None)


def test_a_limit_that_changes_is_seen_at_the_next_look(made):
    name = "sys/fs/cgroup/parent/memory.max"
    root = made({**all_v2(), name: "max\n", "sys/fs/cgroup/parent/memory.current": "0\n"})
    cgroup = open_cgroup(find(str(root)), {"": "/parent"})
    for text, limit in (("max", None), ("4096", 4096), ("1048576", 1 << 20), ("max", None)):
        (root / name).write_text(f"{text}\n")
        assert cgroup.memory.room().limit == (Room().limit if limit is None else limit)


KEYS = st.lists(st.sampled_from(("a", "ab", "b", "total_a", "total_b", "c")), unique=True)


@given(keys=KEYS, counts=st.lists(st.integers(0, 1 << 64), min_size=12, max_size=12))
def test_wanted_fields_are_found_whatever_stands_before_between_and_after_them(keys, counts):
    wanted = {"A": "a", "B": "b", "total": "total_a"}
    fields = tree.Fields({name: key.encode() for name, key in wanted.items()})
    assert fields.pick(b"") == dict.fromkeys(wanted, 0)
    for numbers in (dict(zip(keys, counts)), dict(zip(keys, counts[6:]))):
        text = "".join(f"{key} {number}\n" for key, number in numbers.items())
        assert fields.pick(text.encode()) == {name: numbers.get(key, 0) for name, key in wanted.items()}
    for end in range(len(text)):  # as the kernel never writes it
        with contextlib.suppress(ValueError):
            fields.pick(text[:end].encode())


# Tasks


def test_tasks_of_cgroups_below_count_and_there_are_bounds(made, monkeypatch):
    def group(path, *threads):
        return {f"sys/fs/cgroup{path}/cgroup.threads": "".join(f"{thread}\n" for thread in threads)}

    states = {11: "S", 12: "R", 13: "D", 14: "R", 15: "Z"}
    stats = {f"proc/{thread}/stat": f"{thread} (a) R) {state} 1 1\n" for thread, state in states.items()}
    # 16 ended in the meantime
    groups = {**group("/box", 11, 12), **group("/box/a", 13, 16), **group("/box/a/b", 14), **group("/box/c", 15)}
    root = made({**all_v2(), **stats, **groups})
    tasks = open_cgroup(find(str(root)), {"": "/box"}, f"{root}/proc").tasks
    assert tasks.states() == (2, 1, 6)
    monkeypatch.setattr(tree, "_MAX_CGROUPS", 1)
    assert tasks.states() == (2, 1, 6), "one look serves all who ask within a second"
    tasks._looks = tree.Looks()
    assert tasks.states() == (1, 0, 2)
    monkeypatch.setattr(tree, "_MAX_CGROUPS", 256)
    monkeypatch.setattr(v2, "_MAX_THREADS", 3)  # two stand for four: 11 and 13, or another one's
    tasks._looks = tree.Looks()
    running, blocked, total = tasks.states()
    assert running % 2 == blocked % 2 == 0
    assert total == 6


def test_one_look_at_tasks_serves_all_containers_in_a_cgroup_and_none_in_a_later_one_at_its_path(made, monkeypatch):
    root = made({**all_v2(), "sys/fs/cgroup/box/cgroup.threads": "11\n12\n"})

    def opened():
        return open_cgroup(find(str(root)), {"": "/box"}, f"{root}/proc").tasks

    looks, look = [], v2.Tasks._look
    monkeypatch.setattr(v2.Tasks, "_look", lambda tasks: looks.append(tasks) or look(tasks))
    namespaces = [opened() for _ in range(100)]
    assert {tasks.states() for tasks in namespaces} == {(0, 0, 2)}
    assert len(looks) == 1
    (root / "sys/fs/cgroup/box").rename(root / "gone")
    made({"sys/fs/cgroup/box/cgroup.threads": "13\n"})
    assert opened().states() == (0, 0, 1)


def test_tasks_are_as_many_as_the_kernel_has_counted_zombies_among_them(made, monkeypatch):
    """Those that it lists are fewer. Without the pids controller, there is no other count."""
    listed = {"sys/fs/cgroup/box/cgroup.threads": "11\n12\n"}
    root = made({**all_v2(), **listed, "sys/fs/cgroup/box/pids.current": "9\n"})
    tasks = open_cgroup(find(str(root)), {"": "/box"}, f"{root}/proc").tasks
    assert tasks.states() == (0, 0, 9)
    (root / "sys/fs/cgroup/box/pids.current").write_text("7\n")
    assert tasks.states() == (0, 0, 7), "that count is always the one of now"


def test_tasks_of_v1_without_the_pids_controller_are_those_that_are_listed(made, monkeypatch):
    monkeypatch.setattr(taskstats, "count", lambda directory: taskstats.Count(1, 2))
    root = made(
        {
            **mountinfo(("/sys/fs/cgroup/memory", "cgroup", "memory", "/")),
            "sys/fs/cgroup/memory/box/tasks": "11\n12\n",
            "sys/fs/cgroup/memory/box/below/tasks": "13\n",
        }
    )
    assert open_cgroup(find(str(root)), {"memory": "/box"}).tasks.states() == (2, 4, 3)


def test_a_look_that_took_long_serves_for_longer(monkeypatch, files):
    """So that a container with very many tasks and cgroups takes no more of the daemon's time than others."""
    now = [1000.0]
    monkeypatch.setattr("lxcfs_py.cgroup.tree.time.monotonic", lambda: now[0])

    class Slow(v1.Tasks):
        looks = 0

        def _look(self):
            self.looks += 1
            now[0] += 0.05
            return 1, 2, 3

    tasks = Slow((files({"pids.current": 9}),))
    for passed in (0, 1.5, 3.4, 0.2):
        now[0] += passed
        assert tasks.states() == (1, 2, 9)
    assert tasks.looks == 2


def test_of_very_many_cgroups_below_a_bounded_number_is_listed_and_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(tree, "_MAX_CGROUPS", 4)
    monkeypatch.setattr(tree, "_MAX_ENTRIES", 10)
    for number in range(50):
        (tmp_path / "box" / f"{number}" / "inner").mkdir(parents=True)
    listed = []
    real = os.scandir

    class Entries:
        def __init__(self, path):
            self.entries = real(path)

        def __enter__(self):
            return (listed.append(entry) or entry for entry in self.entries)

        def __exit__(self, *error):
            self.entries.close()

    monkeypatch.setattr(tree.os, "scandir", Entries)
    assert len(list(tree.subtree(str(tmp_path / "box")))) == 4
    assert len(listed) <= 4 * 10


def test_the_processes_are_those_of_the_cgroup_and_those_below_without_the_zeros_that_stand_for_others(made):
    root = made({"box/cgroup.procs": "0\n12\n0\n13\n", "box/a/cgroup.procs": "7\n", "box/a/b/cgroup.procs": ""})
    tasks = v2.Tasks((KernelDirectory(f"{root}/box"),), "/proc")
    assert tasks.pids(9) == [12, 13, 7]
    assert tasks.pids(2) == [12, 13]


def test_the_descriptors_of_cgroups_below_are_closed_after_use(tmp_path):
    for name in ("a/b", "c"):
        (tmp_path / "box" / name).mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    assert len([os.fstat(fd).st_ino for fd in tree.subtree(str(tmp_path / "box"))]) == 4
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_cgroup_below_that_goes_away_in_the_middle_is_left_out(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "box" / name).mkdir(parents=True)
    seen = 0
    for _ in tree.subtree(str(tmp_path / "box")):
        for path in sorted((tmp_path / "box").iterdir())[:1]:
            path.rmdir()
        seen += 1
    assert 1 <= seen < 4


@pytest.mark.parametrize("version", [1, 2])
def test_counters_go_on_where_they_were_when_the_container_is_moved(version, files, cgroup):
    """Into a new cgroup, and into one where others were before; the old one may be gone by then, or another one."""

    class Level(files):
        def __init__(self, count):
            super().__init__({})
            self.count(count)

        def count(self, number):
            if version == 1:
                own = {"memory.stat": f"total_pgfault {number}", "memory.oom_control": f"oom_kill {number}"}
                own["blkio.throttle.io_service_bytes"] = f"8:0 Read {number}"
            else:
                own = {"memory.current": 0, "memory.stat": f"pgfault {number}", "memory.events": f"oom_kill {number}"}
                own["io.stat"] = f"8:0 rbytes={number} wios=0"
            own["cpu.pressure"] = f"some avg10=1.00 avg60=0.00 avg300=0.00 total={number}\n"
            self.files = files({**own, "pids.peak": number}).files

    def opened(level):
        modules = {1: v1, 2: v2}[version]
        tasks = v1.Tasks((level,)) if version == 1 else v2.Tasks((level,), None)
        pressure = v2.Pressure((level,))
        return cgroup(memory=modules.Memory((level,)), io=modules.Io((level,)), tasks=tasks, pressure=pressure)

    def counters(of):
        events = of.memory.events()
        average, stalled = re.findall(rb"avg10=(\S+).* total=(\d+)\n", of.pressure.read("cpu"))[0]
        assert average == b"1.00"
        counted = [events["pgfault"], events["oom_kill"], of.io.stat()[b"8:0"][b"rbytes"], int(stalled)]
        return (*counted, of.tasks.forked())

    levels = [Level(count) for count in (40, 3, 70, 9)]
    first, second, third, fourth = map(opened, levels)
    assert counters(first) == (40, 40, 40, 40, 40)
    levels[0].count(50)
    second.go_on_from(first)
    assert counters(second) == (50, 50, 50, 50, 50)
    levels[1].count(5)
    assert counters(second) == (52, 52, 52, 52, 50)
    levels[1].get = levels[1].read = lambda _name: (_ for _ in ()).throw(OSError(errno.ENODEV, "gone"))
    third.go_on_from(second)
    assert counters(third) == (52, 52, 52, 52, 70)
    levels[2].count(1)  # another one in its place
    fourth.go_on_from(third)
    assert counters(fourth) == (52, 52, 52, 52, 70)
    levels[3].count(80)
    assert counters(fourth) == (123, 123, 123, 123, 80)


def test_what_v1_forgets_of_a_cgroup_below_that_is_gone_stays_counted(files):
    own = files({})

    def count(*numbers):
        own.files = files(
            {
                "blkio.throttle.io_service_bytes_recursive": "\n".join(
                    f"{device}:0 {kind} {number}" for device, kind, number in numbers
                )
            }
        ).files
        return {device: counts.get(b"rbytes") for device, counts in io.stat().items()}

    io = v1.Io((own,))
    assert count((8, "Read", 50), (8, "Write", 7), (9, "Read", 3)) == {b"8:0": 50, b"9:0": 3}
    assert count((8, "Read", 20), (8, "Write", 7), (9, "Read", 4)) == {b"8:0": 50, b"9:0": 4}
    assert count((8, "Read", 25), (8, "Write", 9), (9, "Read", 4)) == {b"8:0": 55, b"9:0": 4}
    assert count((8, "Read", 5), (8, "Write", 9), (9, "Read", 4)) == {b"8:0": 55, b"9:0": 4}
    assert io.stat()[b"8:0"] == {b"rbytes": 55, b"wbytes": 9}
    assert count((9, "Read", 4)) == {b"9:0": 4}, "a disk that is gone"
    assert count((8, "Read", 1), (9, "Read", 4)) == {b"8:0": 1, b"9:0": 4}, "another one with its number"


def test_events_of_v1_do_not_step_back(files):
    own = files({})

    def events(faults, killed):
        own.files = files({"memory.stat": f"total_pgfault {faults}", "memory.oom_control": f"oom_kill {killed}"}).files
        return memory.events()["pgfault"], memory.events()["oom_kill"]

    memory = v1.Memory((own,))
    assert [events(*counts) for counts in ((50, 2), (40, 0), (45, 1))] == [(50, 2), (50, 2), (55, 3)]


def refuse(*_, **__):
    raise OSError(errno.EMFILE, "too many open files")


def test_killed_processes_below_count_on_v1_too_and_after_their_cgroup_is_gone(made, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("lxcfs_py.cgroup.tree.time.monotonic", lambda: now[0])

    def killed(**counts):
        now[0] += 1.1
        made({f"box/{path}/memory.oom_control": f"under_oom 0\noom_kill {count}\n" for path, count in counts.items()})
        return memory.events()["oom_kill"]

    root = made({"box/memory.oom_control": "under_oom 0\noom_kill 1\n", "box/memory.stat": "total_pgfault 3\n"})
    memory = v1.Memory((KernelDirectory(f"{root}/box"),))
    assert killed() == 1
    assert killed(a=2) == 3
    assert killed(**{"a/inner": 4}) == 7
    made({"box/b/tasks": ""})  # while the other one is there, since other filesystems use their inode numbers again
    shutil.rmtree(root / "box/a")
    assert killed() == 7
    assert killed(b=1) == 8
    with monkeypatch.context() as few:
        few.setattr("lxcfs_py.cgroup.tree.os.open", refuse)
        assert killed() == 8
    assert killed() == 8, "one that could not be looked at for a while is not counted twice"
    for number in range(3):
        made({f"box/{number}/{each}/memory.oom_control": "oom_kill 1\n" for each in range(100)})
    seen = killed()
    shutil.rmtree(root / "box/1")
    assert seen <= killed() <= killed() <= 308


def test_who_waits_for_io_is_blocked_whether_or_not_it_may_be_killed(monkeypatch):
    """The kernel's five figures: sleeping, running, stopped, uninterruptible, waiting for I/O in another state."""
    answer = bytes(24) + struct.pack("=5Q", 1000, 2, 100, 30, 4)
    monkeypatch.setattr(taskstats, "_connect", lambda: (None, 27))
    monkeypatch.setattr(taskstats, "_connection", None)
    monkeypatch.setattr(taskstats, "_ask", lambda *request: answer)
    assert taskstats.count(0) == (2, 34)


def test_a_name_with_other_ends_of_line_in_it_is_one_path():
    """The kernel forbids only the newline in a cgroup's name: a container must not pass for another by its name."""
    text = "0::/box/a\r0::/other.service\x0b1:memory:/x\u2028\x85\n"
    assert parse_paths(text.encode()) == {"": text[3:-1]}
