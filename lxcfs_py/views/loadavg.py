"""/proc/loadavg: the load of the container's own tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host

if TYPE_CHECKING:
    from lxcfs_py.config import Config


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the three averages, running and all tasks, and 0 for the last pid, which has no source."""
    if not config.loadavg.enabled:
        return host.text("proc/loadavg")
    averages = container.load.read(container.states)
    running, _, total = container.states()
    return b"%.2f %.2f %.2f %d/%d 0\n" % (*averages, max(running, 1), max(total, 1))
