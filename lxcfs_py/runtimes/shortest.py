"""The shortest way to give a container the files, by the engine and its version.

An engine that knows the Container Device Interface takes one device for all files, and where NRI is, a pod needs
nothing. Elsewhere it is a mount for each file, which every version takes (bind_snippets.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple, Optional

from lxcfs_py.attach import nri
from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.runtimes import bind_snippets, cdi

_SECONDS = 10.0

_Version = tuple[int, int]


class VersionError(LxcfsError):
    """A version that cannot be read: one sentence."""


class Shorter(NamedTuple):
    """What is shorter than mounts."""

    since: _Version
    """Of the engine."""

    asks: tuple[tuple[str, ...], ...]
    """Commands that print its version: the first that is there."""

    text: str
    """What goes into the container's definition."""

    needs: str = "lxcfs-py cdi"
    """What is to be done once on the host."""

    shows: tuple[str, ...] = ()
    """A command that prints something where the engine here has it switched on, as Docker may have."""


_DEVICE = f"--device {cdi.KIND}=all\n"
_DOCKER = ("docker", "info", "--format", "{{if .CDISpecDirs}}it knows CDI{{end}}")

SHORTER = {
    "docker": Shorter((28, 3), (("docker", "version", "--format", "{{.Server.Version}}"),), _DEVICE, shows=_DOCKER),
    "podman": Shorter((4, 1), (("podman", "--version"),), _DEVICE),
    "nerdctl": Shorter((2, 1), (("nerdctl", "--version"),), _DEVICE),
    "ctr": Shorter((2, 0), (("ctr", "--version"),), _DEVICE),
    "compose": Shorter(
        (2, 33),
        (("docker", "compose", "version", "--short"), ("docker-compose", "version", "--short")),
        f'devices:\n  - "{cdi.KIND}=all"\n',
        shows=_DOCKER,
    ),
    "quadlet": Shorter(
        (4, 4), (("podman", "--version"),), f"{bind_snippets.AFTER_DAEMON}[Container]\nAddDevice={cdi.KIND}=all\n"
    ),
    # containerd 2.0; CRI-O has the numbers of Kubernetes.
    "kubernetes": Shorter(
        (1, 30),
        (("crio", "--version"), ("containerd", "--version")),
        "# Nothing: the daemon on the node gives it the files by NRI.\n",
        "kubectl apply of the DaemonSet: docs/kubernetes.md",
    ),
}
"""By runtime; others have one way in all versions."""


def shortest(runtime: str, config: Config, version: Optional[str]) -> Optional[Shorter]:
    """Return what is shorter than mounts for an engine of a version, None where nothing is.

    None for a version is the engine on this machine; then what the host needs has to be done already. VersionError.
    """
    shorter = SHORTER.get(runtime)
    if version is not None:
        asked = parsed(version)
        return shorter if shorter and asked >= shorter.since else None
    if shorter is None or not _is_ready(runtime, config):
        return None
    found = _installed(shorter)
    if shorter.shows:
        # Docker's own word counts more than its version: since 25 it can be switched on, since 28.3 off.
        is_known = bool(_said(shorter.shows)) and (runtime == "docker" or found >= shorter.since)
    else:
        is_known = found >= shorter.since
    return shorter if is_known else None


def check_listener(runtime: str, version: Optional[str]) -> None:
    """Raise VersionError where an engine refuses a seccomp profile that has a listener.

    `version` is as for `shortest`. An engine that does not say is taken to be new enough, and so is that of another
    machine whose Compose alone is known, and Podman, which may be here by the name of docker.
    """
    if runtime not in ("docker", "compose"):
        return
    if version is not None:
        found = parsed(version) if runtime == "docker" else (0, 0)
    else:
        found = (0, 0) if "podman" in _said(("docker", "--version")).lower() else _installed(SHORTER["docker"])
    if (0, 0) < found < (23, 0):
        raise VersionError(
            f"Docker {found[0]}.{found[1]} refuses the profile that hands system calls on; those since 23 take it: "
            "leave out --syscalls for the files alone"
        )


def _installed(shorter: Shorter) -> _Version:
    """Return the version of an engine on this machine, (0, 0) where it is not there or does not say."""
    for command in shorter.asks:
        version = re.search(r"\d+\.\d+", _said(command))
        if version:
            return parsed(version[0])
    return (0, 0)


def _said(command: tuple[str, ...]) -> str:
    """Return what a command prints, "" where it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return "" if done.returncode else done.stdout.strip()


def _is_ready(runtime: str, config: Config) -> bool:
    """Tell whether the host has what the shorter way needs."""
    if runtime == "kubernetes":
        return config.nri.enabled != "never" and os.path.exists(nri.SOCKET)
    try:
        there = json.loads(Path(cdi.PATH).read_text())
    except (OSError, ValueError):
        return False
    return bool(there == cdi.specification(config))


# With what projects and distributions put before and behind the numbers: "v2.0.0-rc.1", "1:20.10.24+dfsg1-1+b2".
_VERSION = re.compile(r"(?:\d+:)?v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.\d+)*(?:[-+~][\w.+~-]*)?", re.ASCII)


def parsed(version: str) -> _Version:
    """Return the first two numbers of a version, as projects and distributions write it. VersionError."""
    numbers = _VERSION.fullmatch(version)
    if not numbers:
        raise VersionError(f'"{version}" is no version; allowed: numbers with dots between them, such as 28.5')
    return int(numbers[1]), int(numbers[2] or 0)
