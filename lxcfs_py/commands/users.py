"""lxcfs-py users: who depends on the mount."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lxcfs_py.attach import mount_users, servers
from lxcfs_py.commands.common import CommandError, add_config, mountpoint_even_if_broken, new_command, require_root
from lxcfs_py.linux.mountpoint import is_mounted
from lxcfs_py.printable import printable

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_WORDS = {servers.LIVE: "served", servers.DEAD: "unserved", servers.SILENT: "silent"}


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "users",
        _users,
        "print who has files of the mount, or of another like it, mounted",
        "Print a line for each container, or other mount namespace, in which files of such a mount are mounted: its "
        "first process, that process's name, one of the files, and whether a server still serves it: served, unserved, "
        "silent where it does not answer, unknown where nobody could be asked. The columns are separated by tabs. The "
        "host's own mounts, and copies of them, are not in it.",
        [("lxcfs-py users", "who is concerned when the mount ends")],
    )
    add_config(parser)


def _users(options: argparse.Namespace) -> int:
    require_root()
    place = mountpoint_even_if_broken(options.config)
    found = mount_users.find(place)
    users = found.users
    if found.missing:
        print(f"lxcfs-py: {found.missing}", file=sys.stderr)
    if not users and not is_mounted(place):
        raise CommandError(f"nothing is mounted at {place}, and nobody has files of such a mount")
    if not users:
        print(f"nobody has files of the mount at {printable(place)}", file=sys.stderr)
    states = mount_users.states(users)
    for user in users:
        # Both names are the container's to choose: neither may end the line, or be none that can be printed.
        names = (name.encode("unicode_escape").decode() for name in (user.command, user.path))
        print(user.pid, *names, _WORDS.get(states.get(user.device, ""), "unknown"), sep="\t")
    return 0
