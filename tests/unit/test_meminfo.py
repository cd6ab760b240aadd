"""/proc/meminfo and /proc/swaps of containers on recorded machines, and on made-up ones."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lxcfs_py.cgroup import v1, v2
from lxcfs_py.config import Config, Memory
from lxcfs_py.daemon.call_figures import CallFigures
from lxcfs_py.linux.host import Host
from lxcfs_py.views import VIEWS, meminfo, swaps

KIB, MIB, PAGE = 1 << 10, 1 << 20, os.sysconf("SC_PAGE_SIZE")
UNLIMITED_V1 = 9223372036854771712
NO_SWAP = Config(memory=Memory(swap=False))

# What trees/README.md says of the limits, in MiB: memory, swap.
LIMITS = {
    "v1-2cpu": (256, 0),  # the machine has no swap
    "v1-2cpu-swap": (256, 128),
    "hybrid": (256, 0),
    "v2-2cpu-noswap-nopsi": (192, 0),  # the parent's, which is smaller than its own
    "v2-64cpu": (512, 256),
    "v2-arm64": (256, 0),
}


def fields(text: bytes) -> dict[str, int]:
    """The numbers, as they stand: in KiB but for the counts of huge pages."""
    return {
        name.decode(): int(rest.split()[0]) for name, _, rest in (line.partition(b":") for line in text.splitlines())
    }


def stat(machine, *names) -> int:
    """The sum of some fields of the container's memory.stat, in KiB."""
    figures = dict(line.split() for line in machine.cgroup("memory", "memory.stat").splitlines())
    return sum(int(figures[name]) for name in names) // KIB


# Recorded machines


def test_the_total_is_the_smallest_limit_of_the_container_and_its_parents(machine):
    assert fields(machine.render("proc/meminfo"))["MemTotal"] == LIMITS[machine.name][0] * MIB // KIB


def test_free_memory_is_what_the_tightest_limit_has_left(machine):
    old = machine.name.startswith(("v1", "hybrid"))
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
    left = [
        int(machine.cgroup("memory", names[0], up)) - int(machine.cgroup("memory", names[1], up)) for up in range(2)
    ]
    assert fields(machine.render("proc/meminfo"))["MemFree"] == min(left) // KIB


def test_what_the_container_used_shows_in_the_fields_that_count_it(machine):
    """trees/README.md says what that was; an interpreter in each of three processes comes on top."""
    now = fields(machine.render("proc/meminfo"))
    assert now["Shmem"] == 8 * MIB // KIB
    assert 32 * MIB // KIB <= now["Cached"] < 33 * MIB // KIB  # the file, and the shared memory
    assert 24 * MIB // KIB <= now["Active(file)"] + now["Inactive(file)"] < 25 * MIB // KIB
    anonymous = {"v1-2cpu-swap": 48 - 16 + 6, "v2-64cpu": 96 - 32 + 6}.get(machine.name, 48 + 6)
    assert anonymous * MIB // KIB <= now["AnonPages"] < (anonymous + 20) * MIB // KIB
    assert now["Active"] == now["Active(anon)"] + now["Active(file)"]
    assert now["Inactive"] == now["Inactive(anon)"] + now["Inactive(file)"]
    old = machine.name.startswith(("v1", "hybrid"))
    reclaimable = ["total_active_file", "total_inactive_file"] if old else ["active_file", "inactive_file"]
    reclaimable += [] if old else ["slab_reclaimable"]
    assert now["MemAvailable"] - now["MemFree"] == pytest.approx(stat(machine, *reclaimable), abs=1)


def test_slabs_and_kernel_stacks_are_counted_where_cgroups_count_them(machine):
    now = fields(machine.render("proc/meminfo"))
    if machine.name.startswith("v2"):
        assert now["SReclaimable"] == now["KReclaimable"] == stat(machine, "slab_reclaimable") > 0
        assert now["SUnreclaim"] == stat(machine, "slab_unreclaimable") > 0
        assert now["Slab"] == stat(machine, "slab_reclaimable", "slab_unreclaimable")
        assert now["KernelStack"] == stat(machine, "kernel_stack") > 0
        assert now["PageTables"] == stat(machine, "pagetables") > 0
    else:
        assert not any(now[name] for name in ("SReclaimable", "KReclaimable", "SUnreclaim", "Slab", "KernelStack"))


def test_swap_is_what_the_container_may_use_and_no_more_than_it_uses_is_taken(machine):
    now = fields(machine.render("proc/meminfo"))
    assert now["SwapTotal"] == LIMITS[machine.name][1] * MIB // KIB
    used = now["SwapTotal"] - now["SwapFree"]
    swapped_out = {"v1-2cpu-swap": 16, "v2-64cpu": 32}.get(machine.name, 0) * MIB // KIB
    assert swapped_out * 0.9 <= used <= swapped_out


def test_without_swap_in_the_configuration_there_is_none(machine):
    now = fields(machine.render("proc/meminfo", NO_SWAP))
    assert now["SwapTotal"] == now["SwapFree"] == 0
    assert machine.render("proc/swaps", NO_SWAP) == machine.own("proc/swaps").splitlines(keepends=True)[0]


def test_huge_pages_are_those_the_container_may_have(machine):
    now = fields(machine.render("proc/meminfo"))
    pages = now["HugePages_Total"], now["HugePages_Free"], now["Hugetlb"], now["Hugepagesize"]
    # Of the machine's 16 pages, 8 are allowed and 3 are in use.
    assert pages == ((8, 5, 8 * 2048, 2048) if machine.name == "v2-64cpu" else (0, 0, 0, 2048))


