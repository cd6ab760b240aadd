"""Seccomp profiles for container engines, with sysinfo(2) and sched_getaffinity(2) handed to the daemon.

The format is that of Docker and Podman (https://docs.docker.com/engine/security/seccomp/), or that of LXC's policies of
version 2 (lxc.container.conf(5), lxc.seccomp.profile), as the profile has it from which one is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import regular_file, runtime_directory

CALLS = ("sched_getaffinity", "sysinfo")

SOCKET = f"{runtime_directory.PATH}/seccomp.sock"
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
    return SOCKET if mountpoint == Config().mountpoint else runtime_directory.path_of(mountpoint, "seccomp")


def is_others(listener: str) -> bool:
    """Tell whether a listener's path is that of another agent than the daemon, at whatever mountpoint."""
    return bool(listener) and os.path.dirname(listener) != os.path.dirname(SOCKET)


def lxc_socket_of(mountpoint: str) -> str:
    """Return where the daemon at a mountpoint takes connections of LXC's monitors."""
    path, _, kind = socket_of(mountpoint).rpartition(".")
    return f"{path}-lxc.{kind}"


BASE = Path("/usr/share/containers/seccomp.json")
"""Podman's own profile, which Debian's golang-github-containers-common brings."""


_MOST_LETTERS = 1 << 20


class ProfileError(LxcfsError):
    """Why a profile cannot be made."""


def profile(base: Path, socket: str = SOCKET, oci: bool = False) -> str:
    """Return the profile of a file, with the calls handed to who listens at a socket. ProfileError.

    With `oci`, it is in the form of the OCI runtime specification.
    """
    text = _read(base)
    if text.startswith("2\n"):
        return _lxc_policy(base, text)
    rules = _parse(base, text)
    kept = []
    for rule in rules["syscalls"]:
        names = [name for name in _names(rule) if name not in CALLS]
        if names:
            kept.append({**rule, "names": names})
            kept[-1].pop("name", None)
    if NOTIFY in (rules.get("defaultAction"), *(rule.get("action") for rule in kept)):
        raise ProfileError(_SUPERVISED.format(base, f"hands calls to an agent ({NOTIFY})"))
    if is_others(rules.get("listenerPath") or ""):
        raise ProfileError(_SUPERVISED.format(base, f"has a listener of its own ({rules['listenerPath']})"))
    notify = {"names": list(CALLS), "action": NOTIFY, "args": []}
    made = {**rules, "listenerPath": socket, "syscalls": [*kept, notify]}
    return json.dumps(_as_oci(made) if oci else made, indent=2) + "\n"


NOTIFY = "SCMP_ACT_NOTIFY"
"""The action that hands a call to who listens."""

_SUPERVISED = "{} {}: a container has one listener for all its calls, so that agent would not be asked any more"

# What the form of Docker and Podman calls the architectures that the agent knows.
_ARCHITECTURES = {"amd64", "x86", "x32", "arm64", "arm"}
_WITH_AGENT = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")
_GRANTED = {"CAP_AUDIT_WRITE", "CAP_SYS_CHROOT"}
"""Of the capabilities that profiles speak of, those that engines give to each container."""

_CONDITIONS = ("includes", "excludes")
_OWN_KEYS = (*_CONDITIONS, "comment", "errno")


def _as_oci(rules: dict[str, Any]) -> dict[str, Any]:
    """Return a profile without the conditions that only Docker and Podman know: for containers that add no capability.

    The architectures are all that the agent knows, as a runtime passes over calls that its own has not; or those that
    the profile lists already.
    """
    made = {key: value for key, value in rules.items() if key not in ("archMap", "defaultErrno", "syscalls")}
    pairs = [pair for pair in rules.get("archMap") or () if pair.get("architecture") in _WITH_AGENT]
    if rules.get("archMap"):
        made["architectures"] = [
            name for pair in pairs for name in (pair["architecture"], *(pair.get("subArchitectures") or ()))
        ]
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
        _GRANTED.issuperset(includes.get("caps") or ())
        and _GRANTED.isdisjoint(excludes.get("caps") or ())
        and (not included or not _ARCHITECTURES.isdisjoint(included))
        and not _ARCHITECTURES.issubset(excludes.get("arches") or ())
    )


def _lxc_policy(base: Path, text: str) -> str:
    """Return a policy of LXC's with the calls handed on; who listens is for the container's configuration to say."""
    kept = [line for line in text.splitlines() if line.split()[:1] not in [[call] for call in CALLS]]
    others = [line.split()[0] for line in kept if line.split()[1:2] == ["notify"]]
    if others:
        raise ProfileError(_SUPERVISED.format(base, f"hands calls to an agent ({others[0]} notify)"))
    return "\n".join([*kept, "[all]", *(f"{call} notify" for call in CALLS)]) + "\n"


def _read(path: Path) -> str:
    try:
        with open(path, errors="replace", opener=regular_file.opener) as file:
            text = file.read(_MOST_LETTERS + 1)
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror}; --base names the profile to start from") from None
    if len(text) > _MOST_LETTERS:
        raise ProfileError(f"{path} has more than {_MOST_LETTERS} letters; --base names the profile to start from")
    return text


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        rules = json.loads(text)
    except (ValueError, RecursionError):
        raise ProfileError(
            f"{path} is not JSON; allowed: a seccomp profile as Docker and Podman take it, or a policy of LXC's of "
            "version 2"
        ) from None
    if not isinstance(rules, dict) or not isinstance(rules.get("syscalls"), list):
        raise ProfileError(f'{path} has no list "syscalls"; allowed: a seccomp profile as Docker and Podman take it')
    wrong = next(_misshapen(rules), None)
    if wrong:
        raise ProfileError(f"{path}: {wrong}; allowed: a seccomp profile as Docker and Podman take it")
    return dict(rules)


def _names(rule: dict[str, Any]) -> list[str]:
    """Return the calls that a rule is about."""
    if rule.get("names") is None:
        return [rule["name"]]
    return list(rule["names"])


def _misshapen(rules: dict[str, Any]) -> Iterator[str]:
    """Yield what a profile has that cannot be read, each a sentence's beginning."""
    if not isinstance(rules.get("listenerPath"), (str, type(None))):
        yield '"listenerPath" is no path'
    for number, rule in enumerate(rules["syscalls"], 1):
        there = f"rule {number} of its syscalls"
        if not isinstance(rule, dict):
            yield f"{there} is no JSON object"
            continue
        if rule.get("names") is None and not isinstance(rule.get("name"), str):
            yield f'{there} has no list "names"'
        if not _are_texts(rule.get("names")):
            yield f'"names" in {there} is no list of names'
        for key in _CONDITIONS:
            condition = rule.get(key) or {}
            if not isinstance(condition, dict) or not all(_are_texts(condition.get(of)) for of in ("caps", "arches")):
                yield f'"{key}" in {there} is no list of caps and arches'
    pairs = rules.get("archMap") or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, dict) and _are_texts(pair.get("subArchitectures")) for pair in pairs
    ):
        yield '"archMap" is no list of architectures, each with its subArchitectures'


def _are_texts(value: Any) -> bool:
    """Tell whether this is a list of texts, or nothing."""
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))
