"""What NRI and the webhook understand alike: which pods of Kubernetes have another kernel, and what a pod wishes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lxcfs_py import files
from lxcfs_py.config import fault
from lxcfs_py.runtimes.names import CPU_MODE, KEY, cpu_mode, is_opt_out, words

SYSCALLS = "lxcfs.py/syscalls"
"""The annotation of a pod whose system calls the daemon is to answer too: "true"."""

ENVIRONMENT = "lxcfs.py/environment"
"""The annotation of a pod that names variables, such as GOMAXPROCS, to be set to the number of CPUs it may use."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MOST_VARIABLES = 16
_ALL = {"all", "true"}  # the latter is what the OCI hook is asked for with
# A pod in a virtual machine or with a kernel in user space has another /proc than the node's kernel makes.
_OTHER_KERNEL = re.compile(r"kata|gvisor|runsc|firecracker|wasm|urunc|quark", re.IGNORECASE)


def other_kernel(runtime: str) -> str:
    """Return why the pods of a runtime, by the name of its class or handler, get nothing, "" if they are as all are."""
    return f"its runtime {runtime[:63]} has another kernel" if _OTHER_KERNEL.search(runtime) else ""


def wished(
    labels: Mapping[str, Any], annotations: Mapping[str, Any], enabled: Sequence[str], opt_in: bool
) -> tuple[Sequence[str], str]:
    """Return which of the enabled files a pod gets by its labels and annotations, and why it gets none.

    With `opt_in`, only a pod that asks for it gets any. A reason that names the key is for whoever wrote it.
    """
    wishes = [str(place[KEY]) for place in (labels, annotations) if KEY in place]
    if any(map(is_opt_out, wishes)):
        return (), "it opted out"
    if opt_in and not wishes:
        return (), "it did not opt in"
    said = {word for wish in wishes for word in words(wish)}
    listed = {files.named(word) for word in said - _ALL}
    unknown = sorted(listed - set(files.NAMES))
    if not wishes or (said & _ALL and not unknown):
        return enabled, ""
    if unknown or not listed:
        named = unknown[0][:40] if unknown else ""
        return (), f"{KEY} names {named!r}; allowed: all, none, or files with commas between them"
    return [name for name in enabled if name in listed], ""


def asks_for_syscalls(annotations: Mapping[str, Any]) -> bool:
    """Tell whether the daemon is to answer a pod's system calls."""
    return _syscalls(annotations) == "true"


def variables(annotations: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return which variables a pod asks for, and what it names that cannot be one."""
    listed = [name.strip() for name in str(annotations.get(ENVIRONMENT, "")).split(",") if name.strip()]
    listed = listed[:_MOST_VARIABLES]
    return list(filter(_VARIABLE.fullmatch, listed)), [name for name in listed if not _VARIABLE.fullmatch(name)]


def unknown_words(annotations: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with what a pod says of its system calls, CPUs and variables, for whoever wrote it."""
    if _syscalls(annotations) not in ("true", "false"):
        yield f"{SYSCALLS} is {_syscalls(annotations)[:40]!r}, which says nothing; allowed: true, false"
    mode = cpu_mode(annotations)
    if mode is not None and fault("cpu.mode", mode):
        yield f"{CPU_MODE} {fault('cpu.mode', mode)}"
    for name in variables(annotations)[1][:1]:
        yield f"{ENVIRONMENT} names {name[:40]!r}; allowed: names of variables with commas between them"


def _syscalls(annotations: Mapping[str, Any]) -> str:
    return str(annotations.get(SYSCALLS, "false")).strip().lower()
