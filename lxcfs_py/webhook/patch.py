"""What is added to a pod so that its containers see the views: a JSON Patch (RFC 6902), or why there is none."""

from __future__ import annotations

import operator
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from lxcfs_py.errors import LxcfsError
from lxcfs_py.runtimes import pods
from lxcfs_py.runtimes.bind_snippets import HostPath
from lxcfs_py.runtimes.names import KEY, opt_out_in
from lxcfs_py.runtimes.seccomp_profile import LOCALHOST

_LEFT_OUT = "this pod sees the figures of its node, not its own (lxcfs-py): {}"
_EVICTABLE = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes"
_MIRROR = "kubernetes.io/config.mirror"
_OLD_PROFILES = "seccomp.security.alpha.kubernetes.io/"
_WINDOWS = "windows"
_SYSTEM_LABELS = ("kubernetes.io/os", "beta.kubernetes.io/os")  # of a node; older pods ask for the second
_KINDS = ("initContainers", "containers", "ephemeralContainers")
# What is added takes memory for each container, and time for each mount that is there.
_MOST_CONTAINERS, _MOST_VOLUMES, _MOST_MOUNTS = 200, 1000, 5000

Object = dict[str, Any]
"""A JSON object of the API's."""


class ShapeError(LxcfsError):
    """A pod that does not look like one: a sentence that names the field."""


@dataclass(frozen=True)
class Patch:
    """Operations of a JSON Patch; without any, the reason. `warnings` are for the user who made the pod."""

    operations: list[Object] = field(default_factory=list)
    reason: str = ""
    warnings: tuple[str, ...] = ()


def of_pod(pod: Object, volumes: Sequence[HostPath], opt_in: bool, syscalls: bool = False) -> Patch:
    """Return what mounts `volumes`, or those that a pod names, in every container of a new pod. ShapeError.

    With `opt_in`, only a pod that asks for it gets them, else each that does not decline. With `syscalls`, the daemon
    answers its system calls, too.
    """
    volumes, reason, warnings = _chosen(pod, volumes, opt_in)
    metadata = _object(pod, "metadata", "pod")
    annotations = _optional_object(metadata, "annotations", "pod.metadata")
    warnings = (*warnings, *pods.unknown_words(annotations))
    if reason:
        return Patch(reason=reason, warnings=warnings)
    spec = _object(pod, "spec", "pod")
    present = _objects(spec, "volumes", "pod.spec")
    named = _names_by_source(present)
    taken = {str(volume.get("name")) for volume in present}
    mounts = [(named.get(volume.source, volume.name), volume) for volume in volumes]
    mounts = [(name, volume) for name, volume in mounts if volume.source in named or name not in taken]
    operations = [
        operation
        for kind in _KINDS
        for index, container in enumerate(_objects(spec, kind, "pod.spec"))
        for operation in _container(f"/spec/{kind}/{index}", container, mounts)
    ]
    if syscalls:
        operations += _profile(spec, annotations)
    if not operations:
        return Patch(
            reason="its containers mount something at each of these files already, or opt out", warnings=warnings
        )
    used = {mount.get("name") for operation in operations for mount in _values(operation)}
    added = [
        {"name": name, "hostPath": {"path": volume.source, "type": volume.type}}
        for name, volume in mounts
        if name in used and volume.source not in named
    ]
    evictable = _evictable(metadata, [str(volume["name"]) for volume in added])
    return Patch([*_append("/spec/volumes", present, added), *operations, *evictable], warnings=warnings)


def of_ephemeral_containers(pod: Object, before: Object, volumes: Sequence[HostPath]) -> Patch:
    """Return what mounts in the ephemeral containers that are new since `before` what the pod's volumes have.

    Volumes cannot be added to a pod that exists, nor its older ephemeral containers be changed. ShapeError.
    """
    volumes, reason, warnings = _chosen(pod, volumes, opt_in=False)
    if reason:
        return Patch(reason=reason, warnings=warnings)
    spec = _object(pod, "spec", "pod")
    named = _names_by_source(_objects(spec, "volumes", "pod.spec"))
    mounts = [(named[volume.source], volume) for volume in volumes if volume.source in named]
    if not mounts:
        return Patch(reason="the pod has no volumes of these files", warnings=warnings)
    older = {
        str(container.get("name"))
        for container in _objects(_object(before, "spec", "the pod before"), "ephemeralContainers", "pod.spec")
    }
    operations = [
        operation
        for index, container in enumerate(_objects(spec, "ephemeralContainers", "pod.spec"))
        if str(container.get("name")) not in older
        for operation in _container(f"/spec/ephemeralContainers/{index}", container, mounts)
    ]
    return Patch(operations, "" if operations else "there is no new container that lacks them", warnings)


