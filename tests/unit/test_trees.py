"""Directories of the machine's sysfs as containers see them: what is hidden, computed and passed through."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.cgroup import v2
from lxcfs_py.config import Config, Files
from lxcfs_py.container import visible_cpus
from lxcfs_py.daemon.call_figures import CallFigures
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.kernel_files import HeldDirectory
from tests.unit.conftest import CPUS, CPUSET, QUOTA

CPU = "/sys/devices/system/cpu"
READER, STRANGER = 4711, 1  # a process in the container, and one of the host


class Seen:
    """A machine's mount, as a process in the container finds it."""

    def __init__(self, host, container, config=Config()) -> None:  # noqa: B008 - it is immutable
        containers: Any = SimpleNamespace(of=lambda pid: container if pid == READER else None, forget=lambda pid: None)
        self.filesystem = Filesystem(host, containers, config)

    def read(self, path: str, caller: int = READER) -> bytes:
        if not self.has(path, caller):
            raise FileNotFoundError(path)
        self.filesystem.open(caller, path, os.O_RDONLY)
        return self.filesystem.render(caller, path)

    def names(self, path: str, caller: int = READER) -> list[str]:
        return self.filesystem.readdir(caller, path)[2:]

    def has(self, path: str, caller: int = READER) -> bool:
        try:
            self.filesystem.getattr(caller, path)
        except FileNotFoundError:
            return False
        return True


@pytest.fixture
def wired(made, cgroup, container_in):
    """wired(cpus, memory=None) is the mount of a machine of 8 CPUs for a container on these.

    The machine has 2 nodes, each a package with 2 cores of 2 threads.
    """

    def make(cpus: str, config=CPUSET, **controllers):
        tree = {"proc/cpuinfo": "processor\t: 0\n\n", f"{CPU[1:]}/offline": "8-15\n", f"{CPU[1:]}/possible": "0-15\n"}
        tree |= {f"{CPU[1:]}/{name}": "0-7\n" for name in ("online", "present", "enabled")}
        tree |= {f"{CPU[1:]}/isolated": "3,6\n", f"{CPU[1:]}/nohz_full": "(null)\n", f"{CPU[1:]}/kernel_max": "63\n"}
        for cpu in range(8):
            first, core = cpu // 4 * 4, cpu // 2 * 2
            around = {"core": core, "thread": core, "package": first, "die": first, "cluster": core}
            for name, start in around.items():
                last = start + (3 if start == first and name in ("package", "die") else 1)
                mask = sum(1 << sibling for sibling in range(start, last + 1))
                topology = f"{CPU[1:]}/cpu{cpu}/topology/{name}"
                kind = "siblings" if name == "thread" else "cpus"
                tree[f"{topology}_{kind}_list"] = f"{start}-{last}\n"
                tree[f"{topology}_{kind}"] = f"00000000,{mask:08x}\n"
            tree[f"{CPU[1:]}/cpu{cpu}/topology/core_id"] = f"{core // 2 % 2}\n"
            tree[f"{CPU[1:]}/cpu{cpu}/cache/index3/shared_cpu_list"] = f"{first}-{first + 3}\n"
            tree[f"{CPU[1:]}/cpu{cpu}/cache/index3/shared_cpu_map"] = f"{15 << first:04x}\n"
            for name in ("related", "affected", "freqdomain"):
                tree[f"{CPU[1:]}/cpufreq/policy{core}/{name}_cpus"] = f"{core} {core + 1}\n"
        root = made(tree)
        controllers.setdefault("cpuset", SimpleNamespace(cpus=lambda: f"{cpus}\n".encode()))
        return Seen(Host(str(root)), container_in(cgroup(**controllers)), config)

    return make


# sys/devices/system/cpu


@pytest.mark.parametrize("name", ["online", "possible", "present"])
def test_the_lists_of_cpus_name_those_that_are_visible(machine, name):
    count, cpuset = CPUS[machine.name]
    for config, numbers in ((QUOTA, cpuset[:count]), (CPUSET, cpuset)):
        seen = Seen(machine.host, machine.container, config)
        assert seen.read(f"{CPU}/{name}") == cpu_list.render(tuple(numbers))
        assert seen.read(f"{CPU}/{name}", STRANGER) == machine.own(f"{CPU[1:]}/{name}")


