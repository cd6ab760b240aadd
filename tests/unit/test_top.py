"""The table of lxcfs-py top."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from lxcfs_py import cli
from lxcfs_py.commands import glance, top
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
import signal
from lxcfs_py import errors
from lxcfs_py.commands import top

class Glance:
    def rows(self):
        return []

signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup has it
try:
    top._look_on(Glance(), "cpu", "")
except errors.LxcfsError as error:
    errors.report(error)
"""


@contextlib.contextmanager
def started(term: str, locale: str = "C.UTF-8") -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The program in a terminal of this kind, and the other end of that, which is to be closed."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_CONTAINERS],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": term, "LC_ALL": locale, "LINES": "24", "COLUMNS": "80"},
    ) as program:
        os.close(theirs)
        try:
            yield program, ours
        finally:
            program.kill()


def shown(term: str) -> str:
    """What a terminal of this kind gets, on which somebody presses q."""
    with started(term) as (program, ours):
        os.write(ours, b"q")
        text = b""
        with contextlib.suppress(OSError):  # it has ended
            while piece := os.read(ours, 4096):
                text += piece
        os.close(ours)
        assert program.wait(timeout=30) == 0
    return text.decode(errors="replace")


@pytest.mark.parametrize(("locale", "byte"), [("C", b"\xff"), ("C.UTF-8", b"\xc3"), ("C.UTF-8", b"\xff")], ids=ascii)
def test_a_byte_that_is_no_letter_is_none_and_the_next_key_counts(locale, byte):
    with started("xterm", locale) as (program, ours):
        assert os.read(ours, 4096)
        os.write(ours, byte + b"q")
        assert program.wait(timeout=30) == 0
        os.close(ours)


def test_it_ends_where_its_terminal_has_gone():
    with started("xterm") as (program, ours):
        assert os.read(ours, 4096)
        os.close(ours)
        assert program.wait(timeout=30) == 0


def test_without_a_terminal_to_press_keys_on_it_prints_one_look(monkeypatch, capsys):
    monkeypatch.setattr(top, "require_root", lambda: None)
    monkeypatch.setattr(top, "_ONCE_SECONDS", 0)
    monkeypatch.setattr(top, "Glance", lambda config: SimpleNamespace(rows=lambda: [row("web")]))
    monkeypatch.setattr(top, "_look_on", pytest.fail)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["top", "--config", "/dev/null"]) == 0
    assert "web " in capsys.readouterr().out


def test_a_container_whose_init_moves_has_used_nothing_less_than_nothing():
    def counted(clock, cgroup, cpu, io, reads):
        return glance._Counters(clock, {"cpu": cgroup}, cpu, io, reads)

    before = counted(1.0, "/a", 5_000_000_000, 5000, 50)
    assert counted(3.0, "/a", 6_000_000_000, 7000, 60).rates_since(before) == (0.5, 1000, 5)
    for now in (counted(3.0, "/b", 1_000, 0, 50), counted(3.0, "/b", 9_000_000_000_000, 5000, 50)):
        assert now.rates_since(before) == (0, 0, 0)
    assert counted(3.0, "/a", 4_000_000_000, 0, 50).rates_since(before) == (0, 0, 0)


@pytest.mark.parametrize("term", ["dumb", "vt100", "xterm"])
def test_a_terminal_that_cannot_hide_its_cursor_shows_them_too(term):
    assert "0 containers, by cpu" in shown(term)


@pytest.mark.parametrize("term", ["", "no-such-terminal"])
def test_a_terminal_that_nobody_knows_is_named_with_what_goes_there(term):
    text = shown(term)
    assert f'lxcfs-py: the terminal is of a kind that is not known here (TERM is "{term}")' in text
    assert "  lxcfs-py top --once prints one snapshot, on any terminal" in text
