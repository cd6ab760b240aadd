"""lxcfs-py unmount: take the mount away."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from lxcfs_py.attach import mount_users
from lxcfs_py.commands.common import (
    CommandError,
    add_config,
    config_path,
    mountpoint_even_if_broken,
    new_command,
    require_root,
)
from lxcfs_py.daemon import call_agent, control, last_config, systemd
from lxcfs_py.engine import session
from lxcfs_py.linux import mountpoint
from lxcfs_py.linux.mountpoint import is_mounted
from lxcfs_py.printable import printable

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "unmount",
        _unmount,
        "take the mount away, and say who loses it",
        "Take the mount away from the host, and name the containers that still have files of it: without a server, "
        "reading them fails until they get them again. While a daemon serves it, nothing is done but to name its "
        "process: to stop that unmounts.",
        [("lxcfs-py unmount", "after the daemon was stopped for good")],
    )
    add_config(parser)
    parser.add_argument(
        "--unless-restarting", metavar="UNIT", help="leave it where systemd is about to start this unit again"
    )


def _unmount(options: argparse.Namespace) -> int:
    unit = options.unless_restarting
    if unit and systemd.will_be_started_again(unit):
        if "SERVICE_RESULT" not in os.environ:
            raise CommandError(f"--unless-restarting works only in the ExecStopPost= of {unit}; nothing was done")
        return 0
    places = {mountpoint_even_if_broken(options.config)}
    if unit:  # the file may name another place by now
        places |= {served.mountpoint for served in last_config.served_with(config_path(options.config))}
    mounted = [path for path in sorted(places) if any(map(is_mounted, mountpoint.places(path)))]
    if not mounted and not unit:
        raise CommandError(f"nothing is mounted at {' or '.join(places)}")
    if not all(mountpoint.is_own(place) for path in mounted for place in mountpoint.places(path)):
        require_root()
    if not unit:
        for path in mounted:
            _refuse_beside_a_daemon(path)
    for path in mounted:
        if not (unit and mountpoint.answers(path)):  # by another server, which has taken over
            _unmount_at(path)
    return 0


def _refuse_beside_a_daemon(path: str) -> None:
    """CommandError, or NotAnsweringError of a daemon that stands still."""
    with contextlib.suppress(control.NotRunningError):
        told = control.ask(path)
        raise CommandError(
            f"{path} is served by process {told['pid']}: stop that, which unmounts",
            "systemctl stop lxcfs-py" if told["keeper"] == "systemd" else f"kill {told['pid']}",
        )


def _unmount_at(path: str) -> None:
    """Unmount first, since others may make the look at who loses the files take long."""
    with contextlib.ExitStack() as stack:
        device = mount_users.device(path)
        if device is not None:  # while this is open, no other mount gets the number of its device
            with contextlib.suppress(OSError):
                stack.callback(os.close, os.open(path, os.O_PATH))
        mountpoint.unmount_all(path)
        session.withdraw(path)
        call_agent.withdraw(path)
        if device is None:
            return
        found = mount_users.find(path, device)
    if found.missing:
        print(f"lxcfs-py: files of {path} may also be in {found.missing}", file=sys.stderr)
    if found.users:
        named = ", ".join(f"process {user.pid} ({printable(user.command)})" for user in found.users)
        print(
            f"lxcfs-py: files of {printable(path)} are still mounted in the containers of {named}: without a server, "
            "reading them fails with 'Transport endpoint is not connected' until they get them again from a server "
            "that runs (lxcfs-py attach --all), or are restarted",
            file=sys.stderr,
        )
