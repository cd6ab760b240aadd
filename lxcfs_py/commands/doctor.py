"""lxcfs-py doctor: what could be wrong, and what to do."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lxcfs_py import files
from lxcfs_py.attach import attach
from lxcfs_py.commands import checks, probe, unserved
from lxcfs_py.commands.checks import Finding
from lxcfs_py.commands.common import (
    CommandError,
    add_config,
    add_container,
    chosen_process,
    new_command,
    require_root,
    served_config,
    text_width,
)
from lxcfs_py.commands.sources import Subject
from lxcfs_py.config import Config
from lxcfs_py.printable import printable

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_SHOWN = 3  # of the files that nobody serves


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "doctor",
        _doctor,
        "check one by one what could be wrong, and say what to do",
        "Check what the daemon needs of this host, what is in its way, and which containers are without files and why. "
        "Each check says what was found, and what to do where that is not as it should be. The exit code is 1 where "
        "there is a problem.\n\nWith a container, ask from inside of it by each way that programs ask (files, system "
        "calls, sysfs, clock), and put what it is told beside what is right. Nothing is needed in its image.",
        [
            ("lxcfs-py doctor", "the whole host"),
            ("lxcfs-py doctor --container web", "what the programs in one container are told"),
        ],
    )
    add_container(parser, required=False)
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_config(parser)


def _doctor(options: argparse.Namespace) -> int:
    require_root()
    config = served_config(options.config)
    pid = chosen_process(options)
    found = list(checks.all_of(config) if pid is None else _of_container(pid, config))
    if options.json:
        print(json.dumps([finding._asdict() for finding in found], indent=2))
    else:
        print(*map(_shown, found), sep="\n")
    return 1 if any(finding.verdict == checks.PROBLEM for finding in found) else 0


def _of_container(pid: int, config: Config) -> Iterator[Finding]:
    try:
        subject = Subject(pid, config)
        lost = attach.unserved(subject.init, files.NAMES)
        for (state, device), paths in lost.items():
            mount = unserved.where(device) or device
            found = f"{_shortened(paths)}: the server (mount {mount}) {unserved.EFFECTS[state]}"
            advice = unserved.cure(state, device, f"--pid {subject.init}", config)
            yield Finding("files", checks.PROBLEM, found, advice)
        for answer in probe.answers(subject, [path for paths in lost.values() for path in paths]):
            told = f"{answer.way} says {answer.told}"
            if answer.is_right:
                yield Finding(answer.question, checks.OK, told)
            else:
                yield Finding(answer.question, checks.WARNING, f"{told}; {answer.right} is right", answer.cure)
    except OSError as error:
        raise CommandError(f"the container of process {pid} cannot be entered: {error.strerror}") from None


def _shortened(paths: Sequence[str]) -> str:
    return ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


def _shown(finding: Finding) -> str:
    first = f"{finding.verdict:<8} {finding.check}: "
    indent = " " * 9
    text = textwrap.fill(
        printable(finding.found), text_width(), initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )
    if finding.advice:
        text += "\n" + textwrap.fill(
            printable(finding.advice),
            text_width(),
            initial_indent=f"{indent}-> ",
            subsequent_indent=f"{indent}   ",
            break_on_hyphens=False,
        )
    return text
