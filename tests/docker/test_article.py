"""The article's own commands: `docker run -m 256m` with six files mounted, and what `free`, `grep` and `uptime` say."""

import os
import re
from pathlib import Path

import pytest

MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
SPIN = "timeout 2 sh -c 'while :; do :; done' || true"


def free(text):
    """`free -b` -> {"Mem": {"total": bytes, …}, "Swap": {…}}."""
    header, *lines = text.splitlines()
    return {line.split(":")[0]: dict(zip(header.split(), map(int, line.split()[1:]))) for line in lines}


def written(diskstats):
    """Bytes written to each block device: field 10 of its line counts sectors of 512 bytes."""
    return {line.split()[2]: int(line.split()[9]) * 512 for line in diskstats.splitlines()}


def test_free_says_256_mib_in_a_container_of_256_mib(run):
    printed = run("-m", "256m", command="free -h; free -b")
    assert re.search(r"^Mem: +256Mi ", printed, re.MULTILINE), printed
    memory = free(printed.split("\n", 3)[3])["Mem"]
    assert memory["total"] == 256 * MIB
    assert memory["used"] < 32 * MIB  # a shell and free(1)
    assert 224 * MIB < memory["free"] <= memory["available"] <= memory["total"]


@pytest.mark.parametrize("cgroup_namespace", ["host", "private"])
def test_the_kind_of_cgroup_namespace_makes_no_difference(run, cgroup_namespace):
    printed = run("-m", "256m", "--cgroupns", cgroup_namespace, command="free -b")
    assert free(printed)["Mem"]["total"] == 256 * MIB


def test_an_unprivileged_user_with_a_read_only_root_sees_the_limit(run):
    printed = run("-m", "256m", "--user", "65534", "--read-only", command="free -b")
    assert free(printed)["Mem"]["total"] == 256 * MIB


def test_top_says_256_mib(run):
    assert re.search(r"^MiB Mem : +256\.0 total", run("-m", "256m", command="top -b -n 1"), re.MULTILINE)


def test_memory_that_the_container_fills_is_used_and_shared(run):
    before, after = run(
        "-m", "256m", command="free -b; echo /; dd if=/dev/zero of=/dev/shm/file bs=1M count=50; free -b"
    ).split("/\n")
    grown = {column: free(after)["Mem"][column] - free(before)["Mem"][column] for column in ("used", "shared", "free")}
    assert 45 * MIB < grown["used"] < 60 * MIB
    assert 45 * MIB < grown["shared"] < 60 * MIB
    assert -60 * MIB < grown["free"] < -45 * MIB


def test_swap_is_what_docker_allows_and_the_machine_has(run):
    with open("/proc/meminfo") as meminfo:
        machine = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("SwapTotal:"))
    expected = min(machine, 256 * MIB)
    printed, swaps = run("-m", "256m", "--memory-swap", "512m", command="free -b; echo /; cat /proc/swaps").split("/\n")
    assert free(printed)["Swap"]["total"] == expected
    header, *lines = swaps.splitlines()
    assert header.split() == ["Filename", "Type", "Size", "Used", "Priority"]
    assert sum(int(line.split()[2]) * 1024 for line in lines) == expected


@pytest.mark.parametrize("cpus", [1, 2])
def test_cpuinfo_has_as_many_processors_as_cpus_allows(run, cpus, two_cpus):
    assert run("-m", "256m", "--cpus", str(cpus), command="grep -c processor /proc/cpuinfo") == f"{cpus}\n"


def test_cpuinfo_rounds_a_fraction_of_a_cpu_up(run, two_cpus):
    assert run("--cpus", "0.5", command="grep -c processor /proc/cpuinfo") == "1\n"
    assert run("--cpus", "1.5", command="grep -c processor /proc/cpuinfo") == "2\n"


def test_a_cpuset_of_one_cpu_shows_one_processor(run, two_cpus):
    printed = run("--cpuset-cpus", "1", command="grep -c processor /proc/cpuinfo; grep -c ^cpu[0-9] /proc/stat")
    assert printed == "1\n1\n"


def test_uptime_right_after_the_start_says_0_min(run):
    assert re.search(r" up 0 min, ", run(command="uptime"))


def booted() -> int:
    """When the kernel says that it was booted: start times of processes count from then."""
    found = re.search(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_stat_counts_what_the_container_used_since_it_started(run, two_cpus):
    printed = run("--cpus", "1", command=f"{SPIN}; cat /proc/uptime /proc/stat")
    age = float(printed.split()[0])
    stat = {line.split()[0]: [int(word) for word in line.split()[1:]] for line in printed.splitlines()[1:]}
    busy = sum(stat["cpu"]) - stat["cpu"][3]
    assert 0.5 * TICKS < busy < 4 * TICKS
    assert sum(stat["cpu"]) <= (age + 0.5) * TICKS  # one CPU, and all it did in its life
    assert "cpu0" in stat
    assert "cpu1" not in stat
    assert abs(stat["btime"][0] - booted()) <= 1
    assert stat["processes"][0] < 100


def test_diskstats_counts_the_containers_own_io_only(run, disk):
    """With a limit on the disk, as since Linux 6.10 cgroup v1 counts no I/O on a disk on which nobody ever set one."""
    directory, name = disk
    options = ("-v", f"{directory}:/disk", "--device-write-bps", f"/dev/{name}:1gb")
    write = "dd if=/dev/zero of=/disk/file bs=1M count=20 oflag=direct"
    printed = run(*options, command=f"cat /proc/diskstats; echo /; {write}; cat /proc/diskstats")
    before, after = map(written, printed.split("/\n"))
    assert set(before.values()) == {0}
    assert 20 * MIB <= after[name] < 24 * MIB