def test_a_container_sees_the_directories_of_its_cpus_alone(machine):
    count, cpuset = CPUS[machine.name]
    for config, numbers in ((QUOTA, cpuset[:count]), (CPUSET, cpuset)):
        seen = Seen(machine.host, machine.container, config)
        names = seen.names(CPU)
        assert sorted(name for name in names if name[3:].isdigit()) == sorted(f"cpu{number}" for number in numbers)
        assert {"online", "possible", "present", "uevent"} <= set(names)
        for number in (0, 9):
            path = f"{CPU}/cpu{number}"
            there = (Path(machine.root) / path[1:]).exists()
            assert seen.has(path) == (number in numbers and there)
            assert seen.has(path, STRANGER) == there


def test_no_cpu_is_offline_in_a_container_and_other_files_are_the_machines(machine):
    seen = Seen(machine.host, machine.container)
    assert seen.read(f"{CPU}/offline") == b"\n"
    assert seen.read(f"{CPU}/kernel_max") == machine.own(f"{CPU[1:]}/kernel_max")


def test_lists_of_other_kinds_name_no_hidden_cpu_either(wired):
    seen = wired("1,3,6")
    lists = {name: seen.read(f"{CPU}/{name}") for name in seen.names(CPU) if not name.startswith("cpu")}
    assert lists == {
        **dict.fromkeys(("online", "present", "possible", "enabled"), b"1,3,6\n"),
        **{"offline": b"\n", "isolated": b"3,6\n", "nohz_full": b"(null)\n", "kernel_max": b"63\n"},
    }


def test_topology_and_caches_are_shared_with_visible_cpus_alone(wired):
    seen = wired("1,3,6")
    first, other = f"{CPU}/cpu1", f"{CPU}/cpu6"
    for name, words in {"core_cpus": (b"1", b"2"), "package_cpus": (b"1,3", b"a"), "die_cpus": (b"1,3", b"a")}.items():
        assert seen.read(f"{first}/topology/{name}_list") == words[0] + b"\n"
        assert seen.read(f"{first}/topology/{name}") == b"00000000,0000000" + words[1] + b"\n"
    assert seen.read(f"{other}/topology/thread_siblings_list") == b"6\n"
    assert seen.read(f"{other}/topology/thread_siblings") == b"00000000,00000040\n"
    assert seen.read(f"{first}/cache/index3/shared_cpu_list") == b"1,3\n"
    assert seen.read(f"{first}/cache/index3/shared_cpu_map") == b"000a\n"
    assert seen.read(f"{first}/topology/core_id") == b"0\n"


def test_policies_of_the_frequency_name_visible_cpus_alone_and_are_hidden_where_they_have_none(wired):
    seen = wired("1,3,6")
    assert sorted(seen.names(f"{CPU}/cpufreq")) == ["policy0", "policy2", "policy6"]
    for name in ("related", "affected", "freqdomain"):
        assert seen.read(f"{CPU}/cpufreq/policy2/{name}_cpus") == b"3\n"
    assert not seen.has(f"{CPU}/cpufreq/policy4/related_cpus")
    assert seen.has(f"{CPU}/cpufreq/policy4/related_cpus", STRANGER)
    assert not seen.has(f"{CPU}/cpufreq/policy5")


def test_the_host_and_a_container_with_all_cpus_see_the_machines_topology(wired):
    seen = wired("0-7")
    for cpu in range(8):
        for name in seen.names(f"{CPU}/cpu{cpu}/topology"):
            path = f"{CPU}/cpu{cpu}/topology/{name}"
            assert seen.read(path) == seen.read(path, STRANGER)


@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)), st.integers(200, 300))
def test_a_mask_keeps_the_visible_cpus_and_its_width(shared, visible, width):
    def mask(cpus):
        text = f"{sum(1 << cpu for cpu in cpus):0{-(-width // 4)}x}"
        first = len(text) % 8 or 8
        return ",".join([text[:first], *(text[n : n + 8] for n in range(first, len(text), 8))]).encode() + b"\n"

    assert cpu_list.masked(mask(shared), visible) == mask(shared & visible)
    assert cpu_list.only(cpu_list.render(tuple(sorted(shared))), visible) == cpu_list.render(
        tuple(sorted(shared & visible))
    )


# What all trees have in common


def test_a_listing_asks_once_what_is_visible(wired, monkeypatch):
    seen, asked = wired("0-5"), []
    real = visible_cpus.visible
    monkeypatch.setattr(visible_cpus, "visible", lambda *words: asked.append(words) or real(*words))
    names = seen.names(CPU)
    assert {"cpu0", "cpu5"} <= set(names)
    assert all(seen.filesystem.attributes(f"{CPU}/{name}") for name in names)
    assert len(asked) == 1


