"""The seccomp profile where the kubelet of a node finds it: pods name it as their localhostProfile."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from lxcfs_py.config import Config
from lxcfs_py.daemon import degraded
from lxcfs_py.linux import regular_file
from lxcfs_py.runtimes import seccomp_profile

KUBELET = Path("/var/lib/kubelet")
_MAX_BYTES = 1 << 20


def apply(config: Config) -> None:
    """Put it there where the configuration wants it. It stays when that changes: there may be pods that name it."""
    degraded.leave("profile")
    if config.kubernetes.syscalls != "pods":
        return
    path = KUBELET / "seccomp" / seccomp_profile.LOCALHOST
    try:
        made = dict(json.loads(regular_file.read(seccomp_profile.INSTALLED_AS_OCI, _MAX_BYTES)))
        made["listenerPath"] = seccomp_profile.socket_of(config.mountpoint)
        text = (json.dumps(made, indent=2) + "\n").encode()
        if _content(path) != text:
            os.makedirs(path.parent, exist_ok=True)
            regular_file.replace(path, text)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        degraded.enter("profile", f"pods whose system calls are to be answered do not start here: {path}: {why}")


def remove(mountpoint: str) -> None:
    """Take it away, where it is that of the daemon at a mountpoint."""
    path = KUBELET / "seccomp" / seccomp_profile.LOCALHOST
    try:
        profile = json.loads(_content(path))
    except (ValueError, RecursionError):
        return
    if isinstance(profile, dict) and profile.get("listenerPath") == seccomp_profile.socket_of(mountpoint):
        with contextlib.suppress(OSError):
            path.unlink()
            path.parent.rmdir()


def _content(path: Path) -> bytes:
    """Return what is there; nothing where that is no file that can be read, or more than a profile may have."""
    try:
        return regular_file.read(path, _MAX_BYTES)
    except OSError:
        return b""
