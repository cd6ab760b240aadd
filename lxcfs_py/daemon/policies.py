"""Which containers have which keys of the configuration otherwise: the policies of lxcfs.toml."""

from __future__ import annotations

import weakref
from fnmatch import fnmatchcase
from typing import NamedTuple, Optional

from lxcfs_py.cgroup.layout import Paths
from lxcfs_py.config import Config, Policy
from lxcfs_py.container.containers import Container
from lxcfs_py.runtimes.names import Identity, Names


class _Known(NamedTuple):
    config: Config
    paths: Paths
    applied: Config


class Policies:
    """What holds for each container, looked up again where the configuration or the container's cgroup changes."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Container, _Known] = weakref.WeakKeyDictionary()

    def of(self, container: Container, config: Config) -> Config:
        """Return the configuration as it is for a container."""
        if not config.policy:
            return config
        known = self._known.get(container)
        if known is None or known.config is not config or known.paths is not container.paths:
            applied = config
            for policy in matching(container, config):
                applied = applied.with_settings(policy.settings)
            known = self._known[container] = _Known(config, container.paths, applied)
        return known.applied


def matching(container: Container, config: Config) -> list[Policy]:
    """Return the policies that hold for a container, in the order of the file: what the last one says holds."""
    path = max(container.paths.values(), key=len, default="/")
    asks_names = any(policy.image or policy.label for policy in config.policy)
    identity = Names().of(path) if asks_names else None
    return [policy for policy in config.policy if _holds(policy, path, identity)]


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
