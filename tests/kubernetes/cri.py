"""Pods without Kubernetes: what a kubelet says to a container runtime over CRI, as far as tests need it.

The messages are written and read with the program's own part of protobuf. The network is the node's, so that no CNI is
needed.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import secrets
import tarfile
import time
from pathlib import Path
from typing import Any, Optional

import grpc

from lxcfs_py.runtimes.nri import wire

IMAGE = "docker.io/library/pods:test"
SECONDS = 60.0
_NODE = 2  # a namespace mode: the node's
_EXITED = 2  # a container's state
_RUNTIME_DEFAULT, _LOCALHOST = 0, 2  # kinds of seccomp profiles


class Runtime:
    """A container runtime at a socket. Logs of containers are read below `logs`, which is the runtime's path too.

    Where systemd makes the cgroups, each pod has a slice of its own, as a kubelet gives it.
    """

    def __init__(self, socket: Path, logs: Path, has_systemd: bool = False) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._logs = logs
        self._has_systemd = has_systemd

    def call(self, method: str, message: bytes) -> wire.Fields:
        """Call a method of the RuntimeService; its answer."""
        function = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}", request_serializer=None, response_deserializer=None
        )
        return wire.read(function(message, timeout=SECONDS, wait_for_ready=True))

    def pod(self, namespace: str = "shop", handler: str = "", shared_pids: bool = False, **annotations: str) -> Pod:
        """Start a pod. Annotations are those below lxcfs.py/."""
        name = f"pod-{secrets.token_hex(4)}"
        metadata = wire.field(1, name) + wire.field(2, name) + wire.field(3, namespace)
        parent = f"kubepods-burstable-{name.replace('-', '')}.slice" if self._has_systemd else ""
        pairs = {f"lxcfs.py/{key.replace('_', '-')}": value for key, value in annotations.items()}
        config = (
            wire.field(1, metadata)
            + wire.field(3, str(self._logs / name))
            + b"".join(wire.item(7, wire.field(1, key) + wire.field(2, value)) for key, value in pairs.items())
            + wire.field(8, wire.field(1, parent) + wire.field(2, wire.field(1, _namespaces(shared_pids))))
        )
        answer = self.call("RunPodSandbox", wire.field(1, config) + wire.field(2, handler))
        return Pod(self, wire.text(answer, 1), config, self._logs / name, shared_pids)


class Pod:
    """A sandbox; its containers end with it."""

    def __init__(self, runtime: Runtime, sandbox: str, config: bytes, logs: Path, shared_pids: bool) -> None:
        self._runtime, self._id, self._config, self._logs = runtime, sandbox, config, logs
        self._shared_pids = shared_pids
        self._numbers = itertools.count()

    def run(
        self,
        script: str,
        memory: int = 256 << 20,
        cpus: float = 1,
        mounts: Optional[dict[str, str]] = None,
        seccomp: Optional[Path] = None,
    ) -> str:
        """Run a shell script as a container of the pod, and return what it prints.

        `seccomp` is a localhost profile, the runtime's own where there is none.
        """
        name = f"container-{next(self._numbers)}"
        resources = wire.field(1, 100000) + wire.field(2, round(cpus * 100000)) + wire.field(4, memory)
        security = wire.field(3, _namespaces(self._shared_pids))
        kind = _LOCALHOST if seccomp else _RUNTIME_DEFAULT
        security += wire.item(15, wire.field(1, kind) + wire.field(2, str(seccomp or "")))
        linux = wire.field(1, resources) + wire.field(2, security)
        config = (
            wire.field(1, wire.field(1, name))
            + wire.field(2, wire.field(1, IMAGE))
            + b"".join(wire.item(3, word) for word in ("/bin/busybox", "sh", "-c", script))
            + b"".join(
                wire.item(7, wire.field(1, target) + wire.field(2, source)) for target, source in (mounts or {}).items()
            )
            + wire.field(11, f"{name}.log")
            + wire.field(15, linux)
        )
        message = wire.field(1, self._id) + wire.field(2, config) + wire.field(3, self._config)
        container = wire.field(1, wire.text(self._runtime.call("CreateContainer", message), 1))
        self._runtime.call("StartContainer", container)
        deadline = time.monotonic() + SECONDS
        while wire.whole(wire.message(self._runtime.call("ContainerStatus", container), 1), 3) != _EXITED:
            assert time.monotonic() < deadline, "the container does not end"
            time.sleep(0.05)
        self._runtime.call("RemoveContainer", container)
        lines = (self._logs / f"{name}.log").read_text().splitlines()
        return "".join(f"{line.split(' ', 3)[3]}\n" for line in lines)

    def remove(self) -> None:
        """End it and all its containers."""
        self._runtime.call("StopPodSandbox", wire.field(1, self._id))
        self._runtime.call("RemovePodSandbox", wire.field(1, self._id))


def _namespaces(shared_pids: bool) -> bytes:
    """Return a NamespaceOption: the node's network, and pids of the pod's (0) or of each container's (1)."""
    return wire.field(1, _NODE) + wire.field(2, 0 if shared_pids else 1)


def image(busybox: Path) -> bytes:
    """Return an archive as `docker save` writes it, of an image that has one program, and that sleeps."""
    layer = _tar({"bin/busybox": busybox.read_bytes()}, directories=("proc", "sys", "dev", "etc", "tmp"))
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "sleep", "2147483647"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    return _tar(
        {"config.json": json.dumps(config).encode(), "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    )


def _tar(files: dict[str, bytes], directories: tuple[str, ...] = ()) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as archive:
        for name in directories:
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return output.getvalue()
