"""An OCI createContainer hook: binds the views over a container's files before its root becomes its root.

The runtime calls it in the container's namespaces, with the container's state as JSON on standard input. What it sees
is still the host's file tree, and the container's below the bundle's root, with its mounts.
"""

from __future__ import annotations

import json
import os
from typing import Any, BinaryIO

from lxcfs_py.attach import attach
from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import regular_file
from lxcfs_py.runtimes.names import opt_out_in

_MAX_STATE = 1 << 20  # bytes
_MAX_CONFIG = 1 << 24


class HookError(LxcfsError):
    """Why the container starts without views: one sentence for the operator."""


def run(state: BinaryIO, config: Config) -> list[attach.Outcome]:
    """Bind the enabled files for a container of which `state` tells, unless it opts out. HookError, AttachError."""
    told = _parse(state.read(_MAX_STATE + 1), _MAX_STATE, "the container's state on standard input")
    bundle = _path(told.get("bundle"))
    if not bundle.startswith("/"):
        raise HookError("the container's state on standard input does not name its bundle: is this an OCI hook?")
    path = f"{bundle}/config.json"
    try:
        with open(path, "rb", opener=regular_file.opener) as file:
            container = _parse(file.read(_MAX_CONFIG + 1), _MAX_CONFIG, path)
    except OSError as error:
        raise HookError(f"{path} cannot be read: {error.strerror}") from None
    process, root = container.get("process"), container.get("root")
    environment = process.get("env") if isinstance(process, dict) else None
    if isinstance(environment, list) and opt_out_in(map(str, environment)):
        return []
    root_path = _path(root.get("path")) if isinstance(root, dict) else ""
    if not root_path:
        raise HookError(f"{path} does not say where the container's root is")
    return bind(os.path.join(bundle, root_path), config)


def bind(root: str, config: Config) -> list[attach.Outcome]:
    """Bind the enabled files for a container whose root is a directory yet. AttachError."""
    return attach.bind(root, config.mountpoint, config.files.enabled)


def _path(value: Any) -> str:
    """Return a value of JSON that can be a path, "" for all else: a text may hold what no name can be made of."""
    try:
        return value if isinstance(value, str) and b"\0" not in os.fsencode(value) else ""
    except UnicodeEncodeError:  # half of a surrogate pair
        return ""


def _parse(text: bytes, limit: int, name: str) -> dict[str, Any]:
    if len(text) > limit:
        raise HookError(f"{name} has more than {limit} bytes")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise HookError(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise HookError(f"{name} is not a JSON object")
    return value
