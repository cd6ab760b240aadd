"""Seccomp profiles for container engines, with sysinfo(2) and sched_getaffinity(2) handed to the daemon.

The format is that of Docker and Podman (https://docs.docker.com/engine/security/seccomp/), or that of LXC's policies of
version 2 (lxc.container.conf(5), lxc.seccomp.profile), as the profile has it from which one is made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux.digest import digest

CALLS = ("sched_getaffinity", "sysinfo")

SOCKET = "/run/lxcfs-py/seccomp.sock"
"""Where the daemon takes listeners from the engines."""


INSTALLED = "/usr/share/lxcfs-py/seccomp.json"
"""The profile that the packages bring, for the well-known mountpoint."""

INSTALLED_AS_OCI = "/usr/share/lxcfs-py/seccomp-oci.json"
"""The same as containerd, CRI-O and nerdctl take it."""

LOCALHOST = "lxcfs-py/seccomp.json"
"""What a pod's localhostProfile calls it: a path below the kubelet's directory of profiles."""

INSTALLED_FOR_LXC = "/usr/share/lxcfs-py/lxc.seccomp"
"""The policy that the packages bring; LXC's configuration names the socket."""


def socket_of(mountpoint: str) -> str:
    """Return where the daemon at a mountpoint takes listeners: a well-known path for the well-known mountpoint."""
    return SOCKET if mountpoint == Config().mountpoint else f"/run/lxcfs-py/{digest(mountpoint).hex()}.seccomp"


def lxc_socket_of(mountpoint: str) -> str:
    """Return where the daemon at a mountpoint takes connections of LXC's monitors."""
    path, _, kind = socket_of(mountpoint).rpartition(".")
    return f"{path}-lxc.{kind}"


BASE = Path("/usr/share/containers/seccomp.json")
"""Podman's own profile, which Debian's golang-github-containers-common brings."""


class ProfileError(LxcfsError):
    """Why a profile cannot be made."""


def profile(base: Path, socket: str = SOCKET, oci: bool = False) -> str:
    """Return the profile of a file, with the calls handed to who listens at a socket. ProfileError.

    With `oci`, it is in the form of the OCI runtime specification.
    """
    text = _read(base)
    if text.startswith("2\n"):
        return _lxc_policy(text)
    rules = _parse(base, text)
    kept = []
    for rule in rules["syscalls"]:
        names = [name for name in rule.get("names", [rule.get("name")]) if name not in CALLS]
        if names:
            kept.append({**rule, "names": names})
            kept[-1].pop("name", None)
    notify = {"names": list(CALLS), "action": "SCMP_ACT_NOTIFY", "args": []}
    made = {**rules, "listenerPath": socket, "syscalls": [*kept, notify]}
    return json.dumps(_as_oci(made) if oci else made, indent=2) + "\n"


# What the form of Docker and Podman calls the architectures that the agent knows.
_ARCHITECTURES = {"amd64", "x86", "x32", "arm64", "arm"}
_WITH_AGENT = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
_GRANTED = {"CAP_AUDIT_WRITE", "CAP_SYS_CHROOT"}
"""Of the capabilities that profiles speak of, those that engines give to each container."""

_CONDITIONS = ("includes", "excludes")
_OWN_KEYS = (*_CONDITIONS, "comment", "errno")


def _as_oci(rules: dict[str, Any]) -> dict[str, Any]:
    """Return a profile without the conditions that only Docker and Podman know: for containers that add no capability.

    The architectures are all that the agent knows: a runtime passes over calls that its own has not.
    """
    made = {key: value for key, value in rules.items() if key not in ("archMap", "defaultErrno", "syscalls")}
    pairs = [pair for pair in rules.get("archMap", []) if pair["architecture"] in _WITH_AGENT]
    made["architectures"] = [name for pair in pairs for name in (pair["architecture"], *pair["subArchitectures"])]
    made["syscalls"] = [
        {key: value for key, value in rule.items() if key not in _OWN_KEYS}
        for rule in rules["syscalls"]
        if _holds(*(rule.get(key) or {} for key in _CONDITIONS))
    ]
    return made


def _holds(includes: dict[str, Any], excludes: dict[str, Any]) -> bool:
    """Tell whether a rule is for a container without added capabilities, on an architecture that the agent knows."""
    included = includes.get("arches")
    return (
        _GRANTED.issuperset(includes.get("caps", ()))
        and _GRANTED.isdisjoint(excludes.get("caps", ()))
        and (not included or not _ARCHITECTURES.isdisjoint(included))
        and not _ARCHITECTURES.issubset(excludes.get("arches", ()))
    )


def _lxc_policy(text: str) -> str:
    """Return a policy of LXC's with the calls handed on; who listens is for the container's configuration to say."""
    kept = [line for line in text.splitlines() if line.split()[:1] not in [[call] for call in CALLS]]
    return "\n".join([*kept, "[all]", *(f"{call} notify" for call in CALLS)]) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}; --base names the profile to start from") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        rules = json.loads(text)
    except ValueError:
        raise ProfileError(
            f"{path} is not JSON; allowed: a seccomp profile as Docker and Podman take it, or a policy of LXC's of "
            "version 2"
        ) from None
    calls = rules.get("syscalls") if isinstance(rules, dict) else None
    if not isinstance(calls, list) or not all(isinstance(rule, dict) for rule in calls):
        raise ProfileError(f'{path} has no list "syscalls"; allowed: a seccomp profile as Docker and Podman take it')
    return dict(rules)
