"""A program with another C library, musl: what sysconf(3) and getloadavg(3) say comes by system calls alone."""

from __future__ import annotations

import shutil
import subprocess

from tests.fuse.test_syscalls import filtered

PROGRAM = """
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysinfo.h>
#include <unistd.h>

int main(void)
{
    cpu_set_t set;
    double load[3];
    struct sysinfo info;
    sched_getaffinity(0, sizeof set, &set);
    sysinfo(&info);
    printf("%ld %ld %ld %d %d ", sysconf(_SC_PHYS_PAGES), sysconf(_SC_NPROCESSORS_ONLN), sysconf(_SC_NPROCESSORS_CONF),
           CPU_COUNT(&set), getloadavg(load, 3));
    printf("%ld %d\\n", info.uptime, sysconf(_SC_AVPHYS_PAGES) <= sysconf(_SC_PHYS_PAGES));
    return 0;
}
"""


def test_a_musl_program_is_told_what_its_files_say(start_daemon, sandbox, require, tmp_path):
    require(shutil.which("musl-gcc"), "musl-gcc: apt-get install musl-tools")
    (tmp_path / "program.c").write_text(PROGRAM)
    program = tmp_path / "program"
    subprocess.run(["musl-gcc", "-static", "-o", program, tmp_path / "program.c"], check=True)
    daemon = start_daemon()
    box = sandbox(memory=64 << 20, cpus=1, views=daemon.mountpoint)
    answer = box.run(filtered(daemon, str(program)))
    *figures, uptime, is_less = answer.stdout.split()
    assert figures == [str((64 << 20) // 4096), "1", "1", "1", "3"], answer.stderr
    assert int(uptime) < 60
    assert is_less == "1"
