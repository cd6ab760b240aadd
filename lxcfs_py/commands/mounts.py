"""lxcfs-py mounts: the files in a container's definition."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from lxcfs_py.commands.common import add_config, load_config, new_command
from lxcfs_py.runtimes import bind_snippets, shortest

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "mounts",
        _mounts,
        "print what binds the enabled files into a container",
        "Print flags, or a piece of a container's definition, that mount the enabled files over the container's own, "
        "in the terms of an engine. Files that the engine's runtime refuses are left out.\n\nWhere the engine on this "
        "machine knows the Container Device Interface, and lxcfs-py cdi was run, it is one device; where its pods get "
        "the files by NRI, it is nothing. For another machine, say which version its engine has: files that this "
        "machine's kernel does not have are left out otherwise.",
        [
            ("docker run -m 256m $(lxcfs-py mounts docker) debian free -m", "a container of Docker's with the files"),
            ("lxcfs-py mounts podman --syscalls", "the same, and what programs ask the kernel"),
            ("lxcfs-py mounts kubernetes", "what goes into a pod's specification"),
            ("lxcfs-py mounts docker --for-version 28.5", "the shortest that this version takes"),
        ],
    )
    parser.add_argument("runtime", choices=bind_snippets.RUNTIMES, help="in whose terms")
    parser.add_argument(
        "--for-version",
        metavar="VERSION",
        type=_version_given,
        help="of the engine, in place of the one here; kubernetes: of containerd or CRI-O",
    )
    parser.add_argument(
        "--syscalls",
        action="store_true",
        help="also the seccomp profile with which the daemon answers sysinfo(2) and sched_getaffinity(2)",
    )
    add_config(parser)


def _version_given(text: str) -> str:
    """Return an engine's version. argparse.ArgumentTypeError for what is none."""
    try:
        shortest.parsed(text)
    except shortest.VersionError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _mounts(options: argparse.Namespace) -> int:
    if options.syscalls and options.runtime not in bind_snippets.PROFILES:
        allowed = ", ".join(bind_snippets.PROFILES)
        options.parser.error(f"{options.runtime} does not take the seccomp profile; allowed with --syscalls: {allowed}")
    config = load_config(options.config)
    if options.syscalls:
        shortest.check_listener(options.runtime, options.for_version)
    shorter = shortest.shortest(options.runtime, config, options.for_version)
    elsewhere = options.for_version is not None
    text = bind_snippets.snippet(options.runtime, config, options.syscalls, shorter.text if shorter else "", elsewhere)
    print(text, end="")
    note = bind_snippets.left_out(options.runtime, config, elsewhere)
    if note and note not in text:
        print(f"lxcfs-py: {note}", file=sys.stderr)
    if shorter and options.for_version:
        print(f"lxcfs-py: on that machine, once: {shorter.needs}", file=sys.stderr)
    return 0
