"""Runs in a container: uses a known amount of CPU, writes a known amount to disk, and compares.

Output: {"burned": seconds, "stat": the seconds that /proc/stat counted meanwhile, "cgroup": those of the cgroup's
cpu.stat, "written": bytes, "diskstats": the bytes that /proc/diskstats counted meanwhile, for all disks}
"""

import json
import mmap
import os
import time
from pathlib import Path

SECONDS = 5.0
MIB = 48


def used():
    words = Path("/proc/stat").read_text().split()
    return (int(words[1]) + int(words[2]) + int(words[3])) / os.sysconf("SC_CLK_TCK")


def of_cgroup():
    return int(Path("/sys/fs/cgroup/cpu.stat").read_text().split()[1]) / 1e6


def written():
    lines = Path("/proc/diskstats").read_text().splitlines()
    return sum(int(line.split()[9]) * 512 for line in lines if not line.split()[2][-1].isdigit())


def main():
    before, cgroup_before = used(), of_cgroup()
    began = time.process_time()
    while time.process_time() - began < SECONDS:
        pass
    burned = time.process_time() - began
    stat, cgroup = used() - before, of_cgroup() - cgroup_before
    written_before = written()
    mebibyte = mmap.mmap(-1, 1 << 20)
    file = os.open("/output/written", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
    for _ in range(MIB):
        os.write(file, mebibyte)
    os.fsync(file)
    result = {"burned": burned, "stat": stat, "cgroup": cgroup, "written": MIB << 20}
    print(json.dumps({**result, "diskstats": written() - written_before}))


main()
