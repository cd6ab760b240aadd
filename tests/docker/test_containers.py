"""Containers as they live: entered, several at once, changed, restarted, in the host's pid namespace; other files."""

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lxcfs_py.config import Config
from lxcfs_py.runtimes.bind_snippets import snippet

MIB = 1 << 20
TICKS = os.sysconf("SC_CLK_TCK")
TOTAL_AND_PROCESSORS = "grep MemTotal /proc/meminfo; grep -c processor /proc/cpuinfo"
SPIN = "timeout 2 sh -c 'while :; do :; done' || true"


def seen(mib, processors):
    """What TOTAL_AND_PROCESSORS prints where MIB of memory and PROCESSORS are visible."""
    return f"MemTotal: {mib * 1024:14} kB\n{processors}\n"


def test_docker_exec_sees_what_the_container_sees(start):
    container = start("-m", "256m", "--cpus", "1", command=f"{TOTAL_AND_PROCESSORS}; exec sleep infinity")
    assert container.run(TOTAL_AND_PROCESSORS) == seen(256, 1)
    assert container.docker("logs", container.id) == seen(256, 1)


def test_docker_exec_sees_the_age_of_the_container(start):
    container = start()
    time.sleep(3)
    assert 2.5 < float(container.run("cat /proc/uptime").split()[0]) < 30


def test_a_container_in_the_hosts_pid_namespace_sees_its_own_limits(run):
    assert run("--pid", "host", "-m", "256m", "--cpus", "1", command=TOTAL_AND_PROCESSORS) == seen(256, 1)


def test_a_container_in_anothers_pid_namespace_sees_its_own_limits_and_age(start, run):
    """As those of a Kubernetes pod with shareProcessNamespace do, where the first one is the pause container."""
    pause = start("-m", "64m")
    time.sleep(3)
    shared = ("--pid", f"container:{pause.id}")
    # The very first read, and what `docker exec` sees
    assert run(*shared, "-m", "256m", "--cpus", "1", command=TOTAL_AND_PROCESSORS) == seen(256, 1)
    container = start(*shared, "-m", "128m", "--cpus", "1")
    assert container.run(TOTAL_AND_PROCESSORS) == seen(128, 1)
    ages = [float(each.run("cat /proc/uptime").split()[0]) for each in (container, pause)]
    assert ages[0] < ages[1] - 2.5
    assert "MemTotal: " + f"{64 * 1024:14} kB" in pause.run("grep MemTotal /proc/meminfo")


def test_two_containers_at_once_see_each_its_own_limits(start, two_cpus):
    many = f"for i in $(seq 100); do {TOTAL_AND_PROCESSORS}; done | sort -ru"
    small, large = start("-m", "128m", "--cpus", "1"), start("-m", "384m", "--cpus", "2")
    with ThreadPoolExecutor() as pool:
        printed = list(pool.map(lambda container: container.run(many), (small, large)))
    assert printed == [seen(128, 1), seen(384, 2)]


def test_a_changed_limit_is_seen_at_the_next_read(start, two_cpus):
    container = start("-m", "256m", "--cpus", "2")
    assert container.run(TOTAL_AND_PROCESSORS) == seen(256, 2)
    container.docker("update", "--memory", "128m", "--memory-swap", "256m", "--cpus", "1", container.id)
    assert container.run(TOTAL_AND_PROCESSORS) == seen(128, 1)


def test_a_restarted_container_starts_from_zero_and_keeps_its_limits(start):
    container = start("-m", "256m", "--cpus", "1")
    container.run(SPIN)
    age, busy = age_and_busy(container)
    assert age > 2
    assert busy > 0.5
    container.docker("restart", "--time", "0", container.id)
    restarted_age, restarted_busy = age_and_busy(container)
    assert restarted_age < age
    assert restarted_busy < 0.5
    assert container.run(TOTAL_AND_PROCESSORS) == seen(256, 1)


def age_and_busy(container):
    """The container's age and the CPU time it used, in seconds, by its uptime and stat."""
    age, _, _, *ticks = container.run("cat /proc/uptime; head -n 1 /proc/stat").split()
    return float(age), (sum(map(int, ticks)) - int(ticks[3])) / TICKS


