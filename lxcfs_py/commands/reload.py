"""lxcfs-py reload: let the daemon read its configuration anew."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from lxcfs_py.commands.common import CONFIG_PATH, CommandError, add_config, config_path, new_command
from lxcfs_py.daemon import control
from lxcfs_py.printable import printable

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "reload",
        _reload,
        "let the daemon read its configuration anew, and say how that went",
        "Have the daemon read its configuration anew, wait until it has, and say so. Where the file has errors, they "
        "are printed, the exit code is 1, and the daemon goes on with what it had. What takes effect only after a "
        "restart is said.",
        [("lxcfs-py reload", "after a change of the configuration")],
    )
    add_config(parser, f"the daemon's (default: {CONFIG_PATH})")


def _reload(options: argparse.Namespace) -> int:
    path = config_path(options.config)
    if os.geteuid() != 0:
        raise CommandError("only root may ask the daemon to reload", "run this with sudo")
    try:
        errors, remarks = control.reload(path)
    except (control.NotRunningError, control.NotAnsweringError) as error:
        missing = "" if os.path.lexists(path) else "there is no such file, and "
        raise CommandError(f"{path} was not reloaded: {missing}{error}") from None
    for sentence in (*errors, *remarks):
        print(printable(sentence), file=sys.stderr)
    if errors:
        raise CommandError(f"{path} was not reloaded; the daemon goes on with what it had")
    print(f"{printable(path)} was reloaded")
    return 0
