"""The table of lxcfs-py top."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from lxcfs_py.commands import top
from lxcfs_py.commands.glance import Row


def row(name, **other):
    known = {"cpu": 0.5, "cpus": 2.0, "memory": 1 << 28, "memory_total": 1 << 30, "swap": 0, "load": 1.25, "io": 2048.0}
    rest = {"engine": "docker", "pid": 7, "pressure": 3.5, "files": "live", "reads": 4.0, "history": [0.0, 0.5, 1.0]}
    return Row(name=name, **{**known, **rest, **other})


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_line_fits_the_terminal_and_says_how_the_files_are(width):
    for line in top.lines([row("a"), row("a-name-that-is-much-longer-than-there-is-room-for" * 4)], width):
        assert len(line) <= width
        assert line.endswith(("FILES", "live"))


def test_a_wide_terminal_shows_io_pressure_and_a_sparkline():
    header, line = top.lines([row("web")], 200)
    for column, shown in (("MEMORY/LIMIT", "256M/1G"), ("IO/S", "2K"), ("PSI%", "3.5"), ("LOAD", "1.25")):
        assert column in header
        assert shown in line
    assert " ▄█" in line


def test_rows_are_sorted_and_filtered():
    rows = [row("web-1", cpu=0.1, memory=9), row("web-2", cpu=0.9, memory=1), row("db", cpu=0.5, memory=5)]
    assert [each.name for each in top._chosen(rows, "", "cpu")] == ["web-2", "db", "web-1"]
    assert [each.name for each in top._chosen(rows, "web", "memory")] == ["web-1", "web-2"]


def test_each_key_sorts_by_another_column():
    assert len({key[0] for key in top._KEYS}) == len(top._KEYS)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (1023, "1023"), (1024, "1K"), (1000 << 10, "1000K"), (1023 << 10, "1023K"), (3 << 29, "1.5G")],
)
def test_sizes_have_no_exponents(number, shown):
    assert top._size(number) == shown


WITHOUT_CONTAINERS = """
from lxcfs_py import errors
from lxcfs_py.commands import top

class Glance:
    def rows(self):
        return []

try:
    top._look_on(Glance(), "cpu", "")
except errors.LxcfsError as error:
    errors.report(error)
"""


def shown(term: str) -> str:
    """What a terminal of this kind gets, on which somebody presses q."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_CONTAINERS],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": term, "LINES": "24", "COLUMNS": "80"},
    ) as program:
        os.close(theirs)
        os.write(ours, b"q")
        text = b""
        with contextlib.suppress(OSError):  # it has ended
            while piece := os.read(ours, 4096):
                text += piece
        os.close(ours)
        assert program.wait(timeout=30) == 0
    return text.decode(errors="replace")


@pytest.mark.parametrize("term", ["dumb", "vt100", "xterm"])
def test_a_terminal_that_cannot_hide_its_cursor_shows_them_too(term):
    assert "0 containers, by cpu" in shown(term)


@pytest.mark.parametrize("term", ["", "no-such-terminal"])
def test_a_terminal_that_nobody_knows_is_named_with_what_goes_there(term):
    text = shown(term)
    assert f'lxcfs-py: the terminal is of a kind that is not known here (TERM is "{term}")' in text
    assert "  lxcfs-py top --once prints one look, on any terminal" in text
