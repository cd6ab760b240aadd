"""lxcfs-py remove: leave nothing of it on this machine, but the program itself."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lxcfs_py import files
from lxcfs_py.attach import attach, nri
from lxcfs_py.commands.common import add_config, mountpoint_even_if_broken, new_command, require_root
from lxcfs_py.daemon import node_profile
from lxcfs_py.engine import node_keeper
from lxcfs_py.errors import report
from lxcfs_py.linux import mountpoint, runtime_directory
from lxcfs_py.printable import printable
from lxcfs_py.runtimes import seccomp_profile

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "remove",
        _remove,
        "leave nothing of it on this machine: for the end of a DaemonSet",
        "Take the files out of all containers, which see the machine's figures from then on, end the mount and whoever "
        "keeps it, and delete what is kept for the next server of this mountpoint. A daemon that still runs ends its "
        "service. Where containers cannot be freed, they are named, and the exit code is 1.",
        [("lxcfs-py remove", "what kubernetes/remove does on each node")],
    )
    add_config(parser)


def _remove(options: argparse.Namespace) -> int:
    require_root()
    place = mountpoint_even_if_broken(options.config)
    _free_containers(place)
    code = 0
    try:
        node_keeper.release()
    except node_keeper.NodeKeeperError as error:
        if os.path.exists(node_keeper.BUS):
            report(error)
            code = 1
    while mountpoint.is_mounted(place):
        mountpoint.end(place)
    remaining = _free_containers(place)  # with those that came meanwhile
    for pid, reason in remaining.items():
        print(f"lxcfs-py: container {pid} keeps files that nobody serves: {printable(reason)}", file=sys.stderr)
    _delete(place)
    print(f"nothing is left at {printable(place)}")
    return 1 if remaining else code


def _free_containers(place: str) -> dict[int, str]:
    """Take the files out of all containers; return what keeps them in some."""
    pids = [pid for group in attach.all_targets().values() for pid in group]
    refused: dict[int, str] = {}
    for pid, answer in zip(pids, attach.detach_all(pids, place, files.NAMES)):
        if isinstance(answer, (attach.EndedError, attach.LeftAloneError)):
            continue
        if isinstance(answer, attach.AttachError):
            refused[pid] = str(answer)
            continue
        reasons = [outcome.reason for outcome in answer if outcome.result == "refused"]
        if reasons:
            refused[pid] = reasons[0]
    return refused


def _delete(place: str) -> None:
    """Delete what is kept for the next server of a mountpoint, the pods' profile, and directories that are empty.

    What belongs to no mountpoint goes with the last one.
    """
    node_profile.remove(place)
    kept = set(Path(runtime_directory.PATH).glob("*"))
    sockets_of_calls = map(os.path.basename, (seccomp_profile.socket_of(place), seccomp_profile.lxc_socket_of(place)))
    own = {*runtime_directory.files_of(place), *(Path(runtime_directory.PATH, name) for name in sockets_of_calls)}
    for path in kept & own if any(map(_is_of_a_mountpoint, kept - own)) else kept:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    sockets = (os.path.dirname(path) for path in (nri.SOCKET, node_keeper.BUS))  # the kubelet makes them for a pod
    for directory in (runtime_directory.PATH, place, *sockets):
        with contextlib.suppress(OSError):  # not there, not empty, or a pod's own mount
            os.rmdir(directory)


def _is_of_a_mountpoint(path: Path) -> bool:
    """Tell whether a server keeps this for its mountpoint, whose digest begins the name, or for the well-known one."""
    return re.match("[0-9a-f]{16}|seccomp", path.name) is not None
