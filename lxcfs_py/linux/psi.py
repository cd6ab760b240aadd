"""Triggers of pressure stall information, as Documentation/accounting/psi.rst has them."""

from __future__ import annotations

import errno
import os
import re
import time

_MIN_WINDOW, _MAX_WINDOW = 500_000, 10_000_000  # microseconds
_UNPRIVILEGED_STEP = 2_000_000

# The kernel's sscanf "some %u %u": any blanks where there is one, none too where a number begins; what follows is not
# looked at. It keeps 32 bits of a number. Of what is written it takes so many bytes, and puts a NUL over the last of
# them (psi_write in kernel/sched/psi.c).
_TRIGGER = re.compile(rb"(some|full)[\s\xa0]*(\d+)[\s\xa0]+(\d+)")
_MAX_BYTES = 32
_UNSIGNED = 0xFFFFFFFF

_MAX_TEXT = 4096


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


class Trigger:
    """One on a pressure file, as it fires in the kernel for whoever has not got CAP_SYS_RESOURCE (kernel/sched/psi.c).

    The kernel looks at those every two seconds and a little, and so does this, however often it is asked. The kernel
    itself is not given it: to end one, it has whoever closes the file wait for an RCU grace period, and whoever opens
    that file meanwhile, too.

    A window that is no multiple of two seconds is the next one: the threshold is then reached somewhat earlier.
    """

    def __init__(self, descriptor: int, terms: str) -> None:
        """Take the file, which is closed with this, and a trigger as `check` returns it.

        OSError, EINVAL where the file has no such line.
        """
        self._descriptor = descriptor
        kind, threshold, window = terms.split()
        self._kind = f"{kind} ".encode()
        self._threshold = int(threshold)
        self._window = -(-int(window) // _UNPRIVILEGED_STEP) * _UNPRIVILEGED_STEP
        self._begun, self._total_then = _now(), self._total()
        self._looked, self._last = self._begun, self._total_then
        self._growth_before = 0
        self._is_due = False
        self._next = 0

    def __del__(self) -> None:
        os.close(self._descriptor)

    def fires(self) -> bool:
        """Look whether it fires now. OSError ENODEV where the cgroup is gone."""
        now = _now()
        if now - self._looked <= _UNPRIVILEGED_STEP:
            return False
        self._looked, total = now, self._total()
        if total != self._last:
            self._last = total
            growth = self._growth(now, total)
            self._is_due = self._is_due or growth >= self._threshold
        if not self._is_due or now < self._next:
            return False
        self._is_due, self._next = False, now + self._window  # once in a window
        return True

    def _growth(self, now: int, total: int) -> int:
        """Return for how long there was a stall within a window until now: partly of the one before (window_update)."""
        growth, elapsed = total - self._total_then, now - self._begun
        if elapsed <= self._window:
            return growth + self._growth_before * (self._window - elapsed) // self._window
        self._begun, self._total_then, self._growth_before = now, total, growth
        return growth

    def _total(self) -> int:
        """Return for how long there was a stall, in microseconds."""
        for line in os.pread(self._descriptor, _MAX_TEXT, 0).splitlines():
            if line.startswith(self._kind):
                return int(line.rpartition(b"total=")[2])
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _now() -> int:
    return time.monotonic_ns() // 1000
