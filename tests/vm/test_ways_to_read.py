"""All ways to read a file, on the kernels that Debian has: tests/fuse/ways.py in two containers at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.conftest import ROOT

SUITES = ("bookworm", "trixie", "forky")

WAYS = "python3 /root/ways.py 10 /proc/meminfo 'MemTotal: {kib:14} kB' /sys/devices/system/cpu/online {cpus}"


def test_two_containers_read_one_file_in_all_ways_and_none_sees_the_others_text(machine, suite):
    machine.put(ROOT / "tests/fuse/ways.py", "/root/ways.py")

    def read(mib, options, cpus):
        return machine.run(
            f"lxcfs-py try --memory {mib}M {options} -- {WAYS.format(kib=mib << 10, cpus=cpus)}", timeout=240
        )

    with ThreadPoolExecutor() as pool:
        both = [pool.submit(read, 256, "--cpus 1", "0"), pool.submit(read, 300, "", "0-1")]
        for read in both:
            printed = read.result().stdout
            for way in ("read 4096", "io_uring", "busybox cat", *(["coreutils cat"] if suite == "forky" else [])):
                assert f"{way}, /proc/meminfo: text" in printed
