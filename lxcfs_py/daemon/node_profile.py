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


def apply(config: Config) -> None:
    """Put it there where the configuration wants it. It stays when that changes: there may be pods that name it."""
    degraded.leave("profile")
    if config.kubernetes.syscalls != "pods":
        return
    path = KUBELET / "seccomp" / seccomp_profile.LOCALHOST
    try:
        made = json.loads(Path(seccomp_profile.INSTALLED_AS_OCI).read_text())
        made["listenerPath"] = seccomp_profile.socket_of(config.mountpoint)
        text = json.dumps(made, indent=2) + "\n"
        if not (path.exists() and path.read_text() == text):
            os.makedirs(path.parent, exist_ok=True)
            regular_file.replace(path, text.encode())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        degraded.enter("profile", f"pods whose system calls are to be answered do not start here: {path}: {why}")


def remove(mountpoint: str) -> None:
    """Take it away, where it is that of the daemon at a mountpoint."""
    path = KUBELET / "seccomp" / seccomp_profile.LOCALHOST
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text())["listenerPath"] == seccomp_profile.socket_of(mountpoint):
            path.unlink()
            path.parent.rmdir()
