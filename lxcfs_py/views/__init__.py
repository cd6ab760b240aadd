"""What a container sees: one module per file, each a pure function of what the kernel reports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from lxcfs_py.views import cpuinfo, diskstats, loadavg, meminfo, pressure, slabinfo, stat, swaps, sys_cpu, uptime

if TYPE_CHECKING:
    from lxcfs_py.config import Config
    from lxcfs_py.container.containers import Container
    from lxcfs_py.linux.host import Host

View = Callable[["Container", "Host", "Config"], bytes]
"""Renders a file. OSError or ValueError when the container's cgroup cannot be read."""

VIEWS: dict[str, View] = {
    "proc/cpuinfo": cpuinfo.render,
    "proc/diskstats": diskstats.render,
    "proc/loadavg": loadavg.render,
    "proc/meminfo": meminfo.render,
    "proc/pressure/cpu": pressure.cpu,
    "proc/pressure/io": pressure.io,
    "proc/pressure/memory": pressure.memory,
    "proc/slabinfo": slabinfo.render,
    "proc/stat": stat.render,
    "proc/swaps": swaps.render,
    "proc/uptime": uptime.render,
}
"""The files by their path under the mount."""

NAMES = (*VIEWS, sys_cpu.DIRECTORY)
"""All that can be served: the files, and the one directory."""
