"""lxcfs-py selftest: do all the ways to ask agree?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from lxcfs_py import config as configuration
from lxcfs_py.commands.common import add_config, add_mountpoint, new_command, require_root, served_mountpoint
from lxcfs_py.commands.sources import Subject
from lxcfs_py.daemon import control
from lxcfs_py.errors import LxcfsError
from lxcfs_py.runtimes import selftest

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "selftest",
        _selftest,
        "ask a container everything in every way, and say what does not agree",
        "Make a small container with limits, keep it busy for some seconds, ask it each question in every way that the "
        "files answer, and hold the answers against each other, its cgroup and the daemon's configuration. What is not "
        "enabled is not asked. The exit code is 1 where one is wrong.",
        [
            ("lxcfs-py selftest", "of the running daemon"),
            ("lxcfs-py selftest --mountpoint /var/lib/lxcfs-c", "of another lxcfs that is mounted there"),
        ],
    )
    add_mountpoint(parser, "where the files are")
    add_config(parser)


def _selftest(options: argparse.Namespace) -> int:
    require_root()
    place = served_mountpoint(options)
    questions = selftest.ask(Path(place), _configured(place))
    failed = unknown = 0
    for question in questions:
        if question.right is None:
            unknown += 1
            print(f"unknown  {question.text}")
            continue
        wrong = question.wrong()
        failed += bool(wrong)
        print(f"{'differs' if wrong else 'agrees':<8} {question.text} {_short(question.right)}")
        for way in wrong:
            print(f"{'':<9}{way}: {_short(question.answers[way])}")
    asked = len(questions) - unknown
    print(f"{asked - failed} of {asked} agree")
    return 1 if failed else 0


def _configured(place: str) -> Optional[selftest.Configured]:
    """Return what tells how a mountpoint's daemon serves a container, None for another lxcfs, which tells nothing."""
    try:
        settings = control.ask(place)["configuration"].get("settings", "")
    except LxcfsError:
        return None
    config = configuration.parse(settings.encode(), "the daemon's configuration")
    return lambda init: Subject(init, config).config


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
