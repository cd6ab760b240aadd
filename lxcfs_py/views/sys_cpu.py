"""/sys/devices/system/cpu: the host's directory, with the CPUs that the container sees."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Optional

from lxcfs_py.container import visible_cpus
from lxcfs_py.container.containers import Container
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host

if TYPE_CHECKING:
    from lxcfs_py.config import Config

DIRECTORY = "sys/devices/system/cpu"

_CPU = re.compile(r"cpu(\d+)(?:/|$)")


def visible(path: str, container: Optional[Container], host: Host, config: Config) -> bool:
    """Tell whether a path below the directory is there for a container; for the host (None) all of it is."""
    cpu = _CPU.match(path)
    if cpu is None or container is None:
        return True
    return int(cpu[1]) in visible_cpus.visible(container.cgroup, host, config.cpu.mode).cpus


def render(path: str, container: Optional[Container], host: Host, config: Config) -> bytes:
    """Return a file's text. OSError when it is not there or cannot be read."""
    if container is None:
        return host.cpu_text(path)
    if path in ("online", "possible", "present"):
        return cpu_list.render(visible_cpus.visible(container.cgroup, host, config.cpu.mode).cpus)
    return b"\n" if path == "offline" else host.cpu_text(path)
