"""Work that is done about processes, each of which may end meanwhile."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Callable

from lxcfs_py.attach.errors import AttachError, EndedError
from lxcfs_py.attach.running import host_mount_namespaces
from lxcfs_py.attach.visits import Ask, Visits

# What the kernel says of a process that has ended, or that only its parent has still to be told of.
_ENDED = (errno.ESRCH, errno.ENOENT, errno.EINVAL)

Work = Callable[[int, Ask], Any]
"""What is done in a process of its own; it is given a descriptor of /proc/PID, which only that PID ever has."""


def each(works: Sequence[tuple[int, Work]], visits: Visits) -> list[Any]:
    """Return for each pid what its work returns, or the AttachError that says why there is nothing."""
    answers: list[Any] = [_opened(pid) for pid, _ in works]
    opened = [(answer, work) for answer, (_, work) in zip(answers, works) if isinstance(answer, int)]
    try:
        done = iter(visits.each(partial(work, process) for process, work in opened))
        return [
            _with_reason(pid, answer, next(done)) if isinstance(answer, int) else answer
            for answer, (pid, _) in zip(answers, works)
        ]
    finally:
        for process, _ in opened:
            os.close(process)


def _opened(pid: int) -> Any:
    try:
        process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return EndedError(f"there is no process {pid}")
    try:
        if os.stat("ns/mnt", dir_fd=process).st_ino not in host_mount_namespaces():
            return process
        answer: Any = AttachError(f"process {pid} is in no container: it has the host's own mounts")
    except OSError as error:
        answer = _with_reason(pid, process, error)
    os.close(process)
    return answer


def _with_reason(pid: int, process: int, answer: Any) -> Any:
    """Return an answer; in place of an error the AttachError that tells it best."""
    if _has_ended(process):
        return EndedError(f"process {pid} has ended")
    if isinstance(answer, OSError):
        hint = ": run this as root, with CAP_SYS_ADMIN" if answer.errno in (errno.EPERM, errno.EACCES) else ""
        return AttachError(f"the mounts of process {pid} are out of reach ({answer.strerror}){hint}")
    return answer


def _has_ended(process: int) -> bool:
    try:
        os.stat("ns/mnt", dir_fd=process)
    except OSError as error:
        return error.errno in _ENDED
    return False
