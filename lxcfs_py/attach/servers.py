"""Whether the servers of mounts of this kind live: each is asked once, by one of those who have files of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import NamedTuple

from lxcfs_py.attach import places, processes
from lxcfs_py.attach.errors import SilentError
from lxcfs_py.attach.visits import Ask, Visits
from lxcfs_py.linux.mountpoint import is_dead

LIVE, DEAD, SILENT = "live", "dead", "silent"

_MOST_ASKED = 8  # users of a server: one that ends, or that lies, does not decide for the others


class Use(NamedTuple):
    """A file of a server's mount that a process sees."""

    device: str
    pid: int
    path: str


def states(uses: Iterable[Use], visits: Visits) -> Mapping[str, str]:
    """Return for each device LIVE, DEAD, or SILENT for one that does not answer; none for what cannot be told."""
    waiting: dict[str, list[Use]] = {}
    for use in uses:
        waiting.setdefault(use.device, []).append(use)
    found: dict[str, str] = {}
    for number in range(_MOST_ASKED):
        asked = [of[number] for device, of in waiting.items() if device not in found and number < len(of)]
        answers = processes.each([(use.pid, partial(_ask, use)) for use in asked], visits)
        for use, answer in zip(asked, answers):
            if isinstance(answer, SilentError) and answer.device == use.device:
                found[use.device] = SILENT
            elif answer in (LIVE, DEAD):
                found[use.device] = answer
    return found


def state(device: str, path: str) -> str:
    """Return how the server of a mount in this mount namespace is: LIVE, DEAD or SILENT."""
    try:
        return str(Visits().one(partial(_look, device, path)))
    except SilentError as error:
        if error.device != device:  # who was to look was killed, or there was no time for it
            raise
        return SILENT


def _look(device: str, path: str, ask: Ask) -> str:
    ask(device, f"the server of {path}")
    return DEAD if is_dead(path) else LIVE


def _ask(use: Use, process: int, ask: Ask) -> str:
    place, device = places.tree_of(process, ask).open(use.path)
    if device != use.device:  # it has gone meanwhile
        return ""
    ask(device, f"the server of {ascii(use.path)[1:-1]}")
    return DEAD if is_dead(f"/proc/self/fd/{place}") else LIVE
