"""lxcfs-py cdi: the files as a device of the Container Device Interface."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from lxcfs_py.commands.common import CommandError, add_config, add_output, load_config, new_command, write
from lxcfs_py.printable import printable
from lxcfs_py.runtimes import cdi

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "cdi",
        _cdi,
        f"write a CDI specification, for --device {cdi.KIND}=all",
        "Write a specification of the Container Device Interface, by which Docker, Podman and Kubernetes's engines "
        f"mount the enabled files where a container asks for the device {cdi.KIND}=all, or one file where it asks for "
        f"{cdi.KIND}=meminfo. Write it anew after a change of the enabled files or the mountpoint.",
        [
            ("lxcfs-py cdi", f"write {cdi.PATH}"),
            (f"podman run --device {cdi.KIND}=all debian free -m", "a container that has the files by it"),
        ],
    )
    add_output(parser, cdi.PATH)
    add_config(parser)


def _cdi(options: argparse.Namespace) -> int:
    specification = cdi.specification(load_config(options.config))
    devices = len(specification["devices"])
    if devices == 1:
        raise CommandError("a CDI specification of no files cannot be: enable some in the configuration")
    path = options.output
    write(path, json.dumps(specification, indent=2) + "\n")
    if path:
        print(f"{printable(str(path))}: the device {cdi.KIND}=all, and {devices - 1} of one file each")
    return 0
