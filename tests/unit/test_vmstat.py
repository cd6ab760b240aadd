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


def test_what_a_stacked_disk_passes_on_is_counted_once(made, cgroup, container_in):
    tree = {
        "sys/devices/system/cpu/online": "0\n",
        "proc/cpuinfo": "processor\t: 0\n\n",
        "proc/vmstat": "pgpgin 0\npgpgout 0\n",
    }
    tree["proc/meminfo"] = "MemTotal: 4096 kB\nMemFree: 4096 kB\nMemAvailable: 4096 kB\n"
    root = made({**tree, "sys/devices/virtual/block/dm-0/slaves/sda": "", "sys/devices/block/sda/slaves/none": ""})
    (root / "sys/devices/block/sda/slaves/none").unlink()
    (root / "sys/dev/block").mkdir(parents=True)
    (root / "sys/dev/block/253:0").symlink_to("../../devices/virtual/block/dm-0")
    (root / "sys/dev/block/8:0").symlink_to("../../devices/block/sda")
    memory = SimpleNamespace(
        is_counted=lambda: True,
        stat=lambda: dict.fromkeys(("Cached", "Active(anon)", "Active(file)", "Inactive(anon)", "Inactive(file)"), 0),
        room=lambda _reclaimable, _high: SimpleNamespace(
            within=lambda *_: SimpleNamespace(limit=0, free=0, available=0)
        ),
        events=dict,
    )
    counts = {"rbytes": 4096, "wbytes": 8192}
    own = {name.encode(): number for name, number in counts.items()}
    io = SimpleNamespace(stat=lambda: {b"253:0": own, b"8:0": own})
    container = container_in(cgroup(memory=memory, io=io))
    assert VIEWS["proc/vmstat"](container, Host(str(root)), Config()) == b"pgpgin 4\npgpgout 8\n"


def test_killed_processes_are_counted(files):
    old = v1.Memory((files({"memory.stat": "total_pgfault 3", "memory.oom_control": "under_oom 0\noom_kill 2"}),))
    new = v2.Memory((files({"memory.stat": "pgfault 3", "memory.events": "low 0\noom_kill 2"}),))
    for memory in (old, new):
        assert {name: memory.events()[name] for name in ("pgfault", "oom_kill")} == {"pgfault": 3, "oom_kill": 2}


def test_partitions_are_the_machines(machine):
    (machine.root / "proc/partitions").write_text("major minor  #blocks  name\n\n   8        0    1024 sda\n")
    machine.host = RecordedHost(machine.root)
    assert machine.render("proc/partitions") == machine.own("proc/partitions")
