"""lxcfs-py hook: an OCI hook."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lxcfs_py.attach import hook
from lxcfs_py.commands.common import add_config, new_command, path_given, served_config
from lxcfs_py.printable import printable

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "hook",
        _hook,
        "be an OCI createContainer hook: bind the enabled files for a container",
        "For container runtimes to call: read a container's state from standard input and bind the enabled files over "
        "the container's own, before its program starts. It always ends with 0, since a container would not start "
        "otherwise: what went wrong is on standard error.",
        [
            (
                "podman run --annotation lxcfs.py/views=true debian free -m",
                "a container for which Podman calls the hook, where a package has installed it",
            )
        ],
    )
    parser.add_argument(
        "--root",
        metavar="DIRECTORY",
        type=path_given("root: name a directory"),
        help="of a container that is being made: read no state (LXC's hook)",
    )
    add_config(parser)


def _hook(options: argparse.Namespace) -> int:
    """Bind the files, and return 0 whatever goes wrong: the runtime would start no container otherwise."""
    try:
        config = served_config(options.config)
        for outcome in hook.bind(options.root, config) if options.root else hook.run(sys.stdin.buffer, config):
            if outcome.result == "refused":
                reason = printable(outcome.reason)
                print(f"lxcfs-py: /{outcome.name} of this container is the machine's: {reason}", file=sys.stderr)
    except Exception as error:
        print(f"lxcfs-py: this container starts with the machine's files: {printable(str(error))}", file=sys.stderr)
    return 0