def test_an_error_of_the_kernel_is_the_readers_and_no_failure(wired, monkeypatch):
    seen = wired("0-5")

    def text(self, path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(HeldDirectory, "text", text)
    for path in (f"{CPU}/online", f"{CPU}/cpu0/topology/core_id"):
        with pytest.raises(OSError, match="Input/output error"):
            seen.read(path)
    assert not seen.filesystem.failures


def test_what_root_alone_may_read_can_be_found_and_not_read(wired):
    seen = wired("0-5")
    secret = Path(seen.filesystem.host.root, CPU[1:], "cpu0/crash_notes")
    secret.write_text("1\n")
    secret.chmod(0o400)
    assert stat.S_IMODE(seen.filesystem.getattr(READER, f"{CPU}/cpu0/crash_notes")["st_mode"]) == 0o400
    with pytest.raises(PermissionError):
        seen.read(f"{CPU}/cpu0/crash_notes")


def test_a_tree_that_is_not_enabled_is_the_machines_to_who_has_it_mounted(wired):
    seen = wired("1", Config(files=Files(enabled=("proc/meminfo",))))
    assert seen.has(CPU), "a container that has it in its definition could not start"
    assert seen.names("/") == ["proc"]
    assert {"cpu0", "cpu7"} <= set(seen.names(CPU))
    assert seen.read(f"{CPU}/online") == b"0-7\n"


def test_a_kernel_without_such_a_directory_has_nothing_there(made):
    directory = HeldDirectory(str(made({"proc/x": ""}) / "sys/none"))
    for look in (directory.names, directory.mode, directory.text, directory.link):
        with pytest.raises(FileNotFoundError):
            look("")


# sys/devices/system/node and sys/devices/system/memory

NODE, MEMORY = "/sys/devices/system/node", "/sys/devices/system/memory"
KIB, MIB = 1 << 10, 1 << 20
NODE_MEMINFO = """Node {node} MemTotal:       {total:8} kB
Node {node} MemFree:        {total:8} kB
Node {node} MemUsed:               0 kB
Node {node} Active:                1 kB
Node {node} Inactive:              1 kB
Node {node} Active(anon):          1 kB
Node {node} AnonPages:             1 kB
Node {node} FilePages:             1 kB
Node {node} KReclaimable:          1 kB
Node {node} Slab:                  1 kB
Node {node} Bounce:                7 kB
Node {node} SwapCached:            1 kB
Node {node} HugePages_Total:     9
Node {node} HugePages_Free:      9
"""


@pytest.fixture
def large(made, files, cgroup, container_in):
    """large(cpus, mems, limit) is the mount of a machine of 4 CPUs and 4 GiB, of which 1 is on the first of 2 nodes."""

    def make(cpus: str, mems: str, limit: int, numa: str = "", hugetlb=None, pages=(0, 0), reserved=0, **stat):
        sizes = {0: 1024 * 1024, 1: 3 * 1024 * 1024}
        tree = {
            "proc/cpuinfo": "processor\t: 0\n\n",
            "proc/meminfo": "MemTotal:        4194304 kB\nMemFree:         4194304 kB\nMemAvailable:    4194304 kB\n"
            "Cached: 0 kB\nSwapCached: 0 kB\nSwapTotal: 8192 kB\nSwapFree: 7168 kB\n"
            "HugePages_Total: 0\nHugePages_Free: 0\nHugepagesize: 2048 kB\n",
            f"{CPU[1:]}/online": "0-3\n",
            f"{MEMORY[1:]}/block_size_bytes": "8000000\n",
            **{f"{NODE[1:]}/{name}": "0-1\n" for name in ("online", "possible", "has_memory", "has_cpu")},
        }
        for node, size in sizes.items():
            tree |= {
                f"{NODE[1:]}/node{node}/cpulist": f"{2 * node}-{2 * node + 1}\n",
                f"{NODE[1:]}/node{node}/cpumap": f"{3 << 2 * node:x}\n",
                f"{NODE[1:]}/node{node}/distance": "10 20\n" if node == 0 else "20 10\n",
                f"{NODE[1:]}/node{node}/meminfo": NODE_MEMINFO.format(node=node, total=size),
                f"{NODE[1:]}/node{node}/numastat": "numa_hit 123\nnuma_miss 4\n",
            }
            tree |= {f"{NODE[1:]}/node{node}/cpu{2 * node + cpu}/online": "1\n" for cpu in range(2)}
        # The hole below 4 GiB that machines have.
        for name in ("nr", "free", "surplus"):
            kind = f"hugepages/hugepages-2048kB/{name}_hugepages"
            tree[f"sys/kernel/mm/{kind}"] = f"{sum(pages)}\n"
            tree |= {f"{NODE[1:]}/node{node}/{kind}": f"{count}\n" for node, count in enumerate(pages)}
        tree["sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages"] = f"{reserved}\n"
        for block in (*range(24), *range(32, 40)):
            node = 0 if block < 8 else 1
            tree |= {f"{MEMORY[1:]}/memory{block}/{name}": "online\n" for name in ("state", f"node{node}/online")}
            tree[f"{NODE[1:]}/node{node}/memory{block}/state"] = "online\n"
        root = made(tree)
        own = {
            "memory.max": limit,
            "memory.current": 100 * MIB,
            "memory.stat": "\n".join(f"{name} {amount}" for name, amount in stat.items()),
            "memory.numa_stat": numa,
        }
        memory = v2.Memory((files(own),))
        cpuset = SimpleNamespace(cpus=lambda: f"{cpus}\n".encode(), mems=lambda: f"{mems}\n".encode())
        return Seen(Host(str(root)), container_in(cgroup(memory=memory, cpuset=cpuset, hugetlb=hugetlb)), CPUSET)

    return make


def test_a_container_sees_the_nodes_of_its_cpus_and_of_its_memory(large):
    seen = large("2", "1", 512 * MIB)
    assert [name for name in seen.names(NODE) if name.startswith("node")] == ["node1"]
    assert {seen.read(f"{NODE}/{name}") for name in ("online", "possible", "has_memory", "has_cpu")} == {b"1\n"}
    assert seen.read(f"{NODE}/node1/cpulist") == b"2\n"
    assert seen.read(f"{NODE}/node1/cpumap") == b"4\n"
    assert seen.read(f"{NODE}/node1/distance") == b"10\n"
    assert [name for name in seen.names(f"{NODE}/node1") if name.startswith("cpu")] == ["cpu2", "cpulist", "cpumap"]
    assert not seen.has(f"{NODE}/node0/meminfo")
    both = large("2", "0-1", 512 * MIB)
    assert (both.read(f"{NODE}/online"), both.read(f"{NODE}/has_cpu")) == (b"0-1\n", b"1\n")
    assert (both.read(f"{NODE}/node0/cpulist"), both.read(f"{NODE}/node0/distance")) == (b"\n", b"10 20\n")


def test_the_memory_of_all_nodes_is_the_containers(large):
    seen = large("0-3", "0-1", 512 * MIB)
    texts = [seen.read(f"{NODE}/node{node}/meminfo") for node in range(2)]
    assert texts[0].startswith(b"Node 0 MemTotal:         131072 kB\n")
    assert texts[1].startswith(b"Node 1 MemTotal:         393216 kB\n")
    alone = large("2", "1", 512 * MIB).read(f"{NODE}/node1/meminfo")
    assert alone.startswith(b"Node 1 MemTotal:         524288 kB\nNode 1 MemFree:          421888 kB\n")
    assert b"Node 1 MemUsed:          102400 kB\n" in alone


def test_what_is_counted_by_node_is_shown_by_node_and_what_is_not_counted_is_0(large):
    amounts = {"anon": 12288, "active_anon": 8192, "file": 40960}
    seen = large("0-3", "0-1", 512 * MIB, "anon N0=8192 N1=4096\nfile N0=0 N1=40960\n", **amounts)
    first, second = (seen.read(f"{NODE}/node{node}/meminfo") for node in range(2))
    assert b"Node 0 AnonPages:             8 kB\n" in first
    assert b"Node 1 AnonPages:             4 kB\n" in second
    assert b"Node 1 FilePages:            40 kB\n" in second
    assert b"Node 0 Active(anon):          2 kB\n" in first  # a quarter, which is this node's part of the machine
    assert b"Bounce:                0 kB\n" in first
    assert seen.read(f"{NODE}/node0/numastat") == b"numa_hit 0\nnuma_miss 0\n"


def test_what_is_counted_by_node_in_parts_is_the_sum_of_these(large):
    kinds = {"active_anon": 0, "inactive_anon": 800, "active_file": 80, "inactive_file": 20, "slab_reclaimable": 40}
    amounts = {name: amount * KIB for name, amount in {**kinds, "slab_unreclaimable": 10}.items()}
    numa = "".join(f"{name} N0={amount} N1=0\n" for name, amount in amounts.items())
    seen = large("0-3", "0-1", 512 * MIB, numa, **amounts)
    lines = (line.split() for line in seen.read(f"{NODE}/node0/meminfo").decode().splitlines())
    first = {words[2][:-1]: int(words[3]) for words in lines}
    assert {name: first[name] for name in ("Active", "Inactive", "Slab", "KReclaimable")} == {
        **{"Active": 80, "Inactive": 820},
        **{"Slab": 50, "KReclaimable": 40},
    }
    second = seen.read(f"{NODE}/node1/meminfo")
    for name in (b"Active", b"Inactive", b"Slab", b"KReclaimable"):
        assert re.search(rb"(?m)^Node 1 %s: +0 kB$" % name, second)


def kib_on_nodes(seen: Seen, name: str) -> list[int]:
    texts = (seen.read(f"{NODE}/node{node}/meminfo").decode() for node in range(2))
    return [int(text.partition(f" {name}: ")[2].split(None, 1)[0]) for text in texts]


def test_the_nodes_file_pages_are_together_what_meminfo_has_in_its_cache_and_its_swap_cache(large):
    numa = f"file N0={6 * MIB} N1={2 * MIB}\nswapcached N0={MIB} N1=0\n"
    seen = large("0-3", "0-1", 512 * MIB, numa, file=8 * MIB, swapcached=MIB)
    assert kib_on_nodes(seen, "FilePages") == [7 * KIB, 2 * KIB]
    # Where the machine is tightest, others' cache is in it.
    meminfo = Path(seen.filesystem.host.root, "proc/meminfo")
    tight = "MemTotal: 4194304 kB\nMemFree: 8192 kB\nMemAvailable: 32768 kB\n"
    meminfo.write_text(tight + meminfo.read_text().partition("MemAvailable:")[2].partition("\n")[2])
    now = memory_of(seen, "/proc/meminfo")
    assert (now["Cached"], now["SwapCached"]) == (24, 1)
    assert kib_on_nodes(seen, "FilePages") == [(7 + 4) * KIB, (2 + 12) * KIB]


def test_a_node_whose_memory_the_container_may_not_use_any_more_has_none_of_it(large):
    """Where its cpuset was changed without that its pages were moved, they stay counted where they are."""
    seen = large("0-3", "1", 512 * MIB, f"anon N0={MIB} N1=0\nfile N0={6 * MIB} N1={2 * MIB}\n", anon=MIB, file=8 * MIB)
    totals = {name: kib_on_nodes(seen, name) for name in ("MemTotal", "AnonPages", "FilePages")}
    assert totals == {"MemTotal": [0, 512 * KIB], "AnonPages": [0, KIB], "FilePages": [0, 8 * KIB]}


def test_huge_pages_are_on_the_nodes_where_the_machine_has_them(large, files):
    def pages(seen, name):
        kind = "hugepages/hugepages-2048kB"
        return [int(seen.read(f"{NODE}/node{node}/{kind}/{name}_hugepages")) for node in range(2)]

    hugetlb = v2.Hugetlb((files({"hugetlb.2MB.max": 14 * MIB, "hugetlb.2MB.current": 4 * MIB}),))
    for mems, total, free in (("0-1", [1, 6], [1, 4]), ("1", [0, 6], [0, 4])):
        seen = large("0-3", mems, 512 * MIB, hugetlb=hugetlb, pages=(2, 6))
        assert pages(seen, "nr") == kib_on_nodes(seen, "HugePages_Total")
        assert pages(seen, "free") == kib_on_nodes(seen, "HugePages_Free")
        text = seen.read("/proc/meminfo")
        assert b"HugePages_Total: %7d\n" % sum(pages(seen, "nr")) in text
        assert (pages(seen, "nr"), pages(seen, "free"), pages(seen, "surplus")) == (total, free, [0, 0])


def test_of_a_nodes_huge_pages_no_more_are_free_than_nobody_on_the_machine_has_reserved(large):
    seen = large("0-3", "1", 512 * MIB, pages=(2, 6), reserved=5)
    assert kib_on_nodes(seen, "HugePages_Free") == [0, 3]
    assert kib_on_nodes(seen, "HugePages_Total") == [0, 6]


@pytest.mark.parametrize(
    ("limit", "blocks"), [(1, 1), (128 * MIB, 1), (300 * MIB, 3), (3328 * MIB, 26), (4096 * MIB, 32), ("max", 32)]
)
def test_the_blocks_of_memory_are_together_the_limit_rounded_up(large, limit, blocks):
    seen = large("0", "0-1", limit)
    numbers = sorted(int(name[6:]) for name in seen.names(MEMORY) if name.startswith("memory"))
    assert numbers == [*range(24), *range(32, 40)][:blocks]
    assert seen.has(f"{MEMORY}/memory39") == (blocks == 32)
    assert len([name for name in seen.names(MEMORY, STRANGER) if name.startswith("memory")]) == 32


def test_a_block_of_memory_that_is_offline_holds_none_of_the_containers(large):
    seen = large("0", "0-1", 300 * MIB)
    for block in (0, 2, 3):
        Path(seen.filesystem.host.root, MEMORY[1:], f"memory{block}/state").write_text("offline\n")
    assert blocks_in(seen, MEMORY) == [1, 4, 5]
    Path(seen.filesystem.host.root, MEMORY[1:], "memory1/state").write_text("offline\n")
    meminfo = Path(seen.filesystem.host.root, "proc/meminfo")
    _, total, rest = re.split(r"(MemTotal: +\d+)", meminfo.read_text(), maxsplit=1)
    meminfo.write_text(f"MemTotal: {int(total.split()[1]) - 128 * KIB}{rest}")
    assert blocks_in(seen, MEMORY) == [4, 5, 6], "the machine has less memory: it was looked at again"


def test_a_block_of_memory_that_two_nodes_share_counts_once(large):
    seen = large("0", "0-1", 300 * MIB)
    root = Path(seen.filesystem.host.root)
    Path(root, NODE[1:], "node2").mkdir()
    for name in ("online", "possible", "has_memory"):
        Path(root, NODE[1:], name).write_text("0-2\n")  # of which the container may use the first two
    shared = Path(root, NODE[1:], "node1/memory0/state")
    shared.parent.mkdir()
    shared.write_text("online\n")
    assert blocks_in(seen, MEMORY) == [0, 1, 2]


def memory_of(seen: Seen, path: str) -> dict[str, int]:
    """The sizes in MiB of a meminfo, by their names."""
    lines = (line.partition(":") for line in seen.read(path).decode().splitlines())
    return {name.split()[-1]: int(rest.split()[0]) * KIB // MIB for name, _, rest in lines}


def blocks_in(seen: Seen, path: str) -> list[int]:
    return sorted(int(name[6:]) for name in seen.names(path) if name.startswith("memory"))


def test_a_container_sees_no_more_memory_than_the_nodes_have_that_it_may_use(large):
    for limit in ("max", 2048 * MIB):
        seen = large("0", "0", limit)
        now = memory_of(seen, "/proc/meminfo")
        assert (now["MemTotal"], now["MemFree"], now["MemAvailable"]) == (1024, 1024, 1024)
        assert memory_of(seen, f"{NODE}/node0/meminfo")["MemTotal"] == 1024
        assert blocks_in(seen, MEMORY) == blocks_in(seen, f"{NODE}/node0") == [*range(8)]
    assert memory_of(large("0", "0", 512 * MIB), "/proc/meminfo")["MemTotal"] == 512


def test_sysinfo_tells_the_memory_of_these_nodes_too(large):
    filesystem = large("0", "0", "max").filesystem
    container, host = filesystem._containers.of(READER), filesystem.host
    container.load = SimpleNamespace(read=lambda _states: (0.0, 0.0, 0.0))
    told = CallFigures(filesystem)._sysinfo(container, host, CPUSET)
    assert (told.total, told.free) == (1024 * MIB, 1024 * MIB)


def test_what_is_reclaimable_on_a_node_is_available_there(large):
    seen = large("0", "0", "max")
    kinds = {"MemTotal": 1024, "MemFree": 100, "Active(file)": 300, "Inactive(file)": 200, "SReclaimable": 50}
    text = "".join(f"Node 0 {name}: {size * 1024} kB\n" for name, size in kinds.items())
    Path(seen.filesystem.host.root, NODE[1:], "node0/meminfo").write_text(text)
    now = memory_of(seen, "/proc/meminfo")
    assert (now["MemTotal"], now["MemFree"], now["MemAvailable"]) == (1024, 100, 650)


def test_a_node_that_a_container_only_runs_on_has_no_memory_for_it(large):
    seen = large("0", "1", 512 * MIB)
    assert (seen.read(f"{NODE}/online"), seen.read(f"{NODE}/has_memory")) == (b"0-1\n", b"1\n")
    sizes = [memory_of(seen, f"{NODE}/node{node}/meminfo") for node in range(2)]
    assert [(size["MemTotal"], size["MemUsed"]) for size in sizes] == [(0, 0), (512, 100)]
    assert blocks_in(seen, MEMORY) == blocks_in(seen, f"{NODE}/node1") == [8, 9, 10, 11]
    assert blocks_in(seen, f"{NODE}/node0") == []


def test_a_block_of_memory_links_to_no_hidden_node(large):
    seen = large("2", "1", 512 * MIB)
    Path(seen.filesystem.host.root, MEMORY[1:], "memory8/node0").mkdir()  # a block may be on two nodes
    assert seen.names(f"{MEMORY}/memory8") == ["node1", "state"]
    assert seen.names(f"{MEMORY}/memory8", STRANGER) == ["node0", "node1", "state"]


def test_what_is_near_a_node_is_no_hidden_node(large):
    """nodeN/accessM names nodes that have CPUs near to its memory, and memory near to its CPUs, by links."""
    seen = large("2", "1", 512 * MIB)
    access = f"{NODE}/node1/access0"
    for kind in ("initiators", "targets"):
        directory = Path(seen.filesystem.host.root, access[1:], kind)
        directory.mkdir(parents=True)
        (directory / "read_latency").write_text("7\n")
        for node in range(2):
            (directory / f"node{node}").symlink_to(f"../../../node{node}")
        assert sorted(seen.names(f"{access}/{kind}")) == ["node1", "read_latency"]
        assert sorted(seen.names(f"{access}/{kind}", STRANGER)) == ["node0", "node1", "read_latency"]
        assert not seen.has(f"{access}/{kind}/node0")
    assert seen.read(f"{access}/targets/read_latency") == b"7\n"


def test_where_there_is_one_node_nobody_asks_whose_memory_may_be_used(large, monkeypatch):
    seen = large("0", "0", 512 * MIB)
    root = Path(seen.filesystem.host.root)
    for name in ("possible", "online", "has_memory"):
        (root / NODE[1:] / name).write_text("0\n")
    seen = Seen(Host(str(root)), seen.filesystem._containers.of(READER), CPUSET)
    asked = []
    monkeypatch.setattr(HeldDirectory, "text", lambda _self, path: asked.append(path) or b"0\n")
    monkeypatch.setattr(seen.filesystem._containers.of(READER).cgroup.cpuset, "mems", lambda: asked.append("mems"))
    seen.read("/proc/meminfo")
    assert asked == []


# sys/block, sys/class/block and sys/dev/block

SDA = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sda"
NVME = "pci0000:00/0000:00:1d.0/0000:3d:00.0/nvme/nvme0/nvme0n1"
STAT = "    5    0  10 1 2 0 4 1 0 2 2 0 0 0 0 0 0\n"


@pytest.fixture
def disks(made, cgroup, container_in):
    """The mount of a machine with two disks, one of which has a partition, for a container that used the first."""
    devices = {f"sys/devices/{SDA}": "8:0", f"sys/devices/{SDA}/sda1": "8:1", f"sys/devices/{NVME}": "259:0"}
    tree = {"proc/cpuinfo": "processor\t: 0\n\n", "proc/diskstats": ""}
    for device, number in devices.items():
        major, minor = number.split(":")
        tree |= {f"{device}/dev": f"{number}\n", f"{device}/stat": STAT, f"{device}/size": "2048\n"}
        tree["proc/diskstats"] += f"{major:>4} {minor:>7} {os.path.basename(device)} {' '.join(STAT.split())}\n"
    tree |= {f"sys/devices/{SDA}/sda1/partition": "1\n", f"sys/devices/{SDA}/queue/rotational": "1\n"}
    root = made(tree)
    for path in ("sys/block", "sys/class/block", "sys/dev/block", CPU[1:]):
        (root / path).mkdir(parents=True, exist_ok=True)
    for device, number in devices.items():
        name = os.path.basename(device)
        if name != "sda1":
            (root / "sys/block" / name).symlink_to(device.replace("sys", "..", 1))
        (root / "sys/class/block" / name).symlink_to(device.replace("sys", "../..", 1))
        (root / "sys/dev/block" / number).symlink_to(device.replace("sys", "../..", 1))
    io = SimpleNamespace(stat=lambda: {b"8:0": {b"rbytes": 4096, b"rios": 1, b"wbytes": 8192, b"wios": 2}})
    seen = Seen(Host(str(root)), container_in(cgroup(io=io)))
    seen.root = root
    return seen


def resolve(seen: Seen, path: str) -> str:
    """Follow links as the kernel does in a container where the mount's files are bound over its own."""
    for _ in range(9):
        for end in [*(at for at, letter in enumerate(path) if letter == "/" and at), len(path)]:
            if not path.startswith(("/sys/block/", "/sys/class/block/", "/sys/dev/block/")):
                break  # the machine's own file
            prefix = path[:end]
            if prefix.count("/") > 2 and stat.S_ISLNK(int(seen.filesystem.getattr(READER, prefix)["st_mode"])):
                target = os.path.join(os.path.dirname(prefix), seen.filesystem.readlink(READER, prefix))
                path = os.path.normpath(target + path[end:])
                break
        else:
            return path
    return path


@pytest.mark.parametrize("way", ["/sys/block/sda", "/sys/class/block/sda", "/sys/dev/block/8:0"])
def test_by_every_way_a_disks_stat_says_what_diskstats_does(disks, way):
    row = disks.filesystem.render(READER, "/proc/diskstats").splitlines()[0].split()[3:]
    text = disks.read(resolve(disks, f"{way}/stat"))
    assert text.split() == row == b"1 0 8 0 2 0 16 0 0 0 0 0 0 0 0 0 0".split()
    assert text.startswith(b"       1        0        8 ")
    assert disks.read(resolve(disks, f"{way}/stat"), STRANGER) == STAT.encode()


@pytest.mark.parametrize("way", ["/sys/block/sda/sda1", "/sys/class/block/sda1", "/sys/dev/block/8:1"])
def test_a_partition_has_no_figures_as_in_diskstats(disks, way):
    assert set(disks.read(resolve(disks, f"{way}/stat")).split()) == {b"0"}
    assert disks.read(resolve(disks, "/sys/block/nvme0n1/stat")).split() == [b"0"] * 17


def test_one_path_of_several_to_a_disk_has_no_figures_and_nobody_is_forgotten(disks):
    """NVMe multipath has them in /sys/block, hidden elsewhere: with `stat` and without `dev`."""
    hidden = "pci0000:00/nvme/nvme0/nvme0c0n1"
    (disks.root / "sys/devices" / hidden).mkdir(parents=True)
    (disks.root / "sys/devices" / hidden / "stat").write_text(STAT)
    (disks.root / "sys/block/nvme0c0n1").symlink_to(f"../devices/{hidden}")
    path = resolve(disks, "/sys/block/nvme0c0n1/stat")
    assert path == f"/sys/block/.devices/{hidden}/stat"
    assert disks.read(path).split() == [b"0"] * 17
    assert not disks.filesystem.failures
    assert disks.read(path, STRANGER) == STAT.encode()


def test_all_else_of_a_disk_is_a_link_to_the_machines_own(disks):
    path = resolve(disks, "/sys/block/sda")
    assert path == f"/sys/block/.devices/{SDA}"
    assert set(disks.names(path)) == {"dev", "queue", "sda1", "size", "stat"}
    assert resolve(disks, "/sys/block/sda/size") == f"/sys/devices/{SDA}/size"
    assert resolve(disks, "/sys/block/sda/queue/rotational") == f"/sys/devices/{SDA}/queue/rotational"
    assert resolve(disks, "/sys/block/sda/sda1/size") == f"/sys/devices/{SDA}/sda1/size"
    assert resolve(disks, "/sys/dev/block/259:0/size") == f"/sys/devices/{NVME}/size"


def test_disks_are_listed_as_links_and_come_and_go_with_the_machines(disks):
    assert disks.names("/sys/block") == ["nvme0n1", "sda"]
    assert disks.names("/sys/class/block") == ["nvme0n1", "sda", "sda1"]
    assert disks.names("/sys/dev/block") == ["259:0", "8:0", "8:1"]
    assert stat.S_ISLNK(int(disks.filesystem.getattr(READER, "/sys/block/sda")["st_mode"]))
    (disks.root / "sys/block/sda").unlink()
    assert disks.names("/sys/block") == ["nvme0n1"]
    assert not disks.has("/sys/block/sda")
    assert not disks.has(f"/sys/block/.devices/{SDA}/stat")


def test_no_file_that_is_no_disks_is_found_beside_the_disks(disks):
    (disks.root / "sys/devices/secret").write_text("secret\n")
    (disks.root / "sys/devices/pci0000:00/config").write_text("secret\n")
    for path in ("secret", "pci0000:00/config", "nothing"):
        assert not disks.has(f"/sys/block/.devices/{path}")
    assert disks.names("/sys/block/.devices/pci0000:00") == []


def test_every_path_of_the_disks_can_be_numbered(disks):
    paths = list(disks.filesystem.paths())
    assert {
        "/sys/block/sda",
        "/sys/block/.devices",
        f"/sys/block/.devices/{os.path.dirname(SDA)}",
        f"/sys/block/.devices/{SDA}/sda1/stat",
        "/sys/dev/block/8:1",
    } <= set(paths)
    for path in paths:
        assert disks.filesystem.getattr(READER, path)
