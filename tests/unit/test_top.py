"""The table of lxcfs-py top."""

from __future__ import annotations

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
