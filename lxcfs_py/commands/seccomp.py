"""lxcfs-py seccomp: a profile with which containers ask the daemon where programs ask the kernel."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lxcfs_py.commands.common import add_config, add_output, load_config, new_command, path_given, write
from lxcfs_py.runtimes import seccomp_profile

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "seccomp",
        _seccomp,
        "print a seccomp profile with which sysinfo(2) and sched_getaffinity(2) are answered too",
        "Print a seccomp profile for container engines: another one, in which sysinfo(2) and sched_getaffinity(2) are "
        "handed to the daemon. Programs that ask the kernel (nproc, redis, Go's NumCPU, busybox's free) then get the "
        "same figures as those that read the files. A container with this profile does not start while nobody listens "
        f"at {seccomp_profile.SOCKET}. One that hands calls to another agent already is refused: a container has one "
        "listener.",
        [
            ("lxcfs-py seccomp --output profile.json", "a profile made from Podman's own, which fits Docker too"),
            (
                "podman run --security-opt seccomp=profile.json debian nproc",
                "a container whose calls are answered by the daemon",
            ),
        ],
    )
    parser.add_argument(
        "--base",
        metavar="FILE",
        type=path_given("profile: name a file"),
        default=seccomp_profile.BASE,
        help="the profile to start from, as Docker and Podman take it (default: %(default)s)",
    )
    parser.add_argument(
        "--oci",
        action="store_true",
        help="in the form of the OCI runtime specification, as containerd, nerdctl and CRI-O take it",
    )
    add_output(parser)
    add_config(parser)


def _seccomp(options: argparse.Namespace) -> int:
    socket = seccomp_profile.socket_of(load_config(options.config).mountpoint)
    write(options.output, seccomp_profile.profile(Path(options.base), socket, options.oci))
    return 0
