"""Which container of a pod gets which files, and what it gets in its environment."""

from __future__ import annotations

import dataclasses
import math
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lxcfs_py.runtimes import pods, seccomp_profile
from lxcfs_py.runtimes.names import CPU_MODE, KEY, opt_out_in
from lxcfs_py.runtimes.nri import wire

_SYSTEM_NAMESPACES = ("kube-system", "lxcfs-py")
_OWN = ("app.kubernetes.io/name", "lxcfs-py")  # the label of the manifests' pods, whatever namespace they are in
_KERNELS_OWN = ("proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue")  # what every container has mounted


class Mount(NamedTuple):
    """One of a container's mounts, as it is created."""

    destination: str
    type: str
    source: str


@dataclass(frozen=True)
class Pod:
    """What NRI tells of a pod."""

    name: str
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]
    runtime_handler: str

    @classmethod
    def read(cls, message: wire.Fields) -> Pod:
        """Return what a PodSandbox says. wire.WireError."""
        return cls(
            wire.text(message, 2),
            wire.text(message, 4),
            wire.mapping(message, 5),
            wire.mapping(message, 6),
            wire.text(message, 7),
        )


@dataclass(frozen=True)
class Container:
    """What NRI tells of a container."""

    id: str
    pod_id: str
    name: str
    is_running: bool
    environment: tuple[str, ...]
    mounts: tuple[Mount, ...]
    namespaces: tuple[str, ...]
    """The kinds of namespaces that it has of its own, or its pod's: "pid", "user", ..."""

    cpus: float
    """How many it may use; 0 where nothing says."""

    pid: int

    seccomp: bytes = b""
    """Its seccomp policy, a message LinuxSeccomp; empty where it has none, or nobody tells (containerd before 2.3)."""

    @classmethod
    def read(cls, message: wire.Fields) -> Container:
        """Return what a Container says. wire.WireError."""
        linux = wire.message(message, 11)
        mounts = map(wire.read, wire.messages(message, 9))
        return cls(
            wire.text(message, 1),
            wire.text(message, 2),
            wire.text(message, 3),
            wire.whole(message, 4) == _RUNNING,
            tuple(wire.texts(message, 8)),
            tuple(Mount(wire.text(mount, 1), wire.text(mount, 2), _path(wire.text(mount, 3))) for mount in mounts),
            tuple(wire.text(wire.read(namespace), 1) for namespace in wire.messages(linux, 1)),
            _cpus(wire.message(wire.message(linux, 3), 2)),
            wire.whole(message, 12),
            b"".join(wire.messages(linux, 8)),
        )

    def without_files_of(self, mountpoint: str) -> Container:
        """Return the same container as if it had mounted none of the files that are there."""
        kept = (mount for mount in self.mounts if not mount.source.startswith(f"{mountpoint}/"))
        return dataclasses.replace(self, mounts=tuple(kept))


_RUNNING = 3


def _path(source: str) -> str:
    """Return a mount's source as the mountpoint is written: who has "/var/lib/lxcfs/" mounted has all of it."""
    return posixpath.normpath(source) if source.startswith("/") else source


def _cpus(cpu: wire.Fields) -> float:
    """Return how many CPUs a LinuxCPU allows: its quota, or 0. wire.WireError."""
    quota, period = (wire.whole(wire.message(cpu, number), 1) for number in (2, 3))
    return quota / period if quota > 0 and period > 0 else 0


@dataclass(frozen=True)
class Policy:
    """What the configuration says to all of a node's pods."""

    mountpoint: str
    names: tuple[str, ...]
    """The enabled files, as in files.NAMES."""

    default: str
    """ "all", or "opt-in" for the pods that ask."""

    def names_for(self, pod: Pod, container: Container) -> tuple[Sequence[str], str]:
        """Return the files that a container gets, and why it gets none or not all of them."""
        wished, reason = self._wished(pod)
        if not reason:
            reason = _misfit(pod, container, self.mountpoint)
        if reason:
            return (), reason
        own = [mount.destination for mount in container.mounts if mount.type not in _KERNELS_OWN]
        names = tuple(name for name in wished if not any(meet(f"/{name}", target) for target in own))
        return names, "" if names == tuple(wished) else "it mounts something itself at some of the files"

    def _wished(self, pod: Pod) -> tuple[Sequence[str], str]:
        names, reason = pods.wished(pod.labels, pod.annotations, self.names, opt_in=self.default != "all")
        if not reason and KEY not in {**pod.labels, **pod.annotations}:
            if pod.namespace in _SYSTEM_NAMESPACES:
                return (), f"it is in {pod.namespace}, and did not opt in"
            if _OWN in pod.labels.items():
                return (), "it is of lxcfs-py itself, and did not opt in"
        return names, reason


