"""The machine's own files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lxcfs_py.linux import host as host_module
from lxcfs_py.linux.host import NS_PER_TICK, TICKS, Host
from lxcfs_py.views import VIEWS, sys_cpu


def test_this_machines_files_are_read_as_they_are():
    host = Host()
    assert host.text("proc/cpuinfo").startswith(b"processor\t: 0\n")
    assert host.text("proc/swaps") == Path("/proc/swaps").read_bytes()
    assert host.meminfo_layout.split()[0] == b"MemTotal:"
    assert len(host.online()) == os.sysconf("SC_NPROCESSORS_ONLN")
    assert host.directory(sys_cpu.TREE.name).text("online") == Path("/", sys_cpu.TREE.name, "online").read_bytes()
    assert set(host.directory(sys_cpu.TREE.name).names("")) == set(os.listdir(Path("/", sys_cpu.TREE.name)))


def test_the_time_of_boot_is_the_machines_own_whatever_passes_between_two_looks_at_clocks(monkeypatch):
    host = Host()
    btime = int(Path("/proc/stat").read_text().partition("\nbtime ")[2].split()[0])
    clock = time.clock_gettime_ns
    for delay in (0.0, 0.3, 1.1):  # preempted
        monkeypatch.setattr(time, "clock_gettime_ns", lambda which, delay=delay: time.sleep(delay) or clock(which))
        assert host.booted() // 10**9 == btime


def test_the_time_of_boot_is_another_one_when_the_clock_is_set(copied, tmp_path, monkeypatch):
    machine = copied("v1-2cpu", tmp_path)
    host = Host(str(machine.root))
    assert host.booted() // 10**9 == machine.host.btime
    stat = machine.root / "proc/stat"
    with stat.open("r+") as file:
        text = file.read().replace(f"btime {machine.host.btime}", f"btime {machine.host.btime + 7}")
        file.seek(0)
        file.write(text)
    assert host.booted() // 10**9 == machine.host.btime
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 7 * 10**9)
    assert host.booted() // 10**9 == machine.host.btime + 7


def test_what_comes_to_cover_a_file_later_is_never_read(copied, tmp_path):
    """A container's view may be mounted there one day: this program would wait for itself."""
    machine = copied("v1-2cpu", tmp_path)
    before = {name: machine.host.text(name) for name in VIEWS if machine.has(name)}
    for name in before:
        (tmp_path / "other").write_bytes(b"covered\n")
        (tmp_path / "other").replace(machine.root / name)
    assert {name: machine.host.text(name) for name in before} == before
    assert machine.host.online() == (0, 1)


def test_another_place_can_stand_in_for_proc(made):
    root = made({"elsewhere/cpuinfo": "processor\t: 0\n\n", "elsewhere/meminfo": "MemTotal: 1 kB\n"})
    (root / sys_cpu.TREE.name).mkdir(parents=True)
    assert Host(str(root), proc=str(root / "elsewhere")).text("proc/meminfo") == b"MemTotal: 1 kB\n"


def test_a_kernel_without_some_files_has_none(recorded):
    host = recorded("v2-2cpu-noswap-nopsi").host
    with pytest.raises(FileNotFoundError):
        host.text("proc/pressure/cpu")


@pytest.mark.parametrize("flags", ["fpu apic", "fpu aperfmperf"])  # without and with changing frequencies
def test_blocks_of_cpuinfo_are_found_by_number_where_some_cpus_are_offline(made, flags):
    numbers = [0, 1, 5, 40]
    text = "".join(f"processor\t: {n}\nflags\t\t: {flags}\nmodel\t\t: {'x' * n}\n\n" for n in numbers)
    root = made({"proc/cpuinfo": text, f"{sys_cpu.TREE.name}/online": "0-1,5,40\n"})
    host = Host(str(root))
    assert sorted(host.cpuinfo(41).blocks) == numbers
    assert {0, 1} <= set(host.cpuinfo(2).blocks)
    assert sorted(host.cpuinfo(4).blocks) == numbers  # there is none with number 3: all were looked at
    assert host.cpuinfo(6).blocks[5] == f"processor\t: 5\nflags\t\t: {flags}\nmodel\t\t: xxxxx".encode()
    assert host.online() == (0, 1, 5, 40)


def test_vmstat_which_the_kernel_gives_by_the_page_is_read_whole(made, monkeypatch):
    names = [f"numa_kind_of_event_{number}" for number in range(300)]
    text = "".join(f"{name} 0\n" for name in names)
    root = made({"proc/cpuinfo": "processor\t: 0\n\n", "proc/vmstat": text, f"{sys_cpu.TREE.name}/online": "0\n"})
    pread = os.pread
    monkeypatch.setattr("lxcfs_py.linux.kernel_files.os.pread", lambda fd, size, at: pread(fd, min(size, 4096), at))
    host = Host(str(root))
    assert host.vmstat_layout == tuple(names)
    assert host.text("proc/vmstat") == text.encode()


def test_the_clock_counts_from_boot_as_start_times_of_processes_do():
    own = int(Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[19]) * NS_PER_TICK
    assert own <= Host.now() < own + 24 * 3600 * 10**9
    assert TICKS * NS_PER_TICK == 10**9


def test_of_no_more_clocks_than_the_bound_a_machine_is_kept(monkeypatch):
    """Each time namespace may have one, and any user may make those."""
    monkeypatch.setattr(host_module, "_MAX_CLOCKS", 3)
    host = Host()
    for offset in range(1, 20):
        assert host.with_clock(offset).boottime_offset == offset
        assert host.with_clock(offset) is host.with_clock(offset)
        assert len(host._with_clock) <= 3


def test_memory_is_what_proc_meminfo_says():
    host = Host()
    memory = host.memory()
    text = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    sizes = {name: int(value.split()[0]) << 10 for name, value in text.items()}
    assert (memory.total, memory.swap_total) == (sizes["MemTotal"], sizes["SwapTotal"])
    assert memory.free == pytest.approx(sizes["MemFree"], rel=0.1)
    assert memory.swap_free == pytest.approx(sizes["SwapFree"], rel=0.1)
    assert host.available() == pytest.approx(sizes["MemAvailable"], rel=0.1)


def test_directories_of_sysfs_are_read_where_nothing_covers_them(made):
    tree = {"proc/cpuinfo": "processor\t: 0\n\n", "sys/devices/system/cpu/online": "covered\n"}
    root = made({**tree, "bare/devices/system/cpu/online": "0-3\n"})
    host = Host(proc=str(root / "proc"), sys=str(root / "bare"))
    assert host.directory("sys/devices/system/cpu").text("online") == b"0-3\n"
    assert host.devices.text("system/cpu/online") == b"0-3\n"