def test_the_layout_is_the_machines_own(machine):
    def layout(text: bytes) -> list[tuple[bytes, int, bytes]]:
        """Of each line: the name, the column at which the number ends, the unit."""
        return [
            (match[1], match.end(2), match[3]) for match in re.finditer(rb"^([^:]+:) *(\d+)( kB)?$", text, re.MULTILINE)
        ]

    rendered, own = machine.render("proc/meminfo"), machine.own("proc/meminfo")
    assert layout(rendered) == layout(own)
    assert len(layout(own)) == own.count(b"\n") == rendered.count(b"\n")


def test_what_cgroups_do_not_count_is_0_and_what_the_kernel_fixes_stays(machine):
    now, own = fields(machine.render("proc/meminfo")), fields(machine.own("proc/meminfo"))
    assert now["VmallocTotal"] == own["VmallocTotal"]
    of_this_machine = () if machine.name == "v2-arm64" else ("DirectMap4k", "DirectMap2M")
    for name in ("Buffers", "Mlocked", "Committed_AS", "VmallocUsed", "NFS_Unstable", *of_this_machine):
        assert now[name] == 0


def test_the_commit_limit_is_the_containers(machine):
    now = fields(machine.render("proc/meminfo"))
    assert machine.own("proc/sys/vm/overcommit_ratio") == b"50\n"
    assert now["CommitLimit"] == now["MemTotal"] // 2 + now["SwapTotal"]


def test_swaps_has_a_line_as_long_as_there_is_swap(machine):
    header, *lines = machine.render("proc/swaps").splitlines(keepends=True)
    assert header == machine.own("proc/swaps").splitlines(keepends=True)[0]
    now = fields(machine.render("proc/meminfo"))
    if not LIMITS[machine.name][1]:
        assert lines == []
        return
    (line,) = lines
    used = now["SwapTotal"] - now["SwapFree"]
    assert line.split() == [b"none", b"virtual", b"%d" % now["SwapTotal"], b"%d" % used, b"0"]
    assert line.endswith(b"\n")
    (own,) = machine.own("proc/swaps").splitlines(keepends=True)[1:]
    assert columns(line) == columns(own) == [0, 40, 56, 72, 88]


def columns(line: bytes) -> list[int]:
    """Where the words begin, on a terminal."""
    return [match.start() for match in re.finditer(rb"\S+", line.expandtabs())]


def test_a_service_without_limits_sees_the_machines_total_and_what_that_has_left(recorded):
    for name in ("v1-2cpu-swap", "hybrid", "v2-64cpu", "v2-2cpu-noswap-nopsi"):
        machine = recorded(name)
        now, own = fields(machine.service("proc/meminfo")), fields(machine.own("proc/meminfo"))
        for field in ("MemTotal", "MemFree", "SwapTotal"):
            assert now[field] == own[field]
        assert now["MemFree"] <= now["MemAvailable"] <= max(own["MemAvailable"], own["MemFree"])
        assert 0 < now["AnonPages"] < own["AnonPages"]


def test_psutil_reads_the_figures(machine, rendered, monkeypatch):
    shutil.copy("/proc/vmstat", rendered / "proc")  # for swap_memory, which takes pages in and out from it
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(rendered / "proc"))
    now = {name: number * KIB for name, number in fields(machine.render("proc/meminfo")).items()}
    memory = psutil.virtual_memory()
    assert memory.total == LIMITS[machine.name][0] * MIB
    assert (memory.free, memory.available) == (now["MemFree"], now["MemAvailable"])
    assert memory.used == memory.total - memory.available
    assert memory.cached == now["Cached"] + now["SReclaimable"]
    assert memory.shared == 8 * MIB
    swap = psutil.swap_memory()
    assert (swap.total, swap.used) == (LIMITS[machine.name][1] * MIB, now["SwapTotal"] - now["SwapFree"])


# Made-up cgroups


LAYOUT = Path(__file__).parent.joinpath("trees", "v2-64cpu", "proc", "meminfo").read_bytes()
LAYOUT = LAYOUT.replace(b"\nDirty:", b"\nZswap:                 0 kB\nZswapped:              0 kB\nDirty:")


