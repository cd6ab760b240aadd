"""What containers on recorded machines see of CPUs, time, load, disks and pressure; for memory see test_meminfo.py."""

from __future__ import annotations

import os
import re
from types import SimpleNamespace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.cgroup import v1
from lxcfs_py.cgroup.tree import Quota
from lxcfs_py.config import Config, Cpu, Loadavg, Uptime
from lxcfs_py.container import visible_cpus
from lxcfs_py.files import NAMES
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import NS_PER_TICK, TICKS, Host
from lxcfs_py.views import TREES, VIEWS, diskstats, pressure, sys_cpu
from tests.unit.conftest import CPUS, CPUSET, QUOTA

# Where the container's files are, and what it read and wrote there, in MiB; v1 counts where there is a throttle limit.
DISK = {
    "v1-2cpu": ("loop0", 8, 40),
    "v1-2cpu-swap": ("vda", 0, 0),
    "hybrid": ("vda", 8, 40),
    "v2-2cpu-noswap-nopsi": ("vda", 8, 40),
    "v2-64cpu": ("vda", 8, 40 + 32),  # what was swapped out was written too
    "v2-arm64": ("vda", 8, 40),
}


def numbers_in(text: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"^processor\t: (\d+)$", text, re.MULTILINE)]


def blocks(text: bytes) -> dict[int, dict[str, str]]:
    """The fields of /proc/cpuinfo by CPU."""
    found = {}
    for block in text.decode().strip().split("\n\n"):
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.split("\n"))}
        found[int(fields["processor"])] = fields
    return found


def cpu_lines(text: bytes) -> dict[str, list[int]]:
    lines = [line.split() for line in text.decode().splitlines() if line.startswith("cpu")]
    return {name: list(map(int, numbers)) for name, *numbers in lines}


@pytest.fixture
def fresh(machine, recorded):
    """The machine, with no reading behind it."""
    return recorded(machine.name)


# cpuinfo


def test_cpuinfo_in_quota_mode_shows_as_many_cpus_of_the_cpuset_as_the_quota_has_time_for(machine):
    count, cpuset = CPUS[machine.name]
    assert numbers_in(machine.render("proc/cpuinfo", QUOTA)) == cpuset[:count]


def test_cpuinfo_in_cpuset_mode_shows_all_cpus_of_the_cpuset(machine):
    assert numbers_in(machine.render("proc/cpuinfo", CPUSET)) == CPUS[machine.name][1]


def test_the_blocks_of_cpuinfo_are_the_machines_but_for_what_counts_cpus(machine):
    count, cpuset = CPUS[machine.name]
    own = blocks(machine.own("proc/cpuinfo"))
    shown = blocks(machine.render("proc/cpuinfo", QUOTA))
    for cpu in cpuset[:count]:
        assert list(shown[cpu]) == list(own[cpu])
        changed = {name for name in own[cpu] if shown[cpu][name] != own[cpu][name]}
        assert changed <= {"siblings", "cpu cores"}


def test_siblings_and_cores_are_those_that_are_visible(machine):
    for config, count in ((QUOTA, CPUS[machine.name][0]), (CPUSET, len(CPUS[machine.name][1]))):
        shown = blocks(machine.render("proc/cpuinfo", config)).values()
        for block in shown if machine.name != "v2-arm64" else ():  # where cpuinfo does not say
            package = [other for other in shown if other["physical id"] == block["physical id"]]
            assert int(block["siblings"]) == len(package)
            assert int(block["cpu cores"]) == len({other["core id"] for other in package})
        if machine.name == "v2-64cpu":  # one package of 64 cores
            assert {(block["siblings"], block["cpu cores"]) for block in shown} == {(str(count), str(count))}


def test_the_cpus_of_arm64_are_described_as_the_kernel_does(recorded):
    machine = recorded("v2-arm64")
    own = blocks(machine.own("proc/cpuinfo"))
    assert blocks(machine.render("proc/cpuinfo", QUOTA)) == {cpu: own[cpu] for cpu in (1, 3)}
    assert own[1]["CPU architecture"] == "8"


