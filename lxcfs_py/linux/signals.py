"""Which signals a process heeds."""

from __future__ import annotations

import signal

# Those of SIGCHLD and SIGCONT do no harm, and programs that are started expect them as they are.
_LEFT = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT)


def ignore_all_but(*heeded: signal.Signals) -> None:
    """Let no other signal end or stop this process. A fault of its own (SIGSEGV, SIGBUS …) still does: Linux forces it.

    Programs that it starts ignore them too, unless they say otherwise.
    """
    for number in signal.valid_signals() - {*_LEFT, *heeded}:
        signal.signal(number, signal.SIG_IGN)
