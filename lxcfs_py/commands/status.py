"""lxcfs-py status: which container has which files."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from lxcfs_py.attach import attach
from lxcfs_py.commands.common import add_config, load_config, new_command, require_root

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "status",
        _status,
        "print which container has which of the enabled files",
        "Print for each container which of the enabled files it has: live, of another server, dead or none.",
        [("lxcfs-py status --json", "for scripts")],
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_config(parser)


def _status(options: argparse.Namespace) -> int:
    require_root()
    config = load_config(options.config)
    found = list(attach.status(config.mountpoint, config.files.enabled))
    if options.json:
        print(json.dumps([container._asdict() for container in found], indent=2))
        return 0
    rows = [("PID", "CGROUP", "FILES")]
    for container in found:
        states: dict[str, list[str]] = {}
        for name, state in container.files.items():
            states.setdefault(state, []).append(name.rpartition("proc/")[2])
        # Whoever has them all in one state needs no list of them.
        parts = [
            f"{state}: {' '.join(names)}" if len(states) > 1 else f"all {state}" for state, names in states.items()
        ]
        rows.append((str(container.pid), container.cgroup, container.error or "; ".join(parts)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for pid, cgroup, states_of_files in rows:
        print(f"{pid:<{widths[0]}}  {cgroup:<{widths[1]}}  {states_of_files}")
    return 0
