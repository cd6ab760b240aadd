"""AdmissionReview of admission.k8s.io/v1: the API server asks, and is always told to go ahead."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from typing import NamedTuple, Union

from lxcfs_py.errors import LxcfsError
from lxcfs_py.runtimes.bind_snippets import HostPath
from lxcfs_py.webhook.patch import Object, Patch, ShapeError, forbidden, of_ephemeral_containers, of_pod

log = logging.getLogger(__name__)

_MOST_VALUES = 250_000  # in a body: a parsed value may take 200 bytes where its text takes 5


class ReviewError(LxcfsError):
    """A request that is no AdmissionReview: a sentence that says what is wrong."""


class Answer(NamedTuple):
    """What the API server is told, and how it came about: "patched", "unchanged" or "failed"."""

    review: Object
    outcome: str


def answer(
    body: Union[bytes, bytearray],
    volumes: Sequence[HostPath],
    opt_in: bool,
    is_forbidden: bool,
    dry_run: bool,
    syscalls: bool = False,
) -> Answer:
    """Return the answer to a request. ReviewError.

    Whatever the pod looks like, it is let in. Where hostPath `is_forbidden`, its user is told why it gets nothing. With
    `dry_run`, what would be patched is only logged. `syscalls` is as for `of_pod`.
    """
    request = _request(body)
    pod = _name(request)
    try:
        patch = _patch(request, volumes, opt_in, syscalls)
        if is_forbidden:
            patch = forbidden(patch)
    except ShapeError as error:
        patch = Patch(reason=str(error))
    except Exception:
        log.exception("%s is let in as it is, because of a fault in this program", pod)
        return Answer(_response(request, Patch()), "failed")
    if not patch.operations:
        log.debug("%s stays as it is: %s", pod, patch.reason)
    elif dry_run:
        log.info("%s would be patched: %s", pod, json.dumps(patch.operations))
        patch = Patch(warnings=patch.warnings)
    else:
        log.debug("%s is patched", pod)
    return Answer(_response(request, patch), "patched" if patch.operations else "unchanged")


def _request(body: Union[bytes, bytearray]) -> Object:
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise ReviewError(f"the body has too many values; allowed: {_MOST_VALUES}")
    try:
        review = json.loads(body)
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, a number of thousands of digits
        raise ReviewError("the body is not JSON") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise ReviewError("the body is not an AdmissionReview")
    if review.get("apiVersion") != "admission.k8s.io/v1":
        raise ReviewError("the AdmissionReview is of another version than admission.k8s.io/v1")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise ReviewError("the AdmissionReview has no request with a uid")
    return request


def _patch(request: Object, volumes: Sequence[HostPath], opt_in: bool, syscalls: bool) -> Patch:
    if request.get("resource") != {"group": "", "version": "v1", "resource": "pods"}:
        return Patch(reason="it is not a pod")
    pod, before = request.get("object"), request.get("oldObject")
    asked = (request.get("operation"), request.get("subResource") or "")
    if asked == ("CREATE", "") and isinstance(pod, dict):
        return of_pod(pod, volumes, opt_in, syscalls)
    if asked == ("UPDATE", "ephemeralcontainers") and isinstance(pod, dict) and isinstance(before, dict):
        return of_ephemeral_containers(pod, before, volumes)
    return Patch(reason="this is not how a pod or an ephemeral container is made")


def _response(request: Object, patch: Patch) -> Object:
    response: Object = {"uid": request["uid"], "allowed": True}
    if patch.operations:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(patch.operations).encode()).decode()
    if patch.warnings:
        response["warnings"] = list(patch.warnings)
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def _name(request: Object) -> str:
    """Return a pod's name for the log; whatever somebody sent, it is short and on one line."""
    pod = request.get("object")
    metadata = pod.get("metadata") if isinstance(pod, dict) else None
    names = metadata if isinstance(metadata, dict) else {}
    name = names.get("name") or names.get("generateName")
    return f"pod {str(request.get('namespace'))[:63]!r}/{str(name)[:253]!r}"
