"""/proc/uptime: the age of the container, and the idle time of its CPUs."""

from __future__ import annotations

import functools

from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import TICKS, Host


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return both in seconds, the second summed over the CPUs as in the first line of /proc/stat.

    To a reader in a time namespace with an offset of the clock since boot, the first is what the kernel says there:
    start times of processes count from there, too.
    """
    cgroup = container.cgroup
    up = uptime(container, host, config) / 1e9
    if cgroup.cpu_time or container.account.has_counted():
        look = functools.partial(visible_cpus.visible, cgroup, host, config.cpu)
        idle = container.account.idle(cgroup, look, _age(container, host), host.asleep()) / TICKS
    else:  # nobody has ever counted what it used: the machine's idle time, of which no more can be than there was time
        cpus = visible_cpus.visible(cgroup, host, config.cpu).cpus
        idle = min(sum(times[3] for times in host.cpu_times(cpus)) / TICKS, up * len(cpus))
    return b"%.2f %.2f\n" % (up, idle)


def uptime(container: Container, host: Host, config: Config) -> int:
    """Return the first figure in nanoseconds."""
    if host.boottime_offset or config.uptime.source == "host":
        return host.now() + host.boottime_offset
    return _age(container, host)


def _age(container: Container, host: Host) -> int:
    return max(host.now() - container.start, 0)
