"""lxcfs-py attach and detach: the files in containers that run already."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Callable

from lxcfs_py import files
from lxcfs_py.attach import attach, running
from lxcfs_py.commands.common import (
    add_config,
    mountpoint_even_if_broken,
    new_command,
    process_id,
    require_root,
    served_config,
)
from lxcfs_py.printable import printable
from lxcfs_py.runtimes import names

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_SETTLING_SECONDS = 1.0

_Act = Callable[[list[int]], list[Any]]
"""What to do with some processes' containers: of each the outcomes of its files, or an AttachError."""


def add(commands: Commands) -> None:
    """Add the parsers of both commands."""
    attached = new_command(
        commands,
        "attach",
        _attach,
        "put the enabled files into containers that already run",
        "Mount the enabled files, or only those of --file, over the own files of containers that run already. "
        "What a server that has ended has left there is replaced; what another one serves is kept, unless --replace is "
        "given. A container in which a server of such a mount runs is left alone; with --all, one that opts out is "
        "too.",
        [
            ("lxcfs-py attach web", "into one container, by its name"),
            ("lxcfs-py attach --all --dry-run", "what would be done with every container on this machine"),
            ("lxcfs-py attach --all --dead", "heal the containers whose files have lost their server"),
        ],
    )
    _add_containers(attached)
    attached.add_argument("--replace", action="store_true", help="also what another server has there that lives")
    detached = new_command(
        commands,
        "detach",
        _detach,
        "take the files out of containers that run",
        "Take the files, or only those of --file, out of containers that run: they see the machine's again. Files of "
        "another server that lives are kept, unless --replace is given.",
        [("lxcfs-py detach web --file meminfo", "one file of one container")],
    )
    _add_containers(detached)
    detached.add_argument("--replace", action="store_true", help="also what is another server's that lives")


def _add_containers(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("name", metavar="NAME", nargs="?", help="a container by its name, or the start of its id")
    which.add_argument("--pid", type=process_id, help="the container that this process is in")
    which.add_argument("--docker", metavar="NAME", help="a container by Docker's name or id")
    which.add_argument("--podman", metavar="NAME", help="a container by Podman's name or id")
    which.add_argument("--all", action="store_true", help="every container on this machine")
    parser.add_argument("--dead", action="store_true", help="only files whose server has ended")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, and say what would be done")
    parser.add_argument(
        "--file", action="append", type=_file_given, help="only this file, e.g. meminfo; may be given again"
    )
    add_config(parser)


def _attach(options: argparse.Namespace) -> int:
    config = served_config(options.config)
    chosen = options.file or _there(config.files.enabled)
    return _for_containers(options, lambda pids: attach.attach_all(pids, config.mountpoint, chosen, _wanted(options)))


def _detach(options: argparse.Namespace) -> int:
    mountpoint = mountpoint_even_if_broken(options.config)
    chosen = options.file or _there(files.NAMES)
    return _for_containers(options, lambda pids: attach.detach_all(pids, mountpoint, chosen, _wanted(options)))


def _wanted(options: argparse.Namespace) -> attach.Wanted:
    return attach.Wanted(options.replace, options.dead, options.dry_run, opt_outs=options.all)


def _there(names: Iterable[str]) -> list[str]:
    """Leave out what this kernel does not have: nobody misses it."""
    return [name for name in names if os.path.lexists(f"/{name}")]


def _file_given(text: str) -> str:
    """Return the name of a file. argparse.ArgumentTypeError where there is none."""
    name = files.named(text)
    if name not in files.NAMES:
        raise argparse.ArgumentTypeError(f"there is no file {text!r}; there is: {', '.join(files.NAMES)}")
    return name


def _for_containers(options: argparse.Namespace, act: _Act) -> int:
    """Do something with the containers that were named, and say of each what became of its files."""
    require_root()
    if options.all:
        found = _act_on_all(act)
    else:
        pids = attach.targets(_named_container(options))
        answers = act(pids)
        if isinstance(answers[0], attach.AttachError):
            raise answers[0]
        found = {pid: answer for pid, answer in zip(pids, answers) if not isinstance(answer, attach.EndedError)}
    will_be = "would be " if options.dry_run else ""
    known = names.Names()
    for pid, answer in found.items():
        called = f"{pid} ({_name(pid, known)})" if options.all else str(pid)
        if isinstance(answer, attach.LeftAloneError):
            print(f"{called}: left alone: {printable(str(answer))}", flush=True)
            continue
        counts = Counter(outcome.result for outcome in answer) if isinstance(answer, list) else {"refused": 1}
        became = ", ".join(f"{count} {will_be}{result}" for result, count in counts.items())
        print(f"{called}: {became}", flush=True)
        for name, reason in _refusals(answer):
            print(f"lxcfs-py: container {pid}: {f'/{name}: ' if name else ''}{printable(reason)}", file=sys.stderr)
    return 1 if any(map(_refusals, found.values())) else 0


def _act_on_all(act: _Act) -> dict[int, Any]:
    """Do something with every container that lives and does not opt out; what is refused is tried again.

    A container that is only being made has no /proc of its own yet.
    """
    found: dict[int, Any] = {}
    wanted = []
    known = names.Names()
    for pids in attach.all_targets().values():
        for pid in pids:
            reason = _opt_out(pid, known)
            if reason:
                found[pid] = attach.LeftAloneError(reason)
            else:
                wanted.append(pid)
    found.update(zip(wanted, act(wanted)))
    unsettled = [pid for pid in wanted if _refusals(found[pid])]
    if unsettled:
        time.sleep(_SETTLING_SECONDS)
        for pid, after in zip(unsettled, act(unsettled)):
            before = found[pid]
            if isinstance(before, list) and isinstance(after, list):
                after = [new if old.result == "refused" else old for old, new in zip(before, after)]
            found[pid] = after
    return {pid: answer for pid, answer in sorted(found.items()) if not isinstance(answer, attach.EndedError)}


def _opt_out(pid: int, known: names.Names) -> str:
    try:
        identity = known.of(running.cgroup(pid))
    except OSError:  # it has ended
        return ""
    return identity.opt_out() if identity else ""


def _name(pid: int, known: names.Names) -> str:
    """Return what a container is called, its cgroup where no engine has it."""
    try:
        path = running.cgroup(pid)
    except OSError:
        return "ended"
    identity = known.of(path)
    return printable(identity.name if identity else path)


def _refusals(answer: Any) -> list[tuple[str, str]]:
    """Return which files were refused, and why; "" for all of a container's."""
    if isinstance(answer, list):
        return [(outcome.name, outcome.reason) for outcome in answer if outcome.result == "refused"]
    return [] if isinstance(answer, (attach.EndedError, attach.LeftAloneError)) else [("", str(answer))]


def _named_container(options: argparse.Namespace) -> int:
    if options.pid is not None:
        return int(options.pid)
    if options.name is not None:
        return names.find(options.name, running.containers(running.processes()))
    if options.docker is not None:
        return attach.engine_pid("docker", options.docker)
    return attach.engine_pid("podman", options.podman)
