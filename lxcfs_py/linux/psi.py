"""Triggers of pressure stall information, as Documentation/accounting/psi.rst has them."""

from __future__ import annotations

import errno
import os
import re

_MIN_WINDOW, _MAX_WINDOW = 500_000, 10_000_000  # microseconds
_UNPRIVILEGED_STEP = 2_000_000

# The kernel's sscanf "some %u %u": any blanks where there is one, none too where a number begins; what follows is not
# looked at. It keeps 32 bits of a number. Of what is written it takes so many bytes, and puts a NUL over the last of
# them (psi_write in kernel/sched/psi.c).
_TRIGGER = re.compile(rb"(some|full)[\s\xa0]*(\d+)[\s\xa0]+(\d+)")
_MAX_BYTES = 32
_UNSIGNED = 0xFFFFFFFF


def check(text: bytes, privileged: bool) -> str:
    """Return what a process has written into a pressure file as one line. OSError EINVAL where the kernel would say so.

    The window, in microseconds, of who has not got CAP_SYS_RESOURCE is a multiple of two seconds.
    """
    match = _TRIGGER.match(text[:_MAX_BYTES][:-1])
    if match:
        threshold, window = int(match[2]) & _UNSIGNED, int(match[3]) & _UNSIGNED
        if (
            _MIN_WINDOW <= window <= _MAX_WINDOW
            and 0 < threshold <= window
            and (privileged or window % _UNPRIVILEGED_STEP == 0)
        ):
            return f"{match[1].decode()} {threshold} {window}"
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def arm(path: str, trigger: str) -> int:
    """Return a descriptor of a pressure file with a trigger; poll(2) says POLLPRI when it fires. OSError.

    Where this process may not have a window that a container's may, it is the next one that it may have: the threshold
    is then reached somewhat earlier.
    """
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            os.write(fd, f"{trigger}\0".encode())
        except OSError as error:
            kind, threshold, window = trigger.split()
            allowed = -(-int(window) // _UNPRIVILEGED_STEP) * _UNPRIVILEGED_STEP
            if error.errno not in (errno.EINVAL, errno.EPERM) or allowed == int(window):
                raise
            os.write(fd, f"{kind} {threshold} {allowed}\0".encode())
    except BaseException:
        os.close(fd)
        raise
    return fd
