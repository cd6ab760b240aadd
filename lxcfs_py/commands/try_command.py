"""lxcfs-py try: a command in a small container."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lxcfs_py.commands.common import add_config, add_mountpoint, new_command, served_mountpoint
from lxcfs_py.linux import cpu_list
from lxcfs_py.runtimes import foreground, sandbox, seccomp_profile

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_MOST_CPUS = 8192  # as many as Linux can be built for


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "try",
        _try,
        "run a command in a small container of its own that sees itself",
        "Run a command in a container that is made for it: cgroups with these limits, namespaces, and the files of a "
        "running daemon over its own, which also answers sysinfo(2) and sched_getaffinity(2) in it. It has the host's "
        "file tree; no engine and no image are needed. The exit code is the command's, or 128 and the number of the "
        "signal that ended it.",
        [
            ("lxcfs-py try --memory 256M --cpus 1 free -m", "what free says in 256 MiB"),
            ("lxcfs-py try --cpuset 0 sh", "a shell that sees one CPU"),
        ],
    )
    parser.add_argument("--memory", metavar="SIZE", type=_size, help="limit of memory, e.g. 256M")
    parser.add_argument("--swap", metavar="SIZE", type=_size, help="limit of swap, e.g. 0 or 1G")
    parser.add_argument("--cpus", metavar="NUMBER", type=_cpus, help="CPU quota, e.g. 1.5")
    parser.add_argument("--cpuset", metavar="LIST", type=_cpuset, help="the CPUs to run on, e.g. 0 or 0-3")
    add_mountpoint(parser, "where the daemon's mount is")
    add_config(parser)
    parser.add_argument(
        "arguments",
        metavar="COMMAND",
        nargs=argparse.PARSER,
        help="the command, and behind it its own options and arguments; -- before it where it begins with a dash",
    )


def _size(text: str) -> int:
    try:
        return sandbox.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _cpus(text: str) -> float:
    try:
        cpus = float(text.encode("ascii"))
    except ValueError:
        cpus = math.nan
    if not sandbox.LEAST_CPUS <= cpus <= _MOST_CPUS:
        allowed = f"one from {sandbox.LEAST_CPUS} to {_MOST_CPUS}, such as 0.5 or 2"
        raise argparse.ArgumentTypeError(f"{text!r} is no number of CPUs: give {allowed}")
    return cpus


def _cpuset(text: str) -> str:
    try:
        cpus = cpu_list.parse(text.encode())
    except ValueError:
        cpus = ()
    if not cpus:
        allowed = f"one such as 0 or 0-3,8, with CPUs up to {cpu_list.MAX_CPUS - 1}"
        raise argparse.ArgumentTypeError(f"{text!r} is no list of CPUs: give {allowed}")
    return text


def _try(options: argparse.Namespace) -> int:
    views = served_mountpoint(options)
    limits = {name: getattr(options, name) for name in ("memory", "swap", "cpus", "cpuset")}
    agent = seccomp_profile.socket_of(views)
    if not os.path.exists(agent):  # of an older daemon, or where it is degraded
        agent = ""
    command = options.arguments[1:] if options.arguments[0] == "--" else options.arguments
    box = sandbox.Sandbox(views=Path(views), own_clock=True, agent=agent, **limits)
    return foreground.run_command(command, box)