def test_the_text_of_cpuinfo_is_laid_out_as_the_kernels(machine):
    """Where all CPUs are visible, nothing differs."""
    shown = machine.render("proc/cpuinfo", CPUSET)
    if len(CPUS[machine.name][1]) == machine.own("proc/cpuinfo").count(b"processor"):
        assert shown == machine.own("proc/cpuinfo")
    assert shown.endswith(b"\n\n")
    assert b"\n\n\n" not in shown


def test_hyperthreads_count_as_siblings_and_their_cores_once(tmp_path, made, cgroup, container_in):
    block = (
        "processor\t: {cpu}\nvendor_id\t: Genuine\nphysical id\t: {package}\nsiblings\t: 4\n"
        "core id\t\t: {core}\ncpu cores\t: 2\nflags\t\t: fpu\n\n"
    )
    wired = [(cpu, cpu // 4, cpu // 2 % 2) for cpu in range(8)]  # 2 packages of 2 cores of 2 threads
    cpuinfo = "".join(block.format(cpu=cpu, package=package, core=core) for cpu, package, core in wired)
    root = made({"proc/cpuinfo": cpuinfo, f"{sys_cpu.TREE.name}/online": "0-7\n"})
    cpuset = SimpleNamespace(cpus=lambda: b"1-3,6\n")
    shown = blocks(VIEWS["proc/cpuinfo"](container_in(cgroup(cpuset=cpuset)), Host(str(root)), CPUSET))
    counted = {cpu: (fields["physical id"], fields["siblings"], fields["cpu cores"]) for cpu, fields in shown.items()}
    assert counted == {1: ("0", "3", "2"), 2: ("0", "3", "2"), 3: ("0", "3", "2"), 6: ("1", "1", "1")}


def test_cpuinfo_of_an_architecture_without_topology_is_only_cut_down(made, cgroup, container_in):
    cpuinfo = "".join(f"processor\t: {cpu}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n\n" for cpu in range(4))
    root = made({"proc/cpuinfo": cpuinfo, f"{sys_cpu.TREE.name}/online": "0-3\n"})
    cpu = SimpleNamespace(quota=lambda: Quota(1.2))
    shown = VIEWS["proc/cpuinfo"](container_in(cgroup(cpu=cpu)), Host(str(root)), QUOTA)
    assert shown == cpuinfo[: len(cpuinfo) // 2].encode()


BLOCK = "BogoMIPS\t: 108.00\nfeatures\t: fp asimd\n"

# What kernels say of the machine before their CPUs, of each CPU, and after them.
AROUND = {
    "arm": ("", f"processor\t: {{cpu}}\n{BLOCK}\n", "Revision\t: c03111\nSerial\t\t: 1\nModel\t\t: Raspberry Pi 4\n"),
    "ppc64": ("", f"processor\t: {{cpu}}\n{BLOCK}\n", "timebase\t: 512000000\nplatform\t: pSeries\nMMU\t\t: Radix\n"),
    "mips": ("system type\t\t: UBNT_E100\nmachine\t\t\t: Unknown\n", f"processor\t\t: {{cpu}}\n{BLOCK}\n", ""),
    "loongarch": ("system type\t\t: generic-loongson-machine\n\n", f"processor\t\t: {{cpu}}\n{BLOCK}\n", ""),
    "s390x": ("vendor_id       : IBM/S390\nfeatures\t: zarch\n", f"\ncpu number      : {{cpu}}\n{BLOCK}", ""),
}


@pytest.mark.parametrize("measures", [False, True])
@pytest.mark.parametrize("cpus", ["0", "0-1", "1-2", "2", "0-2"])
@pytest.mark.parametrize("name", AROUND)
def test_what_cpuinfo_says_of_the_machine_stays_once(name, cpus, measures, made, cgroup, container_in):
    head, block, tail = AROUND[name]

    def text(numbers) -> str:
        return head + "".join(block.format(cpu=cpu) for cpu in numbers) + tail

    tree = {"proc/cpuinfo": text(range(3)), f"{sys_cpu.TREE.name}/online": "0-2\n"}
    if measures:
        tree[f"{sys_cpu.TREE.name}/cpu0/cpufreq/scaling_driver"] = "cppc_cpufreq\n"
    cpuset = SimpleNamespace(cpus=lambda: f"{cpus}\n".encode())
    shown = VIEWS["proc/cpuinfo"](container_in(cgroup(cpuset=cpuset)), Host(str(made(tree))), CPUSET)
    assert shown.decode() == text(cpu_list.parse(cpus.encode()))


def test_the_summary_of_s390x_is_of_the_visible_cpus(made, cgroup, container_in):
    def text(*cpus: int) -> str:
        lines = "".join(f"processor {cpu}: version = FF,  identification = 1E41E8,  machine = 3906\n" for cpu in cpus)
        return (
            f"vendor_id       : IBM/S390\n# processors    : {len(cpus)}\nbogomips per cpu: 3033.00\n"
            + f"max thread id   : 0\ncache0          : level=1 type=Data\n{lines}"
            + "".join(f"\ncpu number      : {cpu}\ncpu MHz static  : 5208\n" for cpu in cpus)
        )

    root = made({"proc/cpuinfo": text(0, 1, 2, 10), f"{sys_cpu.TREE.name}/online": "0-2,10\n"})
    cpuset = SimpleNamespace(cpus=lambda: b"1,10\n")
    shown = VIEWS["proc/cpuinfo"](container_in(cgroup(cpuset=cpuset)), Host(str(root)), CPUSET)
    assert shown.decode() == text(1, 10)


def test_a_cpu_that_goes_offline_in_the_middle_is_left_out_and_the_others_keep_their_numbers(
    made, cgroup, container_in
):
    cpuinfo = "".join(f"processor\t: {cpu}\nmodel name\t: number {cpu}\n\n" for cpu in (0, 1, 3))
    root = made({"proc/cpuinfo": cpuinfo, f"{sys_cpu.TREE.name}/online": "0-1,3\n"})
    cpuset = SimpleNamespace(cpus=lambda: b"1-3\n")
    shown = blocks(VIEWS["proc/cpuinfo"](container_in(cgroup(cpuset=cpuset)), Host(str(root)), CPUSET))
    assert {cpu: fields["model name"] for cpu, fields in shown.items()} == {1: "number 1", 3: "number 3"}


def test_cpuinfo_of_cpus_that_the_machine_does_not_have_is_an_error_and_no_empty_file(machine, cgroup, container_in):
    cpuset = SimpleNamespace(cpus=lambda: b"900-901\n")
    with pytest.raises(ValueError, match="none of the CPUs"):
        VIEWS["proc/cpuinfo"](container_in(cgroup(cpuset=cpuset)), machine.host, CPUSET)


@pytest.fixture
def read_of_cpuinfo(monkeypatch):
    """How many bytes of /proc/cpuinfo were read, one number for each read."""
    sizes = []
    real = os.pread

    def pread(fd, size, offset):
        text = real(fd, size, offset)
        if os.readlink(f"/proc/self/fd/{fd}").endswith("/proc/cpuinfo"):
            sizes.append(len(text))
        return text

    monkeypatch.setattr("lxcfs_py.linux.kernel_files.os.pread", pread)
    return sizes


def test_of_a_large_machine_that_measures_frequencies_only_the_needed_part_of_cpuinfo_is_read(
    copied, tmp_path, read_of_cpuinfo, monkeypatch
):
    """And at most once a second."""
    now = [1000.0]
    monkeypatch.setattr("lxcfs_py.linux.host.time.monotonic", lambda: now[0])
    machine = copied("v2-64cpu", tmp_path)
    own = machine.root / "proc/cpuinfo"
    own.write_bytes(own.read_bytes().replace(b" apic ", b" apic aperfmperf "))
    host = Host(str(machine.root))
    del read_of_cpuinfo[:]
    shown = VIEWS["proc/cpuinfo"](machine.container, host, QUOTA)
    assert numbers_in(shown) == [2, 3, 4]
    assert 0 < sum(read_of_cpuinfo) < 6 * own.stat().st_size // 64
    own.write_bytes(own.read_bytes().replace(b"cpu MHz\t\t: 2", b"cpu MHz\t\t: 3"))
    assert VIEWS["proc/cpuinfo"](machine.container, host, QUOTA) == shown
    assert len(numbers_in(VIEWS["proc/cpuinfo"](machine.container, host, CPUSET))) == 8, "more CPUs are read at once"
    now[0] += 1.1
    assert VIEWS["proc/cpuinfo"](machine.container, host, QUOTA) != shown


def test_cpuinfo_of_a_machine_that_measures_no_frequencies_is_read_when_other_cpus_come_online(
    copied, tmp_path, read_of_cpuinfo
):
    machine = copied("v2-64cpu", tmp_path)
    assert len(numbers_in(machine.render("proc/cpuinfo", CPUSET))) == 8
    del read_of_cpuinfo[:]
    assert len(numbers_in(machine.render("proc/cpuinfo", CPUSET))) == 8
    assert read_of_cpuinfo == []
    own = machine.root / "proc/cpuinfo"
    text = own.read_bytes()
    own.write_bytes(text[: text.index(b"processor\t: 5\n")])
    (machine.root / sys_cpu.TREE.name / "online").write_text("0-4\n")
    assert numbers_in(machine.render("proc/cpuinfo", CPUSET)) == [2, 3, 4]
    assert sum(read_of_cpuinfo) == own.stat().st_size


# stat and uptime


def test_stat_has_a_line_for_each_visible_cpu_and_their_sum(fresh):
    count, cpuset = CPUS[fresh.name]
    for config, numbers in ((QUOTA, cpuset[:count]), (CPUSET, cpuset)):
        total, *lines = cpu_lines(fresh.render("proc/stat", config)).items()
        assert [name for name, _ in lines] == [f"cpu{number}" for number in numbers]
        assert total == ("cpu", [sum(column) for column in zip(*(line for _, line in lines))])
        assert all(len(line) == 10 for _, line in (total, *lines))


def test_stat_has_the_lines_of_the_kernel_in_its_order(machine):
    def names(text: bytes) -> list[str]:
        return [line.split()[0] for line in text.decode().splitlines() if not re.match(r"cpu\d", line)]

    shown, own = machine.render("proc/stat"), machine.own("proc/stat")
    assert names(shown) == names(own)
    for line in shown.decode().splitlines():
        (like,) = (
            (other for other in own.decode().splitlines() if other.split()[0] == line.split()[0])
            if (not re.match(r"cpu\d", line))
            else (line,)
        )
        if not line.startswith("intr"):  # each interrupt's own counter is left out
            assert len(line.split()) == len(like.split())
    assert shown.startswith(b"cpu  ")


def test_stat_counts_what_the_container_used(fresh):
    times = cpu_lines(fresh.render("proc/stat"))
    user, nice, system, _, *others = times["cpu"]
    assert not nice  # which Linux counts by cgroup since 6.12
    assert not any(others)
    # 1.5 s of user time and 1 s of system time, on top of which comes what starting an interpreter takes.
    assert 1.5 * TICKS <= user + 2 < 8 * TICKS
    assert 1.0 * TICKS <= system + 2 < 8 * TICKS
    if fresh.name.startswith(("v1", "hybrid")):
        usage = [line.split() for line in fresh.cgroup("cpuacct", "cpuacct.usage_all").splitlines()[1:]]
        for cpu, user, system in usage:
            assert times[f"cpu{cpu}"][:3] == [int(user) // NS_PER_TICK, 0, int(system) // NS_PER_TICK]
        assert times["cpu0"][0] > times["cpu1"][0]  # the user time was spent on the first CPU
        assert times["cpu0"][2] < times["cpu1"][2]  # and the system time on the second
    else:
        usage = dict(line.split() for line in fresh.cgroup("", "cpu.stat").splitlines())
        count = CPUS[fresh.name][0]
        for cpu in CPUS[fresh.name][1][:count]:
            assert times[f"cpu{cpu}"][0] == int(usage["user_usec"]) * 1000 // count // NS_PER_TICK
            assert times[f"cpu{cpu}"][2] == int(usage["system_usec"]) * 1000 // count // NS_PER_TICK


QUOTAS = {
    "v1-2cpu": 1.5,
    "v1-2cpu-swap": 1.5,
    "hybrid": 1.5,
    "v2-2cpu-noswap-nopsi": 0.5,
    "v2-64cpu": 2.5,
    "v2-arm64": 1.5,
}


def test_a_container_has_the_time_that_its_quota_allows_or_that_its_cpus_have(recorded, machine):
    """What it used before it was 100 % busy for the first time counts in full."""
    for config, cpus in ((QUOTA, QUOTAS[machine.name]), (CPUSET, len(CPUS[machine.name][1]))):
        fresh = recorded(machine.name)
        age = (fresh.host.clock - fresh.container.start) / NS_PER_TICK
        user, nice, system, idle, *_ = cpu_lines(fresh.render("proc/stat", config))["cpu"]
        used = user + nice + system
        assert used + idle == pytest.approx(max(age * cpus, used), abs=4 * 8)


def test_boot_time_is_the_machines_from_which_the_kernel_counts_start_times(machine):
    assert b"\nbtime %d\n" % machine.host.btime in machine.render("proc/stat")


def test_in_a_time_namespace_boot_time_and_uptime_are_the_kernels_there(fresh):
    """As with `unshare --time --boottime -SECONDS`."""
    fresh.host = fresh.host.with_clock(-7_000_000_000)
    assert b"\nbtime %d\n" % (fresh.host.btime + 7) in fresh.render("proc/stat")
    shown = float(fresh.render("proc/uptime").split()[0])
    assert shown == pytest.approx(fresh.host.clock / 1e9 - 7, abs=0.01)


def test_uptime_is_the_machines_where_the_configuration_says_so(fresh):
    shown, idle = map(float, fresh.render("proc/uptime", Config(uptime=Uptime(source="host"))).split())
    assert shown == pytest.approx(fresh.host.clock / 1e9, abs=0.01)
    assert idle * TICKS == pytest.approx(cpu_lines(fresh.render("proc/stat"))["cpu"][3])


def test_tasks_are_the_containers_and_the_reader_runs(machine):
    """Three processes, asleep: one of them in a cgroup below."""
    assert machine.container.states() == (0, 0, 3)
    text = machine.render("proc/stat")
    assert b"\nprocs_running 1\nprocs_blocked 0\n" in text
    pids = machine.name != "v2-2cpu-noswap-nopsi"  # where the controller is not enabled
    assert b"\nprocesses %d\n" % (int(machine.cgroup("pids", "pids.peak")) if pids else 0) in text


def test_running_and_blocked_tasks_are_told_apart(copied, tmp_path):
    for name in ("v1-2cpu", "v2-64cpu"):
        machine = copied(name, tmp_path)
        boxed = [file.parent for file in machine.root.glob("proc/[0-9]*/cgroup") if b"box" in file.read_bytes()]
        inside = sorted(set(boxed) - {machine.init})
        for path, state in zip(inside, "RD"):
            stat = path / "stat"
            # A process may call itself anything.
            stat.write_text(re.sub(r"\(.*\) S", f"(a) S 1 (b) {state}", stat.read_text()))
        assert machine.container.states() == (1, 1, 3)
        text = machine.render("proc/stat")
        assert b"\nprocs_running 2\nprocs_blocked 1\n" in text  # and the reader


def test_uptime_is_the_age_of_init_and_the_idle_time_of_its_cpus(fresh):
    shown, idle = map(float, fresh.render("proc/uptime").split())
    age = (fresh.host.clock - fresh.container.start) / 1e9
    assert shown == pytest.approx(age, abs=0.01)
    assert 1 < age < 30  # it was recorded when it had done its work
    assert idle * TICKS == pytest.approx(cpu_lines(fresh.render("proc/stat"))["cpu"][3])
    assert re.fullmatch(rb"\d+\.\d\d \d+\.\d\d\n", fresh.render("proc/uptime"))


# loadavg


def test_loadavg_is_the_containers(fresh):
    fresh.container.last_pid = 31
    assert fresh.render("proc/loadavg") == b"0.00 0.00 0.00 1/3 31\n"  # whoever reads it runs
    fresh.container.load.averages = (0.123, 4.5, 678.999)
    assert fresh.render("proc/loadavg") == b"0.12 4.50 679.00 1/3 31\n"
    assert len(fresh.own("proc/loadavg").split()) == 5


def test_loadavg_that_is_not_enabled_is_the_machines(machine):
    assert machine.render("proc/loadavg", Config(loadavg=Loadavg(enabled=False))) == machine.own("proc/loadavg")


# diskstats


def rows(text: bytes) -> dict[str, list[int]]:
    return {
        name: list(map(int, figures)) for _, _, name, *figures in (line.split() for line in text.decode().splitlines())
    }


def test_diskstats_has_the_machines_devices_in_its_order(machine):
    shown, own = machine.render("proc/diskstats"), machine.own("proc/diskstats")
    assert list(rows(shown)) == list(rows(own))
    assert [len(line.split()) for line in shown.splitlines()] == [len(line.split()) for line in own.splitlines()]
    assert [line[:13] for line in shown.splitlines()] == [line[:13] for line in own.splitlines()]
    assert shown.endswith(b"\n")


def test_diskstats_counts_the_containers_own_io(machine):
    disk, read, written = DISK[machine.name]
    table = rows(machine.render("proc/diskstats"))
    reads, _, sectors_read, _, writes, _, sectors_written, *others = table.pop(disk)
    assert read <= sectors_read * 512 / 2**20 < read + 1
    assert written <= sectors_written * 512 / 2**20 <= written + 1
    assert bool(reads) == bool(read)
    assert bool(writes) == bool(written)
    assert not any(others)
    assert not any(map(any, table.values()))  # the machine's other disks are none of its business


@pytest.mark.parametrize(
    ("columns", "counts"),
    [
        (14, "3 0 2 0 5 0 16 0 0 0 0"),
        (18, "3 0 2 0 5 0 16 0 0 0 0 7 0 8 0"),
        (20, "3 0 2 0 5 0 16 0 0 0 0 7 0 8 0 0 0"),
    ],
)
def test_diskstats_has_the_columns_of_the_running_kernel(columns, counts, cgroup, container_in):
    own = "".join(f" 254 {16 * n:7} vd{disk} " + " ".join(["9"] * (columns - 3)) + "\n" for n, disk in enumerate("abc"))
    host = SimpleNamespace(text=lambda name: own.encode())
    io = {b"254:16": {b"rios": 3, b"rbytes": 1024, b"wios": 5, b"wbytes": 8192, b"dios": 7, b"dbytes": 4096}}
    container = container_in(cgroup(io=SimpleNamespace(stat=lambda: io)))
    zeros = " ".join(["0"] * (columns - 3))
    assert diskstats.render(container, host, Config()).decode() == (
        f" 254       0 vda {zeros}\n 254      16 vdb {counts}\n 254      32 vdc {zeros}\n"
    )


def test_without_an_io_controller_the_disks_have_done_nothing(machine, cgroup, container_in):
    shown = diskstats.render(container_in(cgroup()), machine.host, Config())
    assert not any(map(any, rows(shown).values()))
    assert list(rows(shown)) == list(rows(machine.own("proc/diskstats")))


# slabinfo and pressure


def test_slabinfo_is_the_header(machine):
    assert machine.render("proc/slabinfo") == b"".join(machine.own("proc/slabinfo").splitlines(keepends=True)[:2])


def test_slabinfo_of_a_kernel_that_counts_by_cgroup_is_the_containers(copied, tmp_path):
    machine = copied("v1-2cpu", tmp_path)
    (file,) = machine.root.glob("sys/fs/cgroup/memory/lxcfs-rec/box/memory.kmem.slabinfo")
    file.write_bytes(b"slabinfo - version: 2.1\n# name\ndentry 21 21\n")
    assert machine.render("proc/slabinfo") == file.read_bytes()


def test_slabs_that_the_kernel_gives_page_by_page_are_all_there(copied, tmp_path, monkeypatch):
    machine = copied("v1-2cpu", tmp_path)
    (file,) = machine.root.glob("sys/fs/cgroup/memory/lxcfs-rec/box/memory.kmem.slabinfo")
    file.write_bytes(b"slabinfo - version: 2.1\n# name\n" + b"".join(b"slab-%03d 21 21\n" % n for n in range(900)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, most, offset: pread(fd, min(most, 4096), offset))
    assert machine.render("proc/slabinfo") == file.read_bytes()


@pytest.mark.parametrize("resource", ["cpu", "io", "memory"])
def test_pressure_is_the_cgroups_own_or_zeros(machine, resource):
    zeros = b"".join(kind + b" avg10=0.00 avg60=0.00 avg300=0.00 total=0\n" for kind in (b"some", b"full"))
    shown = machine.render(f"proc/pressure/{resource}")
    # Of cgroup v1 alone, and of a kernel without PSI, there are no such figures.
    if machine.name in ("v1-2cpu-swap", "v2-2cpu-noswap-nopsi"):
        assert shown == zeros
    else:
        assert shown == machine.cgroup("", f"{resource}.pressure").encode()
        layout = re.sub(rb"=[\d.]+", b"=", machine.own(f"proc/pressure/{resource}"))
        assert re.sub(rb"=[\d.]+", b"=", shown) == layout
    if machine.name == "v2-64cpu" and resource != "memory":
        assert shown != zeros


def test_pressure_that_is_switched_off_for_the_cgroup_is_zeros(cgroup, container_in):
    def read(resource):
        raise OSError(95, "Operation not supported")

    container = container_in(cgroup(pressure=SimpleNamespace(read=read)))
    assert pressure.cpu(container, None, Config()).startswith(b"some avg10=0.00 ")


# CPU time that nobody counts


@pytest.mark.parametrize("of", [lambda files: None, lambda files: v1.Cpu((files({}),), ())])
def test_where_nobody_counts_cpu_time_it_is_the_machines_on_the_visible_cpus(
    of, files, cgroup, container_in, made, monkeypatch
):
    cpus = (
        "cpu  99 99 99 99 99 99 99 99 0 0",
        "cpu0 9 9 9 9 9 9 9 9 0 0",
        "cpu1 1 2 3 4 50 60 700 8 0 0",
        "cpu2 5 6 7 8",
    )
    lines = "".join(f"{line}\n" for line in cpus)
    tree = {"proc/stat": f"{lines}intr 5 5\nbtime 1000\n", "proc/cpuinfo": "processor\t: 0\n\n"}
    host = Host(str(made({**tree, "sys/devices/system/cpu/online": "0-3\n"})))
    container = container_in(cgroup(cpu=of(files), cpuset=v1.Cpuset((files({"cpuset.cpus": "1-3"}),))))
    times = [line.split() for line in VIEWS["proc/stat"](container, host, Config()).decode().splitlines()[:4]]
    assert times == [
        ["cpu", "6", "8", "770", "62", *"000000"],
        ["cpu1", "1", "2", "763", "54", *"000000"],
        ["cpu2", "5", "6", "7", "8", *"000000"],
        ["cpu3", "0", "0", "0", "0", *"000000"],
    ]
    for age, idle in ((10**9, b"0.62"), (10**8, b"0.30")):  # of three CPUs, no more than there was time
        now = container.start + age
        monkeypatch.setattr(Host, "now", lambda host, now=now: now)
        assert VIEWS["proc/uptime"](container, host, Config()).split()[1] == idle


# Visible CPUs


@given(
    listed=st.none() | st.sets(st.integers(0, 300), min_size=1).map(lambda found: tuple(sorted(found))),
    quota=st.none() | st.builds(Quota, st.floats(0, 400)),
)
def test_all_views_agree_on_the_visible_cpus_whatever_the_limits(listed, quota, cgroup):
    host = SimpleNamespace(online=lambda: tuple(range(64)))
    limits = cgroup(
        cpuset=SimpleNamespace(cpus=lambda: cpu_list.render(listed) if listed else None),
        cpu=SimpleNamespace(quota=lambda: quota),
    )
    allowed = listed or tuple(range(64))
    in_cpuset, in_quota = (visible_cpus.visible(limits, host, Cpu(mode)) for mode in ("cpuset", "quota"))
    assert in_cpuset == (allowed, None, True)
    if quota is None or quota.cpus >= len(allowed):
        assert in_quota == in_cpuset
    else:
        assert in_quota == (allowed[: len(in_quota.cpus)], quota, len(in_quota.cpus) == len(allowed))
        assert quota.cpus <= len(in_quota.cpus) < max(quota.cpus, 0.5) + 1  # of 0, which no kernel has, there is 1 too


@given(st.sets(st.integers(0, 5000)).map(lambda found: tuple(sorted(found))))
def test_a_list_of_cpus_is_parsed_as_it_was_written(numbers):
    text = cpu_list.render(numbers)
    assert cpu_list.parse(text) == numbers
    assert re.fullmatch(rb"(\d+(-\d+)?(,\d+(-\d+)?)*)?\n", text)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), b"\n"), ((0,), b"0\n"), ((0, 1, 2, 3, 8), b"0-3,8\n"), ((1, 3, 5, 6), b"1,3,5-6\n"), ((7, 8), b"7-8\n")],
)
def test_lists_of_cpus_are_written_as_the_kernel_does(numbers, text):
    assert cpu_list.render(numbers) == text


@given(st.binary() | st.text("0123456789-,\n ", max_size=30).map(str.encode))
def test_any_bytes_as_a_list_of_cpus_are_cpus_or_a_value_error(text):
    try:
        found = cpu_list.parse(text)
    except ValueError:
        return
    assert len(found) <= 65536
    assert all(cpu >= 0 for cpu in found)


@pytest.mark.parametrize(
    "text", [b"0-99999999999999999999", b"99999999999", b"0-70000", b"0-40000,0-40000", b"x", b"-1"]
)
def test_lists_that_no_kernel_writes_are_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - int() says what it likes
        cpu_list.parse(text)


# The programs that people run


def test_psutil_reads_what_is_rendered(machine, rendered, monkeypatch):
    def unknown(name):
        raise ValueError(name)

    count = CPUS[machine.name][0]
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "PROCFS_PATH", str(rendered / "proc"))
        total, *lines = cpu_lines((rendered / "proc/stat").read_bytes()).values()
        for times, line in zip((psutil.cpu_times(), *psutil.cpu_times(percpu=True)), (total, *lines)):
            assert [round(seconds * TICKS) for seconds in times] == line
        assert len(psutil.cpu_times(percpu=True)) == count
        assert psutil.cpu_stats()[:3] == (0, 0, 0)
        btime = int(re.search(rb"^btime (\d+)$", (rendered / "proc/stat").read_bytes(), re.MULTILINE)[1])
        assert psutil.boot_time() == btime
        disk, read, written = DISK[machine.name]
        disks = psutil.disk_io_counters(perdisk=True, nowrap=False)
        assert list(disks) == list(rows(machine.own("proc/diskstats")))
        assert read <= disks[disk].read_bytes / 2**20 < read + 1
        assert written <= disks[disk].write_bytes / 2**20 <= written + 1
        # Where it would ask the C library or /sys, which have the machine's own figures, it is made to read /proc.
        patch.setattr("psutil._pslinux.os.sysconf", unknown)
        patch.setattr("psutil._pslinux.glob.glob", lambda path: [])
        assert psutil.cpu_count() == count
        cores = {
            (block.get("physical id"), block.get("core id"))
            for block in blocks((rendered / "proc/cpuinfo").read_bytes()).values()
        }
        assert psutil.cpu_count(logical=False) == (None if machine.name == "v2-arm64" else len(cores))


def test_every_file_is_there_and_none_is_empty(machine):
    assert set(NAMES) == {*VIEWS, *TREES}
    for name in VIEWS:
        assert machine.render(name)
        assert machine.render(name).endswith(b"\n")