def test_loadavg_is_the_load_of_the_container_that_asks(start):
    files = ["proc/loadavg"]
    spin = "while :; do :; done"
    busy, idle = start(command=f"{spin} & {spin} & wait", files=files), start(files=files)
    deadline = time.monotonic() + 40
    while load(busy)[0] < 0.3:
        load(idle)  # loads are kept for those who ask
        assert time.monotonic() < deadline, f"two busy loops, and /proc/loadavg says {load(busy)}"
        time.sleep(1)
    average, tasks = load(idle)
    assert average < 0.2
    assert tasks < 10


def load(container):
    """The load of the last minute and how many tasks there are, by /proc/loadavg."""
    one, _, _, tasks, _ = container.run("cat /proc/loadavg").split()
    return float(one), int(tasks.split("/")[1])


def test_slabinfo_shows_no_more_than_fits_in_the_container(run):
    text = Path("/proc/slabinfo").read_text()
    assert slab_bytes(text) > 16 * MIB, "the machine's own slabs would fit in the container: this proves nothing"
    printed = run("-m", "16m", command="cat /proc/slabinfo", files=["proc/slabinfo"])
    assert printed.splitlines()[:2] == text.splitlines()[:2]
    assert slab_bytes(printed) <= 16 * MIB


def slab_bytes(slabinfo):
    """num_objs times objsize, over all caches."""
    return sum(int(line.split()[2]) * int(line.split()[3]) for line in slabinfo.splitlines()[2:])


def test_pressure_is_the_containers_own(run, views, require):
    """runc lets nothing be mounted below /proc/pressure, so the container has the views in another place."""
    require(Path("/proc/pressure").exists(), "a kernel that counts pressure (psi=1)")
    while stalled(machine := pressure(Path("/proc/pressure"))) < 10e6:
        subprocess.run(f"for i in $(seq {2 * os.cpu_count()}); do {SPIN} & done; wait", shell=True, check=True)
    reads = "cd /views; for name in cpu io memory; do cat $name; done"
    printed = run("-v", f"{views}/proc/pressure:/views", command=f"{SPIN}; {reads}")
    assert [line.split()[0] for line in printed.splitlines()] == [line.split()[0] for line in machine.splitlines()]
    assert stalled(printed) < 5e6  # the container has lived for two seconds


def pressure(directory):
    """The text of all three files."""
    return "".join((directory / name).read_text() for name in ("cpu", "io", "memory"))


def stalled(text):
    """The sum of the totals, in microseconds."""
    line = r"(some|full) avg10=[\d.]+ avg60=[\d.]+ avg300=[\d.]+ total=(\d+)"
    return sum(int(re.fullmatch(line, text)[2]) for text in text.splitlines())


def test_every_mount_that_lxcfs_py_prints_for_docker_is_one_that_docker_takes(run, views):
    flags = snippet("docker", Config(mountpoint=str(views))).split()
    printed = run(*flags, "-m", "256m", command="mount -t fuse.lxcfs | wc -l; free -b", files=[])
    assert printed.startswith(f"{len(flags) // 2}\n")
    assert f"\nMem: {256 * MIB:15} " in printed


def test_the_cpu_directory_has_the_visible_cpus_only(run, two_cpus):
    asks = "ls -d /sys/devices/system/cpu/cpu[0-9]* | wc -l; getconf _NPROCESSORS_ONLN; getconf _NPROCESSORS_CONF"
    for limit in (["--cpus", "1"], ["--cpuset-cpus", "1"]):
        assert run(*limit, command=asks, files=["sys/devices/system/cpu"]) == "1\n1\n1\n", limit
    assert run("--cpus", "2", command=asks, files=["sys/devices/system/cpu"]) == "2\n2\n2\n"


def test_lscpu_counts_the_visible_cpus(run, two_cpus):
    files = ["proc/cpuinfo", "sys/devices/system/cpu"]
    assert re.search(r"^CPU\(s\): +1$", run("--cpus", "1", command="lscpu", files=files), re.MULTILINE)
