"""lxcfs-py check: what a configuration says."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lxcfs_py import config as configuration
from lxcfs_py.commands.common import CONFIG_GIVEN, CONFIG_PATH, add_config, load_config, new_command, resolved
from lxcfs_py.config import Config
from lxcfs_py.daemon import engines

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "check",
        _check,
        "print the effective configuration, or all errors in it",
        "Print every key of the configuration with the value that a daemon would go by. Where the file has errors, "
        "print each of them, with its line and what is allowed; the exit code is 1 then. Nothing is changed. Where the "
        "engine fusepy would serve, say what it does not promise; where a policy enables what is not enabled for all, "
        "what comes of that.",
        [
            ("lxcfs-py check", f"what {CONFIG_PATH} says"),
            ("lxcfs-py check ./lxcfs.toml && cp lxcfs.toml /etc", "look at a file before it is put in place"),
        ],
    )
    default = f"default: {CONFIG_PATH} if it is there"
    which = parser.add_mutually_exclusive_group()
    which.add_argument("file", type=CONFIG_GIVEN, metavar="FILE", nargs="?", help=default)
    add_config(which, "the same, as the other commands take it")


_INPUT = "/dev/stdin"


def _of_input() -> Config:
    """Return the configuration on the standard input, which may be a pipe: a daemon could not read that anew."""
    return resolved(configuration.read(sys.stdin.buffer, _INPUT))


def _not_for_all(config: Config) -> Iterator[str]:
    """Yield what comes of policies that enable files which are not enabled for all."""
    for number, policy in enumerate(config.policy, 1):
        enabled = dict(policy.settings).get("files.enabled", ())
        missing = [name for name in enabled if name not in config.files.enabled]
        if missing:
            yield (
                f"policy {number} enables what files.enabled does not: {', '.join(missing)}; its containers see their "
                "own figures there, but have to mount them by themselves"
            )


def _check(options: argparse.Namespace) -> int:
    file = options.file or options.config
    config = load_config(file) if file != _INPUT else _of_input()
    print(configuration.dump(config), end="")
    # What "auto" means to the daemon is known to who may mount.
    if config.fuse.engine == "fusepy" or (os.geteuid() == 0 and engines.chosen(config.fuse.engine)[0] == "fusepy"):
        print(f"lxcfs-py: fuse.engine: {engines.FUSEPY_ENDS}", file=sys.stderr)
    for sentence in _not_for_all(config):
        print(f"lxcfs-py: {sentence}", file=sys.stderr)
    return 0
