"""lxcfs-py show: what a process would read."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Optional

from lxcfs_py import files
from lxcfs_py.commands.common import CommandError, add_config, add_container, chosen_process, new_command, served_config
from lxcfs_py.daemon import control, service

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "show",
        _show,
        "print what a process would read, without any mount",
        "Print what a container's processes read of a file where it has it mounted. The daemon is asked; where none "
        "runs, the text is computed here, with no load averages, which take time to gather.",
        [
            ("lxcfs-py show meminfo --container web", "the memory that the container web sees"),
            ("lxcfs-py show sys/devices/system/cpu/online --pid 4711", "its CPUs"),
        ],
    )
    parser.add_argument("file", metavar="FILE", help="e.g. meminfo, pressure/cpu or sys/devices/system/cpu/online")
    add_container(parser, required=False)
    add_config(parser)


def _show(options: argparse.Namespace) -> int:
    name = files.named(options.file)
    pid = chosen_process(options) or os.getpid()
    try:
        text = text_of(name, pid, options.config)
    except IsADirectoryError:
        raise CommandError(f"{options.file!r} is a directory; name a file in it") from None
    except OSError as error:
        raise CommandError(
            f"{options.file!r} cannot be shown ({error.strerror}); there is: {', '.join(files.NAMES)}"
        ) from None
    sys.stdout.buffer.write(text)
    return 0


def text_of(name: str, pid: int, config_file: Optional[str]) -> bytes:
    """Return what a process reads of a file: the daemon's word, or where none runs, what is computed here.

    UnplacedError, OSError.
    """
    config = served_config(config_file)
    try:
        text = control.read(config.mountpoint, pid, f"/{name}")
    except (control.NotRunningError, control.NotAnsweringError):
        text = b""
    return text or service.show(config, f"/{name}", pid)
