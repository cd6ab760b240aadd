"""lxcfs-py run: mount and serve."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import signal
from typing import TYPE_CHECKING

from lxcfs_py import isolated, log
from lxcfs_py.commands.common import CommandError, add_config, add_mountpoint, config_path, load_config, new_command
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.daemon import control, degraded, last_config, service, systemd
from lxcfs_py.engine import keeper, session, store
from lxcfs_py.errors import report
from lxcfs_py.linux import mount_table, mountpoint, signals

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

logger = logging.getLogger(__name__)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "run",
        _run,
        "mount and serve, in the foreground",
        "Mount the filesystem and serve it until SIGTERM or SIGINT; SIGHUP reloads the configuration. A mount that a "
        "dead server left is cleared away. Where another lxcfs-py serves the mountpoint already, it hands over to this "
        "one, and readers notice nothing.",
        [
            ("lxcfs-py run", "serve at the configured mountpoint"),
            ("lxcfs-py run --keep /mnt/views", "serve elsewhere; the mount outlives a server that dies"),
        ],
    )
    add_config(parser)
    add_mountpoint(parser, "where to mount", "mountpoint", metavar="MOUNTPOINT", nargs="?")
    parser.add_argument(
        "--keep", action="store_true", help="run it under a process that starts it again when it dies or hangs"
    )
    parser.add_argument(
        "--stay", action="store_true", help="with --keep: end when told to, not when another server has taken over"
    )


def _refuse_another_mountpoint(options: argparse.Namespace) -> None:
    """CommandError where the pods of before have served elsewhere: the containers' files are of that mount."""
    try:
        wanted = options.mountpoint or load_config(options.config).mountpoint
    except ConfigError:
        return  # the server has more to say of that
    for mount in mount_table.read():
        if mount.fstype == mountpoint.FSTYPE and mount.mountpoint != wanted and session.was_offered(mount.mountpoint):
            raise CommandError(
                f"mountpoint is {wanted}, and containers of this node have their files of {mount.mountpoint}; allowed: "
                f"{mount.mountpoint}, until that is removed",
                "kubectl apply --kustomize kubernetes/remove",
            )


def _default_place() -> str:
    with contextlib.suppress(mountpoint.MountError, OSError):
        return mountpoint.resolve(Config().mountpoint)
    return Config().mountpoint


def _name_predecessor(place: str, file: str) -> None:
    """Log which daemon serves already, and by which configuration each goes: this one may take over from it."""
    # An older version may tell less.
    with contextlib.suppress(control.NotRunningError, control.NotAnsweringError, LookupError, TypeError):
        told = control.ask(place)
        theirs = told["configuration"]["file"] or "options"
        own = file if os.path.lexists(file) else "the defaults"
        logger.info("%s is served by process %d, by %s; this one goes by %s", place, told["pid"], theirs, own)


def _run(options: argparse.Namespace) -> int:
    log.to_stderr()
    if options.stay and not options.keep:
        options.parser.error("--stay requires --keep")
    options.config = options.config and os.path.abspath(options.config)
    place = options.mountpoint
    os.chdir("/")
    isolated.clean_environment()
    if options.stay:
        _refuse_another_mountpoint(options)
    if options.keep:
        named = ["--config", options.config] if options.config else []
        return keeper.keep(isolated.command("lxcfs_py", "run", *named, *filter(None, [place])), options.stay)

    signals.ignore_all_but(signal.SIGTERM, signal.SIGINT)
    unit = systemd.Unit()
    path = config_path(options.config)

    def load() -> Config:
        return load_config(options.config, place)

    try:
        config = load()
    except ConfigError as error:
        kept = store.inherited().session(place or _default_place())
        if kept is None:
            report(error)
            return os.EX_CONFIG  # systemd need not try again
        before = last_config.recall(kept.mountpoint)
        config = before or dataclasses.replace(Config(), mountpoint=kept.mountpoint)
        what = "the configuration of before" if before else "the defaults"
        degraded.enter("configuration", f"{error}; serving with {what}, because containers use the mount")
    if store.inherited().session(config.mountpoint) is None:  # else the server before has ended
        _name_predecessor(config.mountpoint, path)
    return service.serve(config, source=service.Source(path, load, names_mountpoint=place is None), unit=unit)
