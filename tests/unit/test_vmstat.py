"""/proc/vmstat and /proc/partitions of containers on recorded machines, which have a made-up /proc/vmstat."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from lxcfs_py.cgroup import v1, v2
from lxcfs_py.config import Config
from lxcfs_py.linux.host import Host
from lxcfs_py.views import VIEWS
from tests.unit.conftest import MACHINES, RecordedHost

PAGE = os.sysconf("SC_PAGE_SIZE")
NAMES = (
    *("nr_free_pages", "nr_inactive_anon", "nr_active_file", "nr_zone_active_file", "nr_file_pages", "nr_shmem"),
    *("nr_dirty", "nr_writeback", "nr_zone_write_pending", "nr_hugetlb"),
    *("nr_kernel_stack", "nr_anon_transparent_hugepages", "numa_hit", "pgpgin", "pgpgout", "pswpin", "pgfault"),
    *("pgmajfault", "pgscan_direct", "oom_kill", "balloon_inflate"),
)


@pytest.fixture(params=MACHINES)
def machine(request, copied, tmp_path):
    """Each recorded machine, with a /proc/vmstat."""
    machine = copied(request.param, tmp_path)
    (machine.root / "proc/vmstat").write_text("".join(f"{name} {7 * 10**9}\n" for name in NAMES))
    machine.host = RecordedHost(machine.root)
    return machine


def fields(text: bytes) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in (line.split() for line in text.splitlines())}


def meminfo(machine) -> dict[str, int]:
    lines = (line.split() for line in machine.render("proc/meminfo").splitlines())
    return {name.decode()[:-1]: int(number) << 10 for name, number, *_ in lines}


def test_vmstat_has_the_kernels_fields_in_its_order(machine):
    assert tuple(fields(machine.render("proc/vmstat"))) == NAMES


def test_pages_are_those_of_meminfo(machine):
    now, memory = fields(machine.render("proc/vmstat")), meminfo(machine)
    assert now["nr_free_pages"] == memory["MemFree"] // PAGE
    assert now["nr_inactive_anon"] == memory["Inactive(anon)"] // PAGE
    assert now["nr_active_file"] == now["nr_zone_active_file"] == memory["Active(file)"] // PAGE
    assert now["nr_file_pages"] == (memory["Cached"] + memory["SwapCached"]) // PAGE > 0
    assert now["nr_zone_write_pending"] == (memory["Dirty"] + memory["Writeback"]) // PAGE
    assert now["nr_shmem"] * PAGE == 8 << 20
    assert now["nr_kernel_stack"] == memory["KernelStack"] >> 10
    assert now["nr_anon_transparent_hugepages"] == memory["AnonHugePages"] >> 21


def test_huge_pages_that_the_kernel_makes_by_itself_have_a_size_of_their_own(machine):
    """Which is not the default size of those that are asked for, where the kernel was booted with another one."""
    size = machine.root / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
    size.parent.mkdir()
    size.write_text(f"{1 << 19}\n")
    machine.host = RecordedHost(machine.root)
    now = fields(machine.render("proc/vmstat"))
    assert now["nr_anon_transparent_hugepages"] == meminfo(machine)["AnonHugePages"] >> 19


def test_events_are_those_that_the_cgroup_counts(machine):
    now = fields(machine.render("proc/vmstat"))
    counts = dict(line.split() for line in machine.cgroup("memory", "memory.stat").splitlines())
    old = machine.name.startswith(("v1", "hybrid"))
    assert now["pgfault"] == int(counts["total_pgfault" if old else "pgfault"]) > 0
    assert now["pgmajfault"] == int(counts["total_pgmajfault" if old else "pgmajfault"])
    assert now["pgscan_direct"] == int(counts.get("pgscan_direct", 0))
    assert now["oom_kill"] == 0
    assert now["numa_hit"] == now["balloon_inflate"] == 0


def test_what_was_paged_in_and_out_is_the_block_io(machine):
    now = fields(machine.render("proc/vmstat"))
    rows = [line.split() for line in machine.render("proc/diskstats").splitlines()]
    assert now["pgpgin"] == sum(int(row[5]) for row in rows) // 2
    assert now["pgpgout"] == sum(int(row[9]) for row in rows) // 2


@pytest.fixture
def both_paged(made, cgroup, container_in):
    """both_paged(read, written) is what vmstat says was paged in and out, in KiB, by what was on each disk, in KiB.

    The machine has a stacked disk 253:0 on a partition of 8:0, another one 253:1 on the whole of 8:16, and a loop 7:0.
    """
    tree = {
        "sys/devices/system/cpu/online": "0\n",
        "proc/cpuinfo": "processor\t: 0\n\n",
        "proc/vmstat": "pgpgin 0\npgpgout 0\n",
        "proc/meminfo": "MemTotal: 4096 kB\nMemFree: 4096 kB\nMemAvailable: 4096 kB\n",
    }
    places = {
        **{"8:0": "pci/block/sda", "8:1": "pci/block/sda/sda1", "8:16": "pci/block/sdb"},
        **{
            f"{number}": f"virtual/block/{name}"
            for number, name in (("253:0", "dm-0"), ("253:1", "dm-1"), ("7:0", "loop0"))
        },
    }
    tree.update({f"sys/devices/{place}/dev": f"{number}\n" for number, place in places.items()})
    root = made(
        {**tree, "sys/devices/virtual/block/dm-0/slaves/sda1": "", "sys/devices/virtual/block/dm-1/slaves/sdb": ""}
    )
    for directory in ("dev", "class"):
        (root / "sys" / directory / "block").mkdir(parents=True)
    for number, place in places.items():
        (root / "sys/dev/block" / number).symlink_to(f"../../devices/{place}")
        (root / "sys/class/block" / place.rpartition("/")[2]).symlink_to(f"../../devices/{place}")
    memory = SimpleNamespace(
        is_counted=lambda: True,
        stat=lambda: dict.fromkeys(v2.Memory.fields.wanted, 0),
        room=lambda _reclaimable, _high: SimpleNamespace(
            within=lambda *_: SimpleNamespace(limit=0, free=0, available=0)
        ),
        events=dict,
    )
    now: dict[bytes, dict[bytes, int]] = {}
    container = container_in(cgroup(memory=memory, io=SimpleNamespace(stat=lambda: dict(now))))
    host = Host(str(root))

    def look(read, written):
        now.clear()
        for disk, kib in read.items():
            now[disk.encode()] = {b"rbytes": kib << 10, b"wbytes": written[disk] << 10}
        return tuple(fields(VIEWS["proc/vmstat"](container, host, Config())).values())

    return look


@pytest.fixture
def paged(both_paged):
    """paged(disks) is what was paged in where twice as much was written."""

    def look(disks):
        read, written = both_paged(disks, {disk: 2 * kib for disk, kib in disks.items()})
        assert written == 2 * read
        return read

    return look


def test_what_a_stacked_disk_passes_on_is_counted_once(paged):
    assert paged({"253:0": 4, "8:0": 4, "253:1": 2, "8:16": 2}) == 6


def test_what_is_under_way_between_stacked_disks_at_a_look_is_counted_once(paged):
    for look in range(1, 101):
        under_way = 10 if look % 2 else 0
        assert paged({"253:0": 100 * look, "8:0": 100 * look - under_way}) == 100 * look


def test_which_disks_are_below_one_is_asked_once_a_look_at_most_and_not_while_it_is_idle(paged, monkeypatch):
    asked = []
    below = Host.disks_below
    monkeypatch.setattr(Host, "disks_below", lambda host, device: asked.append(device) or below(host, device))
    paged({"253:0": 4, "8:0": 4})
    assert sorted(asked) == [b"253:0", b"8:0"]
    asked.clear()
    paged({"253:0": 4, "8:0": 4})
    paged({"253:0": 5, "8:0": 4})
    assert paged({"253:0": 5, "8:0": 5}) == 5
    assert asked == []


def test_a_stacked_disk_counts_where_nothing_is_counted_of_those_below_it(paged):
    """As on cgroup v1 where it alone has a limit."""
    assert paged({"253:0": 100, "7:0": 1}) == 101
    assert paged({"253:0": 110, "7:0": 1, "8:0": 0}) == 111
    assert paged({"253:0": 115, "7:0": 1, "8:0": 5}) == 116, "5 of each, which are the same"


def test_what_an_encrypted_disk_writes_counts_as_what_it_reads_does(both_paged):
    """dm-crypt writes from the kernel's own threads, which are in no container's cgroup."""
    assert both_paged({"253:0": 4, "8:0": 4}, {"253:0": 100, "8:0": 0}) == (4, 100)
    # The container writes to the lower disk too: that could be what the upper one was asked for before.
    assert both_paged({"253:0": 4, "8:0": 4}, {"253:0": 100, "8:0": 7}) == (4, 100)
    assert both_paged({"253:0": 6, "8:0": 6}, {"253:0": 130, "8:0": 7}) == (6, 130)
    assert both_paged({"253:0": 6, "8:0": 6}, {"253:0": 150, "8:0": 162}) == (6, 162), "the more of both"
    assert both_paged({"253:0": 6, "8:0": 6}, {"253:0": 170, "8:0": 162}) == (6, 182), "and not what it is asked after"


def test_what_was_paged_never_steps_back(paged):
    assert paged({"253:0": 100}) == 100
    assert paged({"253:0": 101, "8:0": 1}) == 101, "it is not alone any more"
    assert paged({"253:0": 101, "8:0": 1, "7:0": 50}) == 151
    assert paged({"253:0": 103, "8:0": 3}) == 153, "a disk is gone"
    assert paged({"253:0": 103, "8:0": 3, "7:0": 2}) == 155, "another one with its number"


def test_killed_processes_are_counted(files):
    old = v1.Memory((files({"memory.stat": "total_pgfault 3", "memory.oom_control": "under_oom 0\noom_kill 2"}),))
    new = v2.Memory((files({"memory.stat": "pgfault 3", "memory.events": "low 0\noom_kill 2"}),))
    for memory in (old, new):
        assert {name: memory.events()[name] for name in ("pgfault", "oom_kill")} == {"pgfault": 3, "oom_kill": 2}


def test_partitions_are_the_machines(machine):
    (machine.root / "proc/partitions").write_text("major minor  #blocks  name\n\n   8        0    1024 sda\n")
    machine.host = RecordedHost(machine.root)
    assert machine.render("proc/partitions") == machine.own("proc/partitions")
