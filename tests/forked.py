"""A keeper whose servers are forked from it, with everything imported: `-m tests.forked [--stay] FILE ARGUMENT...`

Where the file exists, the next server is killed at the system call whose number is in it (tests/fuse/killed_at.py).
Python's own start and the imports, which do nothing to a session, are 3,000 of the 4,000 system calls of a server that
is executed, and nearly all of its time: so all others can be tried, each of them.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import lxcfs_py
from lxcfs_py import cli
from lxcfs_py.engine import keeper, node_keeper, store
from tests.fuse import killed_at

_DESCRIPTORS = 256  # more than a keeper has


def import_all() -> None:
    """Import what a server may import later."""
    for module in pkgutil.walk_packages(lxcfs_py.__path__, "lxcfs_py."):
        if module.name.split(".")[1] in ("cli", "config", "commands", "container", "daemon", "engine", "views"):
            importlib.import_module(module.name)


def _become(at_call: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Be what execve(2) would have made of this process, which the keeper has forked."""
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
        for fd in range(3, _DESCRIPTORS):
            try:
                if not os.get_inheritable(fd):
                    os.close(fd)
            except OSError:  # it is not open
                continue
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
                signal.signal(number, signal.SIG_DFL)
        store.inherited.cache_clear()
        killed_at.be_killed_as(at_call)
        status = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)


def main() -> int:
    """See above."""
    stay = sys.argv[1] == "--stay"
    at_call, *arguments = sys.argv[1 + stay :]
    node_keeper.BUS = "/nowhere"  # it is no pod, and no business of this machine's systemd
    import_all()

    def become(_program: str, _command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
        _become(Path(at_call), arguments, environment)

    setattr(os, "execvpe", become)  # noqa: B010 - which is otherwise the system's
    return keeper.keep(["forked"], stay=stay)


if __name__ == "__main__":
    sys.exit(main())
