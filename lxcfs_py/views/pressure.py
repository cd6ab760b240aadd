"""/proc/pressure: the pressure stall information of the container's cgroup."""

from __future__ import annotations

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host

_ZEROS = b" avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def cpu(container: Container, host: Host, config: Config) -> bytes:
    """Return the kernel's text for the cgroup, or zeros."""
    return _render(container, "cpu")


def io(container: Container, host: Host, config: Config) -> bytes:
    """Return the kernel's text for the cgroup, or zeros."""
    return _render(container, "io")


def memory(container: Container, host: Host, config: Config) -> bytes:
    """Return the kernel's text for the cgroup, or zeros."""
    return _render(container, "memory")


def _render(container: Container, resource: str) -> bytes:
    pressure = container.cgroup.pressure
    try:
        text = pressure.read(resource) if pressure else None
    except OSError:  # EOPNOTSUPP: switched off at boot (psi=0) or for this cgroup
        text = None
    return text or b"some" + _ZEROS + b"full" + _ZEROS
