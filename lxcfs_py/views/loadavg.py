"""/proc/loadavg: the load of the container's own tasks."""

from __future__ import annotations

from collections.abc import Sequence

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the three averages, running and all tasks, and the latest pid that a reader had.

    The reader runs, as far as the kernel is concerned. The kernel's last pid is that of the pid namespace, which it
    tells those in it alone; a program that reads this file is mostly the latest to be started.
    """
    if not config.loadavg.enabled:
        return host.text("proc/loadavg")
    averages, running, total = figures(container)
    return b"%.2f %.2f %.2f %d/%d %d\n" % (*averages, running, total, container.last_pid)


def figures(container: Container) -> tuple[Sequence[float], int, int]:
    """Return the three averages, and how many tasks run and exist, the reader among them."""
    averages = container.load.read(container.states)
    running, _, total = container.states()
    running += 1
    return averages, running, max(total, running)
