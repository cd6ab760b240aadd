"""/proc/stat: what the container's CPUs did since it started."""

from __future__ import annotations

import functools
import itertools

from lxcfs_py.config import Config
from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text; times in ticks (USER_HZ). Where nobody has ever counted the container's, they are the machine's.

    btime is the kernel's in the reader's time namespace: programs add start times to it, which count from there.

    Interrupts and context switches are not counted by container: these lines are 0, and without the columns for each
    interrupt, which are most of the file on a large host.
    """
    visible = visible_cpus.visible(container.cgroup, host, config.cpu)
    if container.cgroup.cpu_time or container.account.has_counted():
        age = max(host.now() - container.start, 0)
        total, times = container.account.read(container.cgroup, visible, age, host.asleep())
    else:
        times = host.cpu_times(visible.cpus)
        total = tuple(map(sum, zip(*times)))
    running, blocked = container.active()
    tasks = container.cgroup.tasks
    return _template(visible.cpus) % (
        *total,
        *itertools.chain.from_iterable(times),
        (host.booted() - host.boottime_offset) // 1_000_000_000,
        tasks.forked() if tasks else 0,
        running + 1,  # the reader, which waits for this text; for the kernel it runs
        blocked,
    )


@functools.lru_cache(maxsize=64)
def _template(cpus: tuple[int, ...]) -> bytes:
    """Return the text for these CPUs with room for the figures."""
    return b"".join(
        (
            *(b"cpu%s %%d %%d %%d %%d 0 0 0 0 0 0\n" % name for name in (b" ", *(b"%d" % cpu for cpu in cpus))),
            b"intr 0\nctxt 0\nbtime %d\nprocesses %d\nprocs_running %d\nprocs_blocked %d\n",
            b"softirq 0 0 0 0 0 0 0 0 0 0 0\n",
        )
    )
