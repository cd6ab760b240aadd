"""Programs that size themselves by what the machine seems to be: nginx's workers, a JVM's heap and processors."""

import os
import re
import time

import pytest

MIB = 1 << 20
JAVA = "java -XX:+PrintFlagsFinal -XX:-UseContainerSupport"
NGINX = """
printf 'worker_processes auto;\nevents {}\nhttp { server { listen 8080; } }\n' >/tmp/nginx.conf
exec nginx -c /tmp/nginx.conf -g 'daemon off;'
"""


def largest_heap(printed):
    """MaxHeapSize in bytes, from the JVM's -XX:+PrintFlagsFinal."""
    return int(re.search(r" MaxHeapSize += (\d+) ", printed)[1])


@pytest.mark.parametrize(("limit", "workers"), [("--cpus=1", 1), ("--cpus=2", 2), ("--cpuset-cpus=1", 1)])
def test_nginx_starts_a_worker_for_each_visible_cpu(start, limit, workers, two_cpus):
    """`worker_processes auto` is sysconf(_SC_NPROCESSORS_ONLN); glibc takes it from sys/devices/system/cpu/online."""
    container = start(limit, command=NGINX, files=["sys/devices/system/cpu/online"])
    count = "pgrep --count --full 'nginx: [w]orker' || true"
    deadline = time.monotonic() + 20
    while container.run(count) == "0\n" and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)  # for a worker too many
    assert container.run(count) == f"{workers}\n", container.docker("logs", container.id)


def test_a_jvm_sized_by_meminfo_takes_a_quarter_of_the_container(run):
    """MaxRAM is the memory that the JVM takes the machine to have; a start script fills it from /proc/meminfo."""
    machine = """-XX:MaxRAM=$(awk '/^MemTotal:/ {print $2 "k"}' /proc/meminfo)"""
    assert largest_heap(run("-m", "512m", command=f"{JAVA} {machine} -version")) == 128 * MIB


def test_a_jvm_with_its_own_container_support_agrees(run):
    """It reads cgroups, not /proc, and the mounts over /proc must not get in its way."""
    printed = run("-m", "512m", "--cpus", "1", command="java -XX:+PrintFlagsFinal -Xlog:os+container=debug -version")
    assert largest_heap(printed) == 128 * MIB


def test_a_jvm_that_asks_sysinfo_sees_the_machine(run):
    """What no file can change: since glibc 2.23 sysconf(_SC_PHYS_PAGES) is sysinfo(2), before that /proc/meminfo.

    So a JVM without container support of its own sizes its heap for the container on older systems (RHEL 7 has
    glibc 2.17); on newer ones it needs the flag of the test above.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    heap = largest_heap(run("-m", "512m", command=f"{JAVA} -XX:MaxRAM={machine} -version"))
    assert largest_heap(run("-m", "512m", command=f"{JAVA} -version")) == pytest.approx(heap, rel=0.01)
    assert heap > 512 * MIB


def test_a_jvm_counts_the_visible_processors(run, two_cpus):
    """As it starts, by sysconf(_SC_NPROCESSORS_CONF): sys/devices/system/cpu/possible."""
    command = "java -XX:-UseContainerSupport -Xlog:os+cpu -version"
    assert "CPU: total 1 " in run("--cpus", "1", command=command, files=["sys/devices/system/cpu"])
