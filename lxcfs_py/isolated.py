"""Start a module as root where nobody else has a say in what is imported: `python -I isolated.py MODULE ARGUMENT ...`.

Python's -I leaves out the working directory, HOME and every PYTHON* variable. What is not installed where this Python
looks anyway is found beside this file, wherever a package has put it.

What is meant for the daemon may be sent to all processes of its service. What is started so ignores all signals but
SIGTERM and SIGINT, until it says otherwise.
"""

from __future__ import annotations

import os
import signal
import sys

_NOT_PASSED_ON = ("PYTHON", "LD_")


def command(module: str, *arguments: str) -> list[str]:
    """Return the command line that starts a module of this package so; paths among the arguments must be absolute."""
    return [sys.executable, "-I", os.path.abspath(__file__), module, *arguments]


def clean_environment() -> None:
    """Forget the variables of this process that tell an interpreter or the dynamic linker what to load."""
    for name in [*filter(lambda name: name.startswith(_NOT_PASSED_ON), os.environ), "HOME"]:
        os.environ.pop(name, None)


def _run(module: str) -> None:
    import runpy

    os.chdir("/")
    modules = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    vendor = f"{modules}/vendor"
    if os.path.isdir(vendor):  # what is bundled comes before what the host has, which may be another library
        sys.path[:0] = [modules, vendor]
    elif modules not in sys.path:
        sys.path.append(modules)
    del sys.argv[0]

    from lxcfs_py.linux import signals

    signals.ignore_all_but(signal.SIGTERM, signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it ends, and without a traceback
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run(sys.argv[1])
