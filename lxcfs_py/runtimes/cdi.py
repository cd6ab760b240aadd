"""The views as a device of the Container Device Interface, for engines to mount: `--device lxcfs.py/views=all`.

https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md
"""

from __future__ import annotations

from typing import Any

from lxcfs_py.config import Config
from lxcfs_py.runtimes import bind_snippets, names

PATH = "/etc/cdi/lxcfs-py.json"
KIND = names.KEY

_VERSION = "0.3.0"  # the first with all that is said here, which every engine that knows CDI takes


def specification(config: Config) -> dict[str, Any]:
    """Return a CDI specification with the device "all", and one for each file that is enabled and that runc lets in."""
    files = {
        name: _edits(config.mountpoint, [name])
        for name in config.files.enabled
        if bind_snippets.runc_takes(f"/{name}") and bind_snippets.is_here(name)
    }
    devices = [{"name": "all", "containerEdits": _edits(config.mountpoint, list(files))}]
    devices += [{"name": _device(name), "containerEdits": edits} for name, edits in files.items()]
    return {"cdiVersion": _VERSION, "kind": KIND, "devices": devices}


def _device(name: str) -> str:
    """Return "meminfo" of "proc/meminfo", "sys-devices-system-cpu" of "sys/devices/system/cpu"."""
    return name[len("proc/") :] if name.startswith("proc/") else name.replace("/", "-")


def _edits(mountpoint: str, names: list[str]) -> dict[str, Any]:
    return {
        "mounts": [
            {"hostPath": f"{mountpoint}/{name}", "containerPath": f"/{name}", "options": ["bind", "rw"]}
            for name in names
        ]
    }