def make_host(root: Path, pages: int = 0, free: int | None = None, reserved: int = 0, **figures: int) -> Host:
    """A machine with the layout of a recorded one and other figures, in bytes, and so many huge pages of 2 MiB.

    All of these are free, or so many of them, of which some are reserved.
    """
    text = LAYOUT.replace(b"HugePages_Total:      16", b"HugePages_Total:%8d" % pages)
    for name, value in {"SwapTotal": 0, "SwapFree": 0, **figures}.items():
        line = b"%-16s%8d kB\n" % (name.encode() + b":", value // KIB)
        text = re.sub(rb"(?m)^%s:.*\n" % name.encode(), line, text)
    swap = figures.get("SwapTotal", 0)
    areas = f"/swap\\040file partition {swap // KIB} {(swap - figures.get('SwapFree', 0)) // KIB} -2\n" if swap else ""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/meminfo").write_bytes(text)
    (root / "proc/swaps").write_text("Filename Type Size Used Priority\n" + areas)
    (root / "proc/cpuinfo").write_text("processor\t: 0\n\n")
    (root / "sys/devices/system/cpu").mkdir(parents=True, exist_ok=True)
    huge = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    huge.mkdir(parents=True, exist_ok=True)
    (huge / "nr_hugepages").write_text(f"{pages}\n")
    (huge / "free_hugepages").write_text(f"{pages if free is None else free}\n")
    (huge / "resv_hugepages").write_text(f"{reserved}\n")
    return Host(str(root))


MEMORY = {"MemTotal": 4096 * MIB, "MemFree": 1000 * MIB, "MemAvailable": 3000 * MIB}


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A machine with 4 GiB of memory, of which 3000 MiB are available, and 512 MiB of swap."""
    return make_host(tmp_path_factory.mktemp("host"), **MEMORY, SwapTotal=512 * MIB, SwapFree=400 * MIB)


@pytest.fixture(scope="session")
def swapless(tmp_path_factory):
    return make_host(tmp_path_factory.mktemp("swapless"), **MEMORY)


@pytest.fixture(scope="session")
def changing(tmp_path_factory):
    """The directory of a machine that is another one for each example."""
    return tmp_path_factory.mktemp("changing")


@pytest.fixture(scope="session")
def show(files, cgroup, container_in):
    """show(version, host, levels) is the fields for a container whose levels have these files, its own first."""

    def render(version, host, *levels, config=Config()):  # noqa: B008 - it is immutable
        memory = (v1 if version == 1 else v2).Memory(tuple(map(files, levels)))
        return fields(meminfo.render(container_in(cgroup(memory=memory)), host, config))

    return render


@pytest.fixture
def clock(monkeypatch):
    """The time by which the machine's settings are known, as a list of one that can be changed."""
    now = [time.monotonic()]
    monkeypatch.setattr("lxcfs_py.linux.host.time.monotonic", lambda: now[0])
    return now


def level1(limit=UNLIMITED_V1, usage=0, both=UNLIMITED_V1, both_usage=None, stat=""):
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": usage,
        "memory.memsw.limit_in_bytes": both,
        "memory.memsw.usage_in_bytes": usage if both_usage is None else both_usage,
        "memory.stat": stat,
    }


def level2(limit="max", usage=0, swap="max", swap_usage=0, stat=""):
    return {
        "memory.max": limit,
        "memory.current": usage,
        "memory.swap.max": swap,
        "memory.swap.current": swap_usage,
        "memory.stat": stat,
    }


