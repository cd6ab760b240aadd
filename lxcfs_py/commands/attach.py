"""lxcfs-py attach and detach: the files in containers that run already."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Callable

from lxcfs_py import files
from lxcfs_py.attach import attach
from lxcfs_py.commands.common import (
    CommandError,
    add_config,
    load_config,
    new_command,
    process_id,
    require_root,
)

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_SETTLING_SECONDS = 1.0

_Act = Callable[[int], list[attach.Outcome]]  # what to do with the container that a process is in


def add(commands: Commands) -> None:
    """Add the parsers of both commands."""
    attached = new_command(
        commands,
        "attach",
        _attach,
        "put the enabled files into containers that already run",
        "Mount the enabled files, or only those of --file, over the own files of containers that run already. A mount "
        "there whose server has ended is replaced.",
        [
            ("lxcfs-py attach --docker web", "into one container, by its name"),
            ("lxcfs-py attach --all", "into every container on this machine"),
        ],
    )
    _add_containers(attached)
    detached = new_command(
        commands,
        "detach",
        _detach,
        "take the files out of containers that run",
        "Take the files, or only those of --file, out of containers that run: they see the machine's again.",
        [("lxcfs-py detach --docker web --file meminfo", "one file of one container")],
    )
    _add_containers(detached)


def _add_containers(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--pid", type=process_id, help="the container that this process is in")
    which.add_argument("--docker", metavar="NAME", help="a container by Docker's name or id")
    which.add_argument("--podman", metavar="NAME", help="a container by Podman's name or id")
    which.add_argument("--all", action="store_true", help="every container on this machine")
    parser.add_argument("--file", action="append", help="only this file, e.g. meminfo; may be given again")
    add_config(parser)


def _attach(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    names = _chosen_files(options) or config.files.enabled
    return _for_containers(options, lambda pid: attach.attach(pid, config.mountpoint, names))


def _detach(options: argparse.Namespace) -> int:
    names = _chosen_files(options) or files.NAMES
    return _for_containers(options, lambda pid: attach.detach(pid, names))


def _chosen_files(options: argparse.Namespace) -> list[str]:
    names = [files.named(given) for given in options.file or ()]
    for given, name in zip(options.file or (), names):
        if name not in files.NAMES:
            raise CommandError(f"there is no file {given}; there is: {', '.join(files.NAMES)}")
    return names


def _for_containers(options: argparse.Namespace, act: _Act) -> int:
    """Do something with the containers that were named, and say of each what became of its files."""
    require_root()
    if options.all:
        found = _act_on_all(act)
    else:
        pid = _named_container(options)
        found = {pid: act(pid)}
    for pid, outcomes in found.items():
        counts = Counter(outcome.result for outcome in outcomes)
        print(f"{pid}: {', '.join(f'{count} {result}' for result, count in counts.items())}", flush=True)
        for outcome in filter(_is_refused, outcomes):
            file = f"/{outcome.name}: " if outcome.name else ""
            print(f"lxcfs-py: container {pid}: {file}{outcome.reason}", file=sys.stderr)
    return 1 if any(_is_refused(outcome) for outcomes in found.values() for outcome in outcomes) else 0


def _act_on_all(act: _Act) -> dict[int, list[attach.Outcome]]:
    """Do something with every container that lives; what is refused is tried again.

    A container that is only being made has no /proc of its own yet.
    """

    def attempt(pid: int) -> list[attach.Outcome]:
        try:
            return act(pid)
        except attach.EndedError:
            return []
        except attach.AttachError as error:
            return [attach.Outcome("", "refused", str(error))]

    found = {pid: attempt(pid) for pid in attach.containers()}
    unsettled = {pid: outcomes for pid, outcomes in found.items() if any(map(_is_refused, outcomes))}
    if unsettled:
        time.sleep(_SETTLING_SECONDS)
    for pid, before in unsettled.items():
        after = attempt(pid)
        if len(after) == len(before):
            after = [new if _is_refused(old) else old for old, new in zip(before, after)]
        found[pid] = after
    return {pid: outcomes for pid, outcomes in found.items() if outcomes}


def _is_refused(outcome: attach.Outcome) -> bool:
    return outcome.result == "refused"


def _named_container(options: argparse.Namespace) -> int:
    if options.pid is not None:
        return int(options.pid)
    if options.docker is not None:
        return attach.engine_pid("docker", options.docker)
    return attach.engine_pid("podman", options.podman)
