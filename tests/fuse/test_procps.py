"""What procps prints in a container that has the texts of a recorded machine."""

from __future__ import annotations

import re

from lxcfs_py.config import Config
from lxcfs_py.views import sys_cpu
from lxcfs_py.views.host_tree import Sight, listed_cpus
from tests.unit.test_meminfo import KIB, LIMITS, MIB, fields
from tests.unit.test_views import DISK, cpu_lines


def test_free_and_vmstat_print_the_figures(machine, rendered, sandbox):
    box = sandbox(views=rendered, files=["proc/meminfo", "proc/stat", "proc/uptime"])
    now = fields(machine.render("proc/meminfo"))
    _, memory, swap = box.run(["free", "-k", "-w"], check=True).stdout.splitlines()
    total, used, free, shared, buffers, cache, available = map(int, memory.split()[1:])
    assert (total, free, available, buffers) == (now["MemTotal"], now["MemFree"], now["MemAvailable"], 0)
    assert used == total - available
    assert shared == 8 * MIB // KIB
    assert cache == now["Cached"] + now["SReclaimable"]
    assert swap.split()[1:] == [str(now["SwapTotal"]), str(now["SwapTotal"] - now["SwapFree"]), str(now["SwapFree"])]
    human = box.run(["free", "-h"], check=True).stdout.splitlines()[1].split()
    assert human[1] == f"{LIMITS[machine.name][0]}Mi"
    vmstat = box.run(["vmstat", "-s", "-S", "k"], check=True).stdout
    figures = {what: int(number) for number, what in re.findall(r"^ *(\d+) k? ?(.*)$", vmstat, re.MULTILINE)}
    assert figures["total memory"] == now["MemTotal"] * KIB // 1000
    assert figures["total swap"] == now["SwapTotal"] * KIB // 1000


def test_uptime_and_vmstat_print_what_is_rendered(machine, rendered, sandbox):
    (rendered / sys_cpu.TREE.name).mkdir(parents=True)
    for name in ("online", "possible", "present"):
        text = sys_cpu.TREE.text(machine.host, name)
        shown = listed_cpus(Sight(machine.container, machine.host, Config()), name, text)
        (rendered / sys_cpu.TREE.name / name).write_bytes(shown)
    box = sandbox(views=rendered)
    printed = box.run(["uptime"], check=True).stdout
    assert re.search(r" up 0 min,  .*load average: 0\.00, 0\.00, 0\.00$", printed.strip())
    assert re.fullmatch(
        r"up 0 minutes?\n", box.run(["uptime", "-p"], check=True).stdout
    )  # procps 4.0.6 has learnt that

    totals = box.run(["vmstat", "-s"], check=True).stdout
    figures = {what: int(number) for number, what in re.findall(r"^ *(\d+) (?:K )?(.*)$", totals, re.MULTILINE)}
    user, nice, system, idle, *_ = cpu_lines((rendered / "proc/stat").read_bytes())["cpu"]
    assert figures["non-nice user cpu ticks"] == user
    assert figures["nice user cpu ticks"] == nice
    assert figures["system cpu ticks"] == system
    assert figures["idle cpu ticks"] == idle
    assert figures["interrupts"] == figures["CPU context switches"] == 0
    running, blocked, *_, waiting, stolen = box.run(["vmstat", "-n"], check=True).stdout.splitlines()[2].split()
    assert running in ("1", "0")  # procps 4.0.6 leaves itself out
    assert (blocked, waiting, stolen) == ("0", "0", "0")

    disks = {
        line.split()[0]: line.split()[1:] for line in box.run(["vmstat", "-d"], check=True).stdout.splitlines()[2:]
    }
    disk, read, written = DISK[machine.name]
    if disk in disks:  # vmstat leaves loop devices out
        assert read <= int(disks[disk][2]) * 512 / 2**20 < read + 1
        assert written <= int(disks[disk][6]) * 512 / 2**20 <= written + 1