def _misfit(pod: Pod, container: Container, mountpoint: str) -> str:
    """Return why a container cannot have the files, or does not want them, "" if it gets them."""
    if opt_out_in(container.environment):
        return "it opts out by its environment"
    if pods.other_kernel(pod.runtime_handler):
        return pods.other_kernel(pod.runtime_handler)
    if "user" in container.namespaces:
        return "it has a user namespace, in which runtimes can mount no FUSE files"
    if "pid" not in container.namespaces:
        return "it has the node's processes, and its figures"
    if any(f"{mountpoint}/".startswith(f"{mount.source.rstrip('/')}/") for mount in container.mounts if mount.source):
        return "it has all of the mount"
    return ""


def variables(pod: Pod, container: Container) -> dict[str, str]:
    """Return what is set in a container's environment because its pod asks for it."""
    if not container.cpus:
        return {}
    present = {variable.partition("=")[0] for variable in container.environment}
    number = str(math.ceil(container.cpus))
    return {name: number for name in pods.variables(pod.annotations)[0] if name not in present}


def policy_with_listener(pod: Pod, container: Container, listener: str) -> bytes:
    """Return a container's seccomp policy with the calls that the daemon answers handed to it, b"" to leave it.

    Only what the runtime shows is changed, as it knows then what to do with an answer; and none that has another agent.
    wire.WireError.
    """
    if not pods.asks_for_syscalls(pod.annotations) or not container.seccomp or other_agent(container):
        return b""
    fields = wire.read(container.seccomp)
    kept = {number: values for number, values in fields.items() if number not in (_LISTENER_PATH, _RULES)}
    rules = [rule for message in wire.messages(fields, _RULES) if (rule := _without_answered(message))]
    notify = b"".join(wire.item(_NAMES, name) for name in seccomp_profile.CALLS) + wire.field(
        _ACTION, seccomp_profile.NOTIFY
    )
    return (
        wire.write(kept)
        + wire.field(_LISTENER_PATH, listener)
        + b"".join(wire.item(_RULES, rule) for rule in (*rules, notify))
    )


_DEFAULT_ACTION, _LISTENER_PATH, _RULES = 1, 5, 7  # of LinuxSeccomp
_NAMES, _ACTION = 1, 2  # of LinuxSyscall


def other_agent(container: Container) -> str:
    """Return who else answers system calls of a container, "" if nobody does: it can have one listener. wire.WireError.

    Its calls would come to the daemon, which lets pass what that agent may forbid.
    """
    fields = wire.read(container.seccomp)
    listener = wire.text(fields, _LISTENER_PATH)
    if seccomp_profile.is_others(listener):
        return f"the agent at {listener[:100]!r}"
    others = filter(None, map(_without_answered, wire.messages(fields, _RULES)))
    actions = [wire.text(fields, _DEFAULT_ACTION), *(wire.text(wire.read(rule), _ACTION) for rule in others)]
    return f"an agent of its own ({seccomp_profile.NOTIFY})" if seccomp_profile.NOTIFY in actions else ""


def _without_answered(rule: bytes) -> bytes:
    """Return a LinuxSyscall without the calls that the daemon answers, b"" where none is left."""
    fields = wire.read(rule)
    names = [name for name in wire.texts(fields, _NAMES) if name not in seccomp_profile.CALLS]
    kept = {number: values for number, values in fields.items() if number != _NAMES}
    return b"".join(wire.item(_NAMES, name) for name in names) + wire.write(kept) if names else b""


def noted_with(pod: Pod) -> dict[str, str]:
    """Return what is noted with a container for the daemon, which is told nothing of the pod's own annotations."""
    return {CPU_MODE: pod.annotations[CPU_MODE]} if CPU_MODE in pod.annotations else {}


def adjustment(
    mountpoint: str,
    names: Iterable[str],
    environment: Mapping[str, str],
    noted: Mapping[str, str],
    seccomp: bytes = b"",
) -> bytes:
    """Return a ContainerAdjustment that mounts files, sets variables, adds annotations, replaces the seccomp policy."""
    # Nothing is mounted below a file, and a runtime starts no container whose mount is to follow one that is private.
    options = ("rbind", "ro", "nosuid", "nodev", "noexec")
    mounts = (
        wire.field(1, f"/{name}")
        + wire.field(2, "bind")
        + wire.field(3, f"{mountpoint}/{name}")
        + b"".join(wire.item(4, option) for option in options)
        for name in names
    )

    def pairs(mapping: Mapping[str, str]) -> Iterator[bytes]:
        return (wire.field(1, name) + wire.field(2, value) for name, value in mapping.items())

    return b"".join(
        [
            *(wire.item(2, pair) for pair in pairs(noted)),
            *(wire.item(3, mount) for mount in mounts),
            *(wire.item(4, pair) for pair in pairs(environment)),
            wire.field(6, wire.field(6, seccomp)),
        ]
    )


def meet(view: str, own: str) -> bool:
    """Tell whether one path is the other's, or above or below it. Nothing is mounted over a container's root."""
    own = posixpath.normpath("/" + own.lstrip("/"))
    return own != "/" and (f"{view}/".startswith(f"{own}/") or own.startswith(f"{view}/"))
