"""lxcfs-py top: all containers at a glance."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import curses
import json
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Callable

from lxcfs_py.cgroup import try_to_look_aside
from lxcfs_py.commands.common import CommandError, add_config, new_command, require_root, served_config
from lxcfs_py.commands.glance import HISTORY, Glance, Row

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_SECONDS = 2.0
_ONCE_SECONDS = 1.0  # over which what a second is is measured, with --once

_LAST_BYTE = 0xFF  # above which are the keys that are no letters

_BARS = " ▁▂▃▄▅▆▇█"

_KEYS: dict[str, Callable[[Row], Any]] = {
    "cpu": lambda row: -row.cpu,
    "memory": lambda row: -row.memory,
    "load": lambda row: -row.load,
    "io": lambda row: -row.io,
    "pressure": lambda row: -row.pressure,
    "reads": lambda row: -row.reads,
    "name": lambda row: row.name,
}
"""What the rows can be sorted by; the first letter is the key to press."""


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "top",
        _top,
        "all containers at a glance: what each sees, and uses of that",
        "Show every container with what it sees: CPU used against its CPUs, memory against its limit, swap, load, I/O, "
        "pressure, whether its files are live, dead or none, and how often it reads them. In the terminal, the first "
        "letter of a column sorts by it, / filters by name, and q ends it. Without a terminal, it prints one snapshot.",
        [
            ("lxcfs-py top", "look on"),
            ("lxcfs-py top --once --sort memory", "one snapshot, the largest first"),
            ("lxcfs-py top --json", "one snapshot, for scripts"),
        ],
    )
    parser.add_argument("--once", action="store_true", help="print one snapshot and end")
    parser.add_argument("--json", action="store_true", help="print one snapshot as JSON and end")
    parser.add_argument("--sort", choices=_KEYS, default="cpu", help="what to sort by (default: cpu)")
    parser.add_argument("--filter", metavar="TEXT", default="", help="only containers that have this in their names")
    add_config(parser)


def _top(options: argparse.Namespace) -> int:
    require_root()
    glance = Glance(served_config(options.config))
    try_to_look_aside()
    if options.once or options.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        glance.rows()
        time.sleep(_ONCE_SECONDS)
        rows = _chosen(glance.rows(), options.filter, options.sort)
        if options.json:
            print(json.dumps([row.as_json() for row in rows], indent=2))
        else:
            print(*lines(rows), sep="\n")
        return 0
    _look_on(glance, options.sort, options.filter)
    return 0


def _look_on(glance: Glance, key: str, wanted: str) -> None:
    """Draw the containers again and again, until q. CommandError for a terminal that nobody knows."""
    try:
        curses.setupterm()
    except curses.error:
        raise CommandError(
            f'the terminal is of a kind that is not known here (TERM is "{os.environ.get("TERM", "")}")',
            "lxcfs-py top --once prints one snapshot, on any terminal",
        ) from None
    try:
        curses.wrapper(lambda screen: _Screen(screen, glance, key, wanted).run())
    except curses.error:
        if not _has_gone():  # else it can be told nothing more
            raise


def _chosen(rows: list[Row], wanted: str, key: str) -> list[Row]:
    return sorted((row for row in rows if wanted in row.name), key=_KEYS[key])


def _title(says: str, ends: str, width: int) -> str:
    """Return the first line, in which the keys have their names where there is room."""
    named = f"{says}   {' '.join(f'{key[0]}:{key}' for key in _KEYS)} {ends}"
    return named if len(named) <= width else f"{says}   sort:{''.join(key[0] for key in _KEYS)} {ends}"[:width]


def lines(rows: list[Row], width: int = 200) -> Iterator[str]:
    """Yield a table that fits so many columns: names lose their beginning, and what is least asked for is left out."""
    narrow = width < 110
    room = max((len(row.name) for row in rows), default=9)
    named = max(9, min(room, width - (60 if narrow else 84 + HISTORY)))
    header = f"{'CONTAINER':<{named}} {'CPU':>5}/{'CPUS':<5} {'MEMORY':>7}/{'LIMIT':<7}"
    header += "" if narrow else f" {'SWAP':>7} {'IO/S':>7} {'PSI%':>5}"
    header += f" {'LOAD':>6} {'READS':>7}" + ("" if narrow else f" {'CPU':<{HISTORY}}") + " FILES"
    yield header[:width]
    for row in rows:
        name = row.name if len(row.name) <= named else f"…{row.name[1 - named :]}"
        line = f"{name:<{named}} {row.cpu:>5.2f}/{row.cpus:<5g} {_size(row.memory):>7}/{_size(row.memory_total):<7}"
        if not narrow:
            line += f" {_size(row.swap):>7} {_size(row.io):>7} {row.pressure:>5.1f}"
        line += f" {row.load:>6.2f}"
        line += f" {row.reads:>7.1f}"
        if not narrow:
            line += f" {_sparkline(row.history):<{HISTORY}}"
        yield f"{line} {row.files}"[:width]


def _size(number: float) -> str:
    for unit, name in ((1 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")):
        if number >= unit:
            shown = number / unit
            return f"{shown:.0f}{name}" if shown >= 99.95 else f"{shown:.3g}{name}"  # no 1e+03
    return f"{number:.0f}"


def _sparkline(shares: list[float]) -> str:
    return "".join(_BARS[round(share * (len(_BARS) - 1))] for share in shares)


def _has_gone() -> bool:
    """Tell whether nobody is at the terminal any more, which then says at once that nothing was pressed."""
    poll = select.poll()
    poll.register(0, 0)
    return bool(poll.poll(0))  # POLLHUP


class _Screen:
    """The terminal."""

    def __init__(self, screen: Any, glance: Glance, key: str, wanted: str) -> None:
        self._screen, self._glance, self._key, self._wanted = screen, glance, key, wanted
        self._typing = False

    def run(self) -> None:
        with contextlib.suppress(curses.error):  # a terminal that cannot hide it, such as a vt100
            curses.curs_set(0)
        decoder = codecs.getincrementaldecoder(self._screen.encoding)("ignore")
        rows = self._glance.rows()
        looked = time.monotonic()
        while True:
            self._draw(_chosen(rows, self._wanted, self._key))
            self._screen.timeout(max(int((looked + _SECONDS - time.monotonic()) * 1000), 0))
            pressed = self._screen.getch()
            if pressed == curses.ERR:  # nothing
                if _has_gone():
                    return
                rows = self._glance.rows()
                looked = time.monotonic()
                continue
            # A byte that is part of no letter is none: get_wch would go on to wait for what follows it.
            if not self._press(pressed if pressed > _LAST_BYTE else decoder.decode(bytes([pressed]))):
                return

    def _press(self, pressed: Any) -> bool:
        """Do what a key says; False to end."""
        if self._typing:
            if pressed in ("\n", "\x1b"):
                self._typing = False
            elif pressed in ("\x7f", "\b", curses.KEY_BACKSPACE):
                self._wanted = self._wanted[:-1]
            elif isinstance(pressed, str) and pressed.isprintable():
                self._wanted += pressed
        elif pressed == "q":
            return False
        elif pressed == "/":
            self._typing, self._wanted = True, ""
        else:
            self._key = next((key for key in _KEYS if key[0] == pressed), self._key)
        return True

    def _draw(self, rows: list[Row]) -> None:
        height, width = self._screen.getmaxyx()
        wanted = f"/{self._wanted}{'_' if self._typing else ''}" if self._typing or self._wanted else "/:filter"
        title = _title(f"{len(rows)} containers, by {self._key}", f"{wanted} q:quit", width - 1)
        self._screen.erase()
        for number, line in enumerate([title, *lines(rows, width - 1)][: height - 1]):
            self._screen.addstr(number, 0, line[: width - 1], curses.A_REVERSE if number == 1 else curses.A_NORMAL)
        self._screen.refresh()