@pytest.mark.parametrize(("version", "level"), [(1, level1), (2, level2)])
def test_the_smallest_of_many_limits_wins_wherever_it_stands(version, level, show, host):
    for limits in ((100, 200, 300), (200, 100, 300), (300, 200, 100)):
        levels = [level(limit * MIB, usage=40 * MIB) for limit in limits]
        now = show(version, host, *levels)
        assert (now["MemTotal"], now["MemFree"]) == (100 * MIB // KIB, 60 * MIB // KIB)


@pytest.mark.parametrize(("version", "level"), [(1, level1), (2, level2)])
def test_a_parent_that_others_have_filled_leaves_little_free_though_its_limit_is_larger(version, level, show, host):
    now = show(version, host, level(100 * MIB, usage=10 * MIB), level(500 * MIB, usage=490 * MIB))
    assert (now["MemTotal"], now["MemFree"]) == (100 * MIB // KIB, 10 * MIB // KIB)


@pytest.mark.parametrize(("version", "level"), [(1, level1), (2, level2)])
def test_levels_without_a_limit_do_not_count(version, level, show, host):
    now = show(version, host, level(), level(100 * MIB, usage=30 * MIB), level())
    assert (now["MemTotal"], now["MemFree"]) == (100 * MIB // KIB, 70 * MIB // KIB)


@pytest.mark.parametrize(("version", "level"), [(1, level1), (2, level2)])
def test_a_limit_above_the_machines_memory_is_none(version, level, show, host):
    now = show(version, host, level(8192 * MIB, usage=30 * MIB))
    assert (now["MemTotal"], now["MemFree"]) == (4096 * MIB // KIB, 1000 * MIB // KIB)


@pytest.mark.parametrize(("version", "level"), [(1, level1), (2, level2)])
def test_usage_above_a_limit_that_was_lowered_leaves_nothing_free(version, level, show, host):
    assert show(version, host, level(100 * MIB, usage=130 * MIB))["MemFree"] == 0


def test_a_level_of_v2_where_the_controller_is_not_enabled_is_skipped(show, host):
    now = show(2, host, {}, level2(100 * MIB, usage=30 * MIB, swap=50 * MIB, swap_usage=20 * MIB))
    assert (now["MemTotal"], now["MemFree"]) == (100 * MIB // KIB, 70 * MIB // KIB)
    assert now["SwapTotal"] == 50 * MIB // KIB


def test_a_container_without_the_memory_controller_sees_the_machines_memory(files, cgroup, container_in, host):
    disabled = v2.Memory((files({"cpu.stat": "user_usec 1"}), files({})))
    for own in (cgroup(), cgroup(memory=disabled)):
        for view, name in ((meminfo, "proc/meminfo"), (swaps, "proc/swaps")):
            assert view.render(container_in(own), host, Config()) == host.text(name)


def test_v1_limits_memory_and_swap_together(show, host):
    now = show(1, host, level1(256 * MIB, 100 * MIB, both=384 * MIB, both_usage=130 * MIB))
    assert (now["SwapTotal"], now["SwapFree"]) == (128 * MIB // KIB, 98 * MIB // KIB)


@pytest.mark.parametrize(
    ("own", "parent", "swap"),
    [
        ((100, 100), (50, 100), 50),
        ((50, 100), (100, 100), 50),
        ((200, 300), (100, None), 200),
        ((None, None), (50, 80), 30),
        ((50, None), (100, 120), 70),
        ((50, 50), (100, 200), 0),
    ],
)
def test_on_v1_the_tightest_limit_of_each_kind_holds_wherever_it_stands(own, parent, swap, show, host):
    limits = [[UNLIMITED_V1 if limit is None else limit * MIB for limit in level] for level in (own, parent)]
    now = show(1, host, *(level1(memory, both=both) for memory, both in limits))
    assert now["SwapTotal"] == now["SwapFree"] == swap * MIB // KIB


def test_v1_without_swap_accounting_shows_the_machines_swap(show, host):
    levels = {name: value for name, value in level1(256 * MIB, 100 * MIB).items() if "memsw" not in name}
    now = show(1, host, levels)
    assert (now["SwapTotal"], now["SwapFree"]) == (512 * MIB // KIB, 400 * MIB // KIB)


LEVELS = [(1, level1), (2, level2)]

# What programs take for used memory, in KiB.
USED = {
    "procps 4, psutil 7": lambda now: now["MemTotal"] - now["MemAvailable"],
    "procps 3, busybox, psutil 5, htop": lambda now: (
        now["MemTotal"] - now["MemFree"] - now["Buffers"] - now["Cached"] - now["SReclaimable"]
    ),
}

# What programs subtract from each other beside that, as unsigned numbers, in KiB.
DIFFERENCES = {
    "htop's cache": lambda now: now["Cached"] + now["SReclaimable"] - now["Shmem"],
    "htop's swap": lambda now: now["SwapTotal"] - now["SwapFree"] - now["SwapCached"],
    "what is in swap and on no disk": lambda now: (
        now["SwapTotal"] - now["SwapFree"] - max(now["Zswapped"], now["Zswap"])
    ),
    "swap that is kept free for it": lambda now: now["CommitLimit"] - now["SwapTotal"],
    "active pages of files": lambda now: now["Active"] - now["Active(anon)"],
    "inactive pages of files": lambda now: now["Inactive"] - now["Inactive(anon)"],
    "slab that stays": lambda now: now["Slab"] - now["SReclaimable"],
}


def usage(version: int, **amounts: int) -> str:
    """A memory.stat with so many MiB of file pages (file), reclaimable slab (slab) and other figures."""
    total, cache = ("total_", "total_cache") if version == 1 else ("", "file")
    lines = {
        f"{total}active_file": amounts.get("file", 0) // 2,
        f"{total}inactive_file": amounts.get("file", 0) // 2,
        cache: amounts.get("file", 0),
        f"{total}slab_reclaimable": amounts.get("slab", 0),
    }
    return "\n".join(f"{name} {number * MIB}" for name, number in lines.items())


@pytest.mark.parametrize("used", USED.values(), ids=USED)
@pytest.mark.parametrize(("version", "level"), LEVELS)
def test_programs_take_for_used_what_the_container_uses_and_cannot_give_back(version, level, used, show, host):
    now = show(version, host, level(500 * MIB, usage=300 * MIB, stat=usage(version, file=200)))
    assert used(now) == 100 * MIB // KIB
    assert now["Cached"] == 200 * MIB // KIB


@pytest.mark.parametrize("used", USED.values(), ids=USED)
def test_reclaimable_slab_is_not_used(used, show, host):
    now = show(2, host, level2(500 * MIB, usage=300 * MIB, stat=usage(2, file=160, slab=40)))
    assert used(now) == 100 * MIB // KIB


@pytest.mark.parametrize("limit", [None, 4090, 4096, 8192])
@pytest.mark.parametrize(("version", "level"), LEVELS)
def test_a_container_that_only_the_machine_limits_sees_what_that_has_left(version, level, limit, show, host):
    limits = {} if limit is None else {"limit": limit * MIB}
    now = show(version, host, level(**limits, usage=300 * MIB, stat=usage(version, file=200)))
    assert now["MemTotal"] == min(limit or 4096, 4096) * MIB // KIB
    assert (now["MemFree"], now["MemAvailable"]) == (1000 * MIB // KIB, 3000 * MIB // KIB)
    assert {used(now) for used in USED.values()} == {now["MemTotal"] - 3000 * MIB // KIB}  # no page cache is in it


@pytest.mark.parametrize(("version", "level"), LEVELS)
def test_a_machine_that_is_full_of_page_cache_has_room_for_what_a_limit_allows(version, level, show, host):
    now = show(version, host, level(2000 * MIB, usage=300 * MIB, stat=usage(version, file=200)))
    assert (now["MemFree"], now["MemAvailable"], now["Cached"]) == tuple(n * MIB // KIB for n in (1700, 1900, 200))


@pytest.mark.parametrize(("version", "level"), LEVELS)
def test_the_page_cache_of_others_below_the_same_parent_can_be_reclaimed(version, level, show, host):
    own = level(1000 * MIB, usage=300 * MIB, stat=usage(version, file=200))
    full = level(1500 * MIB, usage=1500 * MIB, stat=usage(version, file=1200))
    now = show(version, host, own, full)
    assert (now["MemTotal"], now["MemAvailable"]) == (1000 * MIB // KIB, 900 * MIB // KIB)
    tight = level(1500 * MIB, usage=1500 * MIB, stat=usage(version, file=600))
    now = show(version, host, own, tight)
    assert (now["MemFree"], now["MemAvailable"]) == (0, 600 * MIB // KIB)
    assert {used(now) for used in USED.values()} == {400 * MIB // KIB}


def test_the_machines_size_is_that_of_now(show, tmp_path):
    host = make_host(tmp_path, **MEMORY)
    level = level2(3000 * MIB, usage=100 * MIB)
    for machine, total in ((4096, 3000), (2048, 2048), (4096, 3000)):
        make_host(tmp_path, MemTotal=machine * MIB, MemFree=1000 * MIB, MemAvailable=1500 * MIB)
        assert show(2, host, level)["MemTotal"] == total * MIB // KIB
        assert show(2, host, level2())["MemTotal"] == machine * MIB // KIB


def test_memory_high_is_a_limit_where_the_configuration_says_so(show, host):
    own = {**level2(500 * MIB, usage=60 * MIB), "memory.high": 200 * MIB}
    parent = {**level2(usage=60 * MIB), "memory.high": 100 * MIB}
    high = Config(memory=Memory(high=True))
    assert show(2, host, own, parent)["MemTotal"] == 500 * MIB // KIB
    assert show(2, host, own, config=high)["MemTotal"] == 200 * MIB // KIB
    now = show(2, host, own, parent, config=high)
    assert (now["MemTotal"], now["MemFree"]) == (100 * MIB // KIB, 40 * MIB // KIB)
    assert show(2, host, {**own, "memory.high": 900 * MIB}, config=high)["MemTotal"] == 500 * MIB // KIB


@pytest.mark.parametrize("limit", ["memory.max", "memory.high"])
def test_what_is_in_use_beyond_a_limit_is_cut_down_so_that_no_part_is_more_than_all_memory(show, host, limit):
    kinds = {"anon": 150, "inactive_anon": 90, "active_anon": 60, "anon_thp": 120, "file": 30, "inactive_file": 20}
    kinds |= {"active_file": 10, "file_mapped": 12, "slab_unreclaimable": 20, "unevictable": 0}
    stat = "\n".join(f"{name} {amount * MIB}" for name, amount in kinds.items())
    full = show(2, host, {**level2(200 * MIB, usage=200 * MIB, stat=stat)})
    own = {**level2(usage=200 * MIB, stat=stat), limit: 100 * MIB}
    half = show(2, host, own, config=Config(memory=Memory(high=True)))
    for name in ("MemTotal", "AnonPages", "Active(anon)", "Active", "Inactive", "AnonHugePages", "Mapped", "Slab"):
        assert half[name] == full[name] // 2 > 0, name
    assert half["Active"] + half["Inactive"] + half["Slab"] == half["MemTotal"] == 100 * MIB // KIB


def test_swap_that_others_below_the_same_parent_use_is_not_free(show, host):
    now = show(2, host, level2(swap=100 * MIB, swap_usage=10 * MIB), level2(swap=200 * MIB, swap_usage=170 * MIB))
    assert (now["SwapTotal"], now["SwapFree"]) == (100 * MIB // KIB, 30 * MIB // KIB)
    own = level1(256 * MIB, 100 * MIB, both=356 * MIB, both_usage=110 * MIB)
    now = show(1, host, own, level1(300 * MIB, 200 * MIB, both=456 * MIB, both_usage=370 * MIB))
    assert (now["SwapTotal"], now["SwapFree"]) == (100 * MIB // KIB, 30 * MIB // KIB)


@pytest.mark.parametrize(
    ("version", "level"),
    [(1, level1(256 * MIB, both=456 * MIB)), (1, level1()), (2, level2(swap=200 * MIB)), (2, level2())],
)
def test_swap_that_others_use_on_the_machine_is_not_free(version, level, show, tmp_path):
    host = make_host(tmp_path, **MEMORY, SwapTotal=512 * MIB, SwapFree=40 * MIB)
    assert show(version, host, level)["SwapFree"] == 40 * MIB // KIB


def test_huge_pages_that_the_administrator_makes_are_seen_after_a_second(files, cgroup, container_in, tmp_path, clock):
    hugetlb = v2.Hugetlb((files({"hugetlb.2MB.max": "max", "hugetlb.2MB.current": 0}),))
    container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=hugetlb))
    host = make_host(tmp_path, **MEMORY)
    for pages in (0, 7, 3):
        make_host(tmp_path, pages=pages, **MEMORY)
        clock[0] += 1.1
        assert fields(meminfo.render(container, host, Config()))["HugePages_Free"] == pages


def test_v1_never_swaps_what_has_no_swappiness_more_than_it_has_swapped(show, host):
    for swappiness, swap in ((0, (10, 0)), (1, (100, 90)), (60, (100, 90))):
        own = level1(256 * MIB, 100 * MIB, both=356 * MIB, both_usage=110 * MIB)
        now = show(1, host, {**own, "memory.swappiness": swappiness})
        assert (now["SwapTotal"], now["SwapFree"]) == (swap[0] * MIB // KIB, swap[1] * MIB // KIB)
    assert show(1, host, {**level1(256 * MIB, 100 * MIB), "memory.swappiness": 0})["SwapTotal"] == 0


def test_swaps_and_meminfo_agree_where_nobody_counts_the_memory(cgroup, container_in, host):
    container = container_in(cgroup())
    assert swaps.render(container, host, Config()) == host.text("proc/swaps")
    assert fields(meminfo.render(container, host, Config()))["SwapTotal"] == 512 * MIB // KIB
    assert swaps.render(container, host, NO_SWAP).count(b"\n") == 1
    own, without = host.text("proc/meminfo"), meminfo.render(container, host, NO_SWAP)
    assert (fields(without)["SwapTotal"], fields(without)["SwapFree"]) == (0, 0)
    assert [len(line) for line in without.splitlines()] == [len(line) for line in own.splitlines()]
    assert fields(own)["SwapCached"] > fields(without)["SwapCached"] == 0
    assert {name for name, size in fields(own).items() if fields(without)[name] != size} <= {
        *("SwapTotal", "SwapFree", "SwapCached", "Zswap", "Zswapped", "CommitLimit")
    }


def test_sysinfo_agrees_with_meminfo_where_nobody_counts_the_memory(cgroup, container_in, host):
    filesystem: Any = SimpleNamespace(host=host)
    load = SimpleNamespace(read=lambda _states: (0.0, 0.0, 0.0))
    for config, swap in ((Config(), 512 * MIB), (NO_SWAP, 0)):
        told = CallFigures(filesystem)._sysinfo(container_in(cgroup(), load=load), host, config)
        assert (told.total, told.swap_total) == (4096 * MIB, swap)


@pytest.mark.parametrize(("version", "level", "prefix"), [(1, level1, "total_"), (2, level2, "")])
def test_where_there_is_no_swap_nothing_is_in_it(version, level, prefix, show, host, swapless):
    stat = "\n".join(f"{prefix}{name} {MIB}" for name in ("swapcached", "zswap", "zswapped", "cache", "file"))
    for machine, config in ((host, NO_SWAP), (swapless, Config())):
        now = show(version, machine, level(stat=stat), config=config)
        assert [now[name] for name in ("SwapTotal", "SwapCached", "Zswap", "Zswapped")] == [0, 0, 0, 0]


def test_shared_memory_is_no_more_than_the_cache_that_it_is_part_of_where_a_limit_was_lowered(
    files, cgroup, container_in, host
):
    own = level2(20 * MIB, usage=80 * MIB, stat=f"file {60 * MIB}\nshmem {60 * MIB}\nslab_reclaimable {20 * MIB}")
    load = SimpleNamespace(read=lambda _states: (0.0, 0.0, 0.0))
    container = container_in(cgroup(memory=v2.Memory((files(own),))), load=load)
    now = fields(meminfo.render(container, host, Config()))
    assert (now["Cached"], now["SReclaimable"], now["Shmem"]) == (15 * KIB, 5 * KIB, 15 * KIB)
    filesystem: Any = SimpleNamespace(host=host)
    assert CallFigures(filesystem)._sysinfo(container, host, Config()).shared == 15 * MIB
    host.vmstat_layout = ("nr_shmem", "nr_file_pages", "nr_slab_reclaimable")
    text = VIEWS["proc/vmstat"](container, host, Config()).decode().split()[1::2]
    assert [int(pages) * PAGE // MIB for pages in text] == [15, 15, 5]


def test_slab_is_no_more_than_what_a_limit_that_was_lowered_has_room_for(show, host):
    now = show(2, host, level2(20 * MIB, usage=80 * MIB, stat=f"file {20 * MIB}\nslab_reclaimable {60 * MIB}"))
    assert (now["SReclaimable"], now["KReclaimable"], now["Slab"], now["Cached"]) == (*[15 * KIB] * 3, 5 * KIB)


def test_sysinfo_tells_what_is_free_now_and_what_was_shared_within_the_last_second(
    cgroup, container_in, host, files, clock
):
    filesystem: Any = SimpleNamespace(host=host)
    levels = [level1(64 * MIB)]
    directory = SimpleNamespace(
        read=lambda name: files(levels[-1]).read(name), get=lambda name: files(levels[-1]).get(name)
    )
    load = SimpleNamespace(read=lambda _states: (0.0, 0.0, 0.0))
    container = container_in(cgroup(memory=v1.Memory((directory,))), load=load)

    def told(usage, shared):
        levels.append(level1(64 * MIB, usage=usage * MIB, stat=f"total_cache {8 * MIB}\ntotal_shmem {shared * MIB}\n"))
        said = CallFigures(filesystem)._sysinfo(container, host, Config())
        return said.free // MIB, said.shared // MIB

    assert told(10, 1) == (54, 1)
    assert told(20, 2) == (44, 1)
    clock[0] += 1.1
    assert told(20, 2) == (44, 2)


def test_the_commit_limit_is_by_the_settings_of_now(show, made, clock):
    host = make_host(made({"proc/sys/vm/overcommit_ratio": "50\n"}), **MEMORY)
    levels = level2(1024 * MIB)

    def limit():
        return show(2, host, levels)["CommitLimit"] * KIB // MIB

    assert limit() == 512
    made({"proc/sys/vm/overcommit_ratio": "80\n"})
    clock[0] += 1.1
    assert limit() == 819
    for kib, expected in ((100 * 1024, 100), (9000 * 1024, 1024)):
        made({"proc/sys/vm/overcommit_ratio": "0\n", "proc/sys/vm/overcommit_kbytes": f"{kib}\n"})
        clock[0] += 1.1
        assert limit() == expected


@pytest.mark.parametrize(("version", "level"), LEVELS)
def test_swaps_and_meminfo_agree(version, level, show, files, cgroup, container_in, host):
    limits = (
        {"both": 900 * MIB, "both_usage": 150 * MIB} if version == 1 else {"swap": 400 * MIB, "swap_usage": 50 * MIB}
    )
    levels = level(500 * MIB, usage=100 * MIB, **limits)
    now = show(version, host, levels)
    memory = (v1 if version == 1 else v2).Memory((files(levels),))
    line = swaps.render(container_in(cgroup(memory=memory)), host, Config()).splitlines()[1].split()
    assert [int(word) for word in line[2:4]] == [now["SwapTotal"], now["SwapTotal"] - now["SwapFree"]]
    assert now["SwapFree"] == 350 * MIB // KIB


@pytest.mark.parametrize(("version", "level"), [(1, level1(both=900 * MIB)), (2, level2(swap=900 * MIB))])
def test_swap_is_never_more_than_the_machines(version, level, show, host, swapless):
    assert show(version, host, level)["SwapTotal"] == 512 * MIB // KIB
    assert show(version, swapless, level)["SwapTotal"] == 0


def test_swap_that_was_used_before_its_limit_was_lowered_still_counts(show, host):
    now = show(2, host, level2(256 * MIB, swap=10 * MIB, swap_usage=30 * MIB))
    assert (now["SwapTotal"], now["SwapFree"]) == (30 * MIB // KIB, 0)


def test_a_swap_limit_of_zero_is_no_swap_at_all(show, files, cgroup, container_in, host):
    levels = level2(256 * MIB, swap=0)
    assert show(2, host, levels)["SwapTotal"] == 0
    container = container_in(cgroup(memory=v2.Memory((files(levels),))))
    assert swaps.render(container, host, Config()).count(b"\n") == 1


@pytest.mark.parametrize("kib", [1, 9_999_999, 10_000_000, 99_999_999])
def test_the_columns_of_swaps_stay_in_line_as_the_kernels_do(kib, files, cgroup, container_in, tmp_path):
    host = make_host(tmp_path, SwapTotal=kib * KIB)
    container = container_in(cgroup(memory=v2.Memory((files(level2(swap_usage=kib * KIB)),))))
    line = swaps.render(container, host, Config()).splitlines()[1]
    assert columns(line) == [0, 40, 56, 72, 88]


sizes = st.integers(0, 1 << 36) | st.sampled_from([0, 4096, 100 * MIB, 4096 * MIB])
v1_limits = st.just(UNLIMITED_V1) | sizes
v2_limits = st.just("max") | sizes
# memory.stat counts what memory.current counts, though not at the same instant; and a container may be all file pages.
stats = st.dictionaries(
    st.sampled_from(sorted({key.decode() for each in (v1.Memory, v2.Memory) for key in each.fields.wanted.values()})),
    sizes,
).map(lambda figures: "\n".join(f"{name} {value}" for name, value in figures.items()))
levels1 = st.lists(st.builds(level1, v1_limits, sizes, v1_limits, sizes, stats), min_size=1, max_size=4)
levels2: Any = st.lists(
    st.builds(level2, v2_limits, sizes, v2_limits, sizes, stats) | st.just({}), min_size=1, max_size=4
).filter(any)


@st.composite
def machines(draw):
    """The figures of a machine."""
    total = draw(st.integers(64 * MIB, 1 << 35))
    swap = draw(st.sampled_from([0, 512 * MIB]) | st.integers(0, 1 << 34))
    return {
        "MemTotal": total,
        "MemFree": draw(st.integers(0, total)),
        "MemAvailable": draw(st.integers(0, total)),
        "SwapTotal": swap,
        "SwapFree": draw(st.integers(0, swap)),
    }


@settings(max_examples=100)
@given(case=st.tuples(st.just(1), levels1) | st.tuples(st.just(2), levels2), figures=machines(), swap=st.booleans())
def test_figures_are_in_order_whatever_the_kernel_counts(case, figures, swap, show, changing):
    version, levels = case
    host = make_host(changing, **figures)
    now = show(version, host, *levels, config=Config(memory=Memory(swap=swap)))
    own = fields(host.text("proc/meminfo"))
    assert list(now) == list(own)
    assert min(now.values()) >= 0
    assert now["MemFree"] <= now["MemAvailable"] <= now["MemTotal"]
    assert now["MemAvailable"] <= max(own["MemAvailable"], own["MemFree"])
    assert {name: find(now) for name, find in {**USED, **DIFFERENCES}.items() if find(now) < 0} == {}
    assert now["KReclaimable"] == now["SReclaimable"]
    assert now["SwapFree"] <= now["SwapTotal"] <= own["SwapTotal"]
    assert now["SwapFree"] <= own["SwapFree"]
    limits = [level.get("memory.limit_in_bytes", level.get("memory.max", "max")) for level in levels]
    known = [limit // KIB for limit in limits if limit not in ("max", UNLIMITED_V1)]
    assert now["MemTotal"] == min([own["MemTotal"], *known])


@given(pages=st.integers(0, 100), limit=st.none() | st.integers(0, 200 * MIB), used=st.integers(0, 100))
def test_huge_pages_are_in_order_whatever_the_kernel_counts(pages, limit, used, files, cgroup, container_in, changing):
    host = make_host(changing, pages=pages, **MEMORY)
    own = {"hugetlb.2MB.max": "max" if limit is None else limit, "hugetlb.2MB.current": used * 2 * MIB}
    controllers = {"memory": v2.Memory((files(level2()),)), "hugetlb": v2.Hugetlb((files(own), files({})))}
    now = fields(meminfo.render(container_in(cgroup(**controllers)), host, Config()))
    assert 0 <= now["HugePages_Free"] <= now["HugePages_Total"]
    assert now["Hugetlb"] == now["HugePages_Total"] * 2048
    if pages:
        assert now["HugePages_Total"] - now["HugePages_Free"] >= used


def test_huge_pages_that_no_controller_limits_are_the_machines(files, cgroup, container_in, tmp_path):
    host = make_host(tmp_path, pages=512, free=12, **MEMORY)
    for hugetlb in (None, v2.Hugetlb((files({}),))):
        container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=hugetlb))
        now = fields(meminfo.render(container, host, Config()))
        assert (now["HugePages_Total"], now["HugePages_Free"], now["Hugetlb"]) == (512, 12, 512 * 2048)


def test_huge_pages_that_are_reserved_are_told(files, cgroup, container_in, tmp_path):
    host = make_host(tmp_path, pages=512, free=500, **MEMORY)
    own = {"hugetlb.2MB.max": "max", "hugetlb.2MB.current": 4 * MIB, "hugetlb.2MB.rsvd.current": 12 * MIB}
    hugetlb = v2.Hugetlb((files({**own, "hugetlb.2MB.rsvd.max": 20 * MIB}),))
    container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=hugetlb))
    now = fields(meminfo.render(container, host, Config()))
    assert (now["HugePages_Total"], now["HugePages_Free"], now["HugePages_Rsvd"]) == (10, 8, 4)


def test_huge_pages_that_others_have_reserved_are_not_free(files, cgroup, container_in, tmp_path):
    host = make_host(tmp_path, pages=16, free=16, reserved=12, **MEMORY)
    for own, shown in ((0, (16, 4, 0)), (3, (16, 7, 3)), (12, (16, 16, 12))):
        hugetlb = v2.Hugetlb((files({"hugetlb.2MB.max": "max", "hugetlb.2MB.rsvd.current": own * 2 * MIB}),))
        container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=hugetlb))
        now = fields(meminfo.render(container, host, Config()))
        assert (now["HugePages_Total"], now["HugePages_Free"], now["HugePages_Rsvd"]) == shown


def test_huge_pages_that_others_use_are_not_free_to_who_has_reserved_them(files, cgroup, container_in, tmp_path):
    """As those of a file that one has mapped, and another has written."""
    host = make_host(tmp_path, pages=10, free=0, **MEMORY)
    own = {"hugetlb.2MB.max": "max", "hugetlb.2MB.current": 0, "hugetlb.2MB.rsvd.current": 20 * MIB}
    container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=v2.Hugetlb((files(own),))))
    now = fields(meminfo.render(container, host, Config()))
    assert (now["HugePages_Total"], now["HugePages_Free"], now["HugePages_Rsvd"]) == (10, 0, 0)


def test_huge_pages_of_all_sizes_are_summed_and_those_of_the_default_size_told_apart(
    files, cgroup, container_in, made, tmp_path
):
    huge = "sys/kernel/mm/hugepages/hugepages-1048576kB"
    made({f"{huge}/{name}_hugepages": f"{count}\n" for name, count in (("nr", 2), ("free", 1), ("resv", 0))})
    counted = {"hugetlb.1GB.max": 1024 * MIB, "hugetlb.1GB.current": 1024 * MIB, "hugetlb.2MB.max": "max"}
    hugetlb = v2.Hugetlb((files({**counted, "hugetlb.2MB.current": 4 * MIB}),))
    container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=hugetlb))
    for pages, used in ((0, 0), (512, 4)):
        host = make_host(tmp_path, pages=pages, **MEMORY)
        now = fields(meminfo.render(container, host, Config()))
        assert (now["HugePages_Total"], now["Hugetlb"]) == (pages, (1024 + 2 * pages) * MIB // KIB)
        host.vmstat_layout = ("nr_hugetlb",)
        assert VIEWS["proc/vmstat"](container, host, Config()) == b"nr_hugetlb %d\n" % ((1024 + used) * MIB // PAGE)


def test_huge_pages_are_no_memory_that_may_be_promised(show, tmp_path):
    host = make_host(tmp_path, pages=1024, **MEMORY)  # 2 of the machine's 4 GiB
    assert show(2, host, level2())["CommitLimit"] == 1024 * MIB // KIB
    assert show(2, host, level2(1024 * MIB))["CommitLimit"] == 512 * MIB // KIB  # a limit that counts none of them


def test_where_there_are_no_huge_pages_nobody_asks_for_them(files, cgroup, container_in, tmp_path):
    host = make_host(tmp_path, **MEMORY)
    hugetlb = SimpleNamespace(room=lambda _size: pytest.fail("asked"))
    container = container_in(cgroup(memory=v2.Memory((files(level2()),)), hugetlb=hugetlb))
    assert fields(meminfo.render(container, host, Config()))["HugePages_Total"] == 0


@pytest.mark.parametrize("version", [1, 2])
def test_huge_pages_that_others_use_are_not_free(version, files, cgroup, container_in, tmp_path):
    def level(limit, used):
        if version == 1:
            limit = UNLIMITED_V1 if limit is None else limit * 2 * MIB
            return files({"hugetlb.2MB.limit_in_bytes": limit, "hugetlb.2MB.usage_in_bytes": used * 2 * MIB})
        limit = "max" if limit is None else limit * 2 * MIB
        return files({"hugetlb.2MB.max": limit, "hugetlb.2MB.current": used * 2 * MIB})

    def pages(*levels):
        hugetlb = (v1 if version == 1 else v2).Hugetlb(levels)
        memory = v2.Memory((files(level2()),))
        now = fields(meminfo.render(container_in(cgroup(memory=memory, hugetlb=hugetlb)), host, Config()))
        return now["HugePages_Total"], now["HugePages_Free"]

    host = make_host(tmp_path, pages=512, free=12, **MEMORY)
    assert pages(level(None, 0)) == (512, 12)
    assert pages(level(None, 2), level(100, 95)) == (100, 5)
    assert pages(level(20, 10), level(100, 50)) == (20, 10)
    assert pages(level(8, 10)) == (10, 0)
