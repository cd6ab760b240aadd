"""Which containers have which keys of the configuration otherwise: the policies of lxcfs.toml, and a label."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Optional

from lxcfs_py.config import Config, Policy, fault
from lxcfs_py.container.containers import Container
from lxcfs_py.runtimes.names import CPU_MODE, Identity, Names, cpu_mode


def applied(container: Container, config: Config) -> Config:
    """Return the configuration as it is for a container.

    It is looked up again where the configuration or the container's cgroup changes.
    """
    known = container.configured
    if known is None or known[0] is not config or known[1] is not container.paths:
        result = config
        for policy in matching(container, config):
            result = result.with_settings(policy.settings)
        known = container.configured = config, container.paths, result
    return known[2]


def matching(container: Container, config: Config) -> list[Policy]:
    """Return the policies that hold for a container; what the last one says holds. Its label is the last."""
    path = max(container.paths.values(), key=len, default="/")
    identity = Names().of(path)
    found = [policy for policy in config.policy if _holds(policy, path, identity)]
    mode = cpu_mode(identity.annotations) if identity else None
    if mode is not None and not fault("cpu.mode", mode):
        found.append(Policy(label=f"{CPU_MODE}={mode}", settings=(("cpu.mode", mode),)))
    return found


def _holds(policy: Policy, path: str, identity: Optional[Identity]) -> bool:
    if policy.cgroup and not _is_within(path, policy.cgroup):
        return False
    if policy.image and not (identity and fnmatchcase(identity.image, policy.image)):
        return False
    if not policy.label:
        return True
    key, _, value = policy.label.partition("=")
    return identity is not None and key in identity.annotations and fnmatchcase(identity.annotations[key], value or "*")


def _is_within(path: str, pattern: str) -> bool:
    """Tell whether a pattern is of a cgroup or of one above it: a container may have cgroups of its own."""
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) >= len(patterns) and all(map(fnmatchcase, names, patterns))