def forbidden(patch: Patch) -> Patch:
    """Return nothing instead of a patch, because its namespace admits no pods with hostPath; its user is told."""
    if not patch.operations:
        return patch
    reason, warnings = _said("its namespace enforces a Pod Security Standard, which forbids hostPath")
    return Patch(reason=reason, warnings=warnings)


def _chosen(pod: Object, volumes: Sequence[HostPath], opt_in: bool) -> tuple[Sequence[HostPath], str, tuple[str, ...]]:
    """Return which of the volumes a pod gets, why it gets none, "" if it does, and what its user should be told."""
    metadata = _object(pod, "metadata", "pod")
    labels, annotations = (_optional_object(metadata, key, "pod.metadata") for key in ("labels", "annotations"))
    names, reason = pods.wished(labels, annotations, [volume.target[1:] for volume in volumes], opt_in)
    if reason:
        return (), reason, (reason,) if KEY in reason else ()
    if volumes and not names:
        return (), *_said(f"runtimes mount over none of the files that {KEY} names, or they are not enabled")
    return [volume for volume in volumes if volume.target[1:] in names], *_misfit(pod, annotations)


def _misfit(pod: Object, annotations: Object) -> tuple[str, tuple[str, ...]]:
    """Return why a pod cannot have the files, "" if it can, and what its user should be told."""
    spec = _object(pod, "spec", "pod")
    if _MIRROR in annotations:
        return "it is a static pod, which only its node can change", ()
    if _is_for_windows(spec):
        return "it is for Windows", ()
    if spec.get("hostUsers") is False:
        return _said("it has a user namespace, in which Kubernetes can mount no FUSE files")
    reason = pods.other_kernel(str(spec.get("runtimeClassName") or ""))
    if reason:
        return _said(reason)
    containers = _containers(spec)
    mounts = sum(len(_objects(container, "volumeMounts", "pod.spec.containers")) for container in containers)
    sizes = (len(containers), len(_objects(spec, "volumes", "pod.spec")), mounts)
    most = (_MOST_CONTAINERS, _MOST_VOLUMES, _MOST_MOUNTS)
    if any(map(operator.gt, sizes, most)):
        return _said("it has more than {} containers, {} volumes or {} mounts".format(*most))
    return "", ()


def _is_for_windows(spec: Object) -> bool:
    """Tell whether a pod runs on nodes with Windows, or on none: by its system, its options, its choice of nodes."""
    contexts = [_optional_object(each, "securityContext", "pod.spec") for each in (spec, *_containers(spec))]
    selector = _optional_object(spec, "nodeSelector", "pod.spec")
    nodes = _optional_object(_optional_object(spec, "affinity", "pod.spec"), "nodeAffinity", "pod.spec.affinity")
    required = _optional_object(nodes, "requiredDuringSchedulingIgnoredDuringExecution", "nodeAffinity")
    terms = _objects(required, "nodeSelectorTerms", "nodeAffinity")  # one of them has to fit, and all that is in it
    expressions = [_objects(term, "matchExpressions", "nodeSelectorTerms") for term in terms]
    return (
        _optional_object(spec, "os", "pod.spec").get("name") == _WINDOWS
        or any(context.get("windowsOptions") for context in contexts)
        or any(selector.get(label) == _WINDOWS for label in _SYSTEM_LABELS)
        or (bool(terms) and all(any(map(_wants_windows, term)) for term in expressions))
    )


def _wants_windows(expression: Object) -> bool:
    """Tell whether what a pod asks of a node's labels is so of those with Windows only."""
    is_of_system = expression.get("key") in _SYSTEM_LABELS and expression.get("operator") == "In"
    return is_of_system and expression.get("values") == [_WINDOWS]


def _containers(spec: Object) -> list[Object]:
    return [container for kind in _KINDS for container in _objects(spec, kind, "pod.spec")]


def _said(reason: str) -> tuple[str, tuple[str, ...]]:
    """Return why a pod gets nothing, and a warning: its user did not ask for that."""
    return reason, (_LEFT_OUT.format(reason),)


