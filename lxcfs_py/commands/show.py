"""lxcfs-py show: what a process would read."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from lxcfs_py import files
from lxcfs_py.commands.common import CommandError, add_config, load_config, new_command, process_id
from lxcfs_py.daemon import service

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "show",
        _show,
        "print what a process would read, without any mount",
        "Print what a process reads of a file where it has it mounted. No daemon is needed: the text is computed here.",
        [
            ("lxcfs-py show meminfo --pid 4711", "the memory that process 4711 sees"),
            ("lxcfs-py show sys/devices/system/cpu/online --pid 4711", "its CPUs"),
        ],
    )
    parser.add_argument("file", metavar="FILE", help="e.g. meminfo, pressure/cpu or sys/devices/system/cpu/online")
    parser.add_argument("--pid", type=process_id, default=os.getpid(), help="the process (default: this one)")
    add_config(parser)


def _show(options: argparse.Namespace) -> int:
    name = files.named(options.file)
    if not os.path.exists(f"/proc/{options.pid}"):
        raise CommandError(f"there is no process {options.pid}")
    if name in files.DIRECTORIES:
        raise CommandError(f"{options.file} is a directory; name a file in it, such as {name}/online")
    try:
        text = service.show(load_config(options.config), f"/{name}", options.pid)
    except OSError as error:
        raise CommandError(
            f"{options.file} cannot be shown ({error.strerror}); there is: {', '.join(files.NAMES)}"
        ) from None
    sys.stdout.buffer.write(text)
    return 0