def _evictable(metadata: Object, names: Sequence[str]) -> Iterator[Object]:
    """Yield what lets the cluster's autoscaler take a pod from its node, though it has volumes of that node."""
    annotations = _optional_object(metadata, "annotations", "pod.metadata")
    listed = [name for name in str(annotations.get(_EVICTABLE, "")).split(",") if name]
    value = ",".join([*listed, *names])
    if not names:
        return
    if not annotations:
        yield {"op": "add", "path": "/metadata/annotations", "value": {_EVICTABLE: value}}
    else:
        yield {"op": "add", "path": f"/metadata/annotations/{_EVICTABLE.replace('/', '~1')}", "value": value}


def _container(path: str, container: Object, mounts: Sequence[tuple[str, HostPath]]) -> Iterator[Object]:
    """Yield what mounts the files in a container that does not opt out, but for those where it mounts something."""
    if _opts_out(path, container):
        return
    present = _objects(container, "volumeMounts", path)
    own = [_normal(mount.get("mountPath")) for mount in present]
    added = [
        {"name": name, "mountPath": volume.target, "readOnly": True, "mountPropagation": "HostToContainer"}
        for name, volume in mounts
        if not any(_meet(volume.target, target) for target in own)
    ]
    yield from _append(f"{path}/volumeMounts", present, added)


def _opts_out(path: str, container: Object) -> bool:
    """Tell whether a container declines by its environment."""
    environment = _objects(container, "env", path)
    return bool(opt_out_in(f"{variable.get('name')}={variable.get('value') or ''}" for variable in environment))


def _profile(spec: Object, annotations: Object) -> Iterator[Object]:
    """Yield what hands the system calls of a pod to the daemon: the profile for containers that add no rights.

    One that has a profile of its own keeps it. The profile is the whole pod's: no container may decline.
    """
    context = _optional_object(spec, "securityContext", "pod.spec")
    if context.get("seccompProfile") is not None or any(key.startswith(_OLD_PROFILES) for key in annotations):
        return
    for container in _containers(spec):
        rights = _optional_object(container, "securityContext", "pod.spec.containers")
        added = _optional_object(rights, "capabilities", "pod.spec.containers.securityContext").get("add")
        if rights.get("privileged") or added or _opts_out("pod.spec.containers", container):
            return
    profile = {"type": "Localhost", "localhostProfile": LOCALHOST}
    if context:
        yield {"op": "add", "path": "/spec/securityContext/seccompProfile", "value": profile}
    else:
        yield {"op": "add", "path": "/spec/securityContext", "value": {"seccompProfile": profile}}


def _append(path: str, present: Sequence[Object], added: Sequence[Object]) -> Iterator[Object]:
    """Yield the operations that append to a list, which the API leaves out when it is empty."""
    if added and not present:
        yield {"op": "add", "path": path, "value": list(added)}
    else:
        yield from ({"op": "add", "path": f"{path}/-", "value": item} for item in added)


def _values(operation: Object) -> list[Object]:
    value = operation["value"]
    return value if isinstance(value, list) else [value]


def _meet(view: str, own: Optional[str]) -> bool:
    """Tell whether one path is the other's, or above or below it. Nothing is mounted over a container's root."""
    if own is None or own == "/":
        return False
    return f"{view}/".startswith(f"{own}/") or own.startswith(f"{view}/")


def _normal(path: Any) -> Optional[str]:
    return posixpath.normpath("/" + path.lstrip("/")) if isinstance(path, str) else None


def _names_by_source(volumes: Sequence[Object]) -> dict[str, str]:
    """Return the names of a pod's volumes by the path on the host that they have."""
    found: dict[str, str] = {}
    for volume in volumes:
        path = _normal(_optional_object(volume, "hostPath", "pod.spec.volumes").get("path"))
        if path and isinstance(volume.get("name"), str):
            found.setdefault(path, volume["name"])
    return found


def _object(parent: Object, key: str, where: str) -> Object:
    value = parent.get(key)
    if not isinstance(value, dict):
        raise ShapeError(f"{where}.{key} is not an object")
    return value


def _optional_object(parent: Object, key: str, where: str) -> Object:
    return {} if parent.get(key) is None else _object(parent, key, where)


def _objects(parent: Object, key: str, where: str) -> list[Object]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ShapeError(f"{where}.{key} is not a list of objects")
    return value
