"""When a trigger fires, as the kernel has it for the unprivileged: here of a file that says what the test wants."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from lxcfs_py.linux import psi, serving
from lxcfs_py.linux.psi import Trigger

SECOND = 1_000_000


class Stalls:
    """A pressure file, and a clock: both in microseconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.total = self.now = 50 * SECOND
        self.write()

    def write(self) -> None:
        text = "{} avg10=0.00 avg60=0.00 avg300=0.00 total={}\n"
        self.path.write_text(text.format("some", self.total) + text.format("full", self.total // 10))

    def pass_by(self, seconds: float, stalled: float = 0) -> None:
        """Let time pass, of which so much was a stall."""
        self.now += int(seconds * SECOND)
        self.total += int(stalled * SECOND)
        self.write()


@pytest.fixture
def stalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stalls:
    made = Stalls(tmp_path / "cpu")
    monkeypatch.setattr(psi, "_now", lambda: made.now)
    return made


def trigger(stalls: Stalls, terms: str) -> Trigger:
    return Trigger(os.open(stalls.path, os.O_RDONLY), terms)


def descriptors(stalls: Stalls) -> int:
    return [target for _, target in serving.descriptors(os.getpid())].count(str(stalls.path))


def test_it_fires_where_the_stall_within_a_window_reaches_the_threshold(stalls: Stalls) -> None:
    one = trigger(stalls, "some 500000 2000000")
    fired = []
    for stalled in (0, 0.4, 0.6, 0, 0.5):
        stalls.pass_by(2.1, stalled)
        fired.append(one.fires())
    assert fired == [False, False, True, False, True], "what was before it was set counts for nothing"


def test_a_stall_is_told_once_and_at_most_once_in_a_window(stalls: Stalls) -> None:
    one = trigger(stalls, "some 500000 4000000")
    stalls.pass_by(2.1, 1)
    assert [one.fires(), one.fires()] == [True, False]
    stalls.pass_by(2.1, 2)
    assert not one.fires(), "it is too early"
    stalls.pass_by(2.1)
    assert one.fires(), "it was due, though there is no stall now"
    stalls.pass_by(5)
    assert not one.fires()


def test_a_stall_at_the_end_of_a_window_counts_in_part_in_the_next_one(stalls: Stalls) -> None:
    one = trigger(stalls, "some 1000000 6000000")
    for _ in range(3):
        stalls.pass_by(2.1, 0.3)
        assert not one.fires()
    stalls.pass_by(2.1, 0.6)  # and of the 0.9 s before, 3.9 / 6
    assert one.fires()


def test_full_is_the_other_line(stalls: Stalls) -> None:
    some, full = trigger(stalls, "some 150000 2000000"), trigger(stalls, "full 150000 2000000")
    stalls.pass_by(2.1, 1)
    assert [some.fires(), full.fires()] == [True, False]
    stalls.pass_by(2.1, 2)
    assert full.fires()


@pytest.mark.parametrize(
    ("window", "expected"),
    [(500_000, [True] * 3), (2_000_000, [True] * 3), (3_000_000, [True, False, True])],
)
def test_a_window_is_the_next_multiple_of_two_seconds(stalls: Stalls, window: int, expected: list[bool]) -> None:
    one = trigger(stalls, f"some 400000 {window}")
    fired = []
    for _ in range(3):
        stalls.pass_by(2.1, 0.5)
        fired.append(one.fires())
    assert fired == expected


@pytest.mark.parametrize(("share", "expected"), [(0.3, 0), (0.45, 0), (0.6, 99), (1.0, 99)])
def test_it_does_not_matter_how_often_and_how_evenly_it_is_asked(stalls: Stalls, share: float, expected: int) -> None:
    one = trigger(stalls, "some 1000000 2000000")
    steps = itertools.cycle((0.25, 0.2503, 0.2, 0.31))
    fired = 0
    for _ in range(792):  # 200 s, of which every 2.02 s are looked at
        step = next(steps)
        stalls.pass_by(step, share * step)
        fired += one.fires()
    assert fired == expected


def test_while_it_is_due_the_window_goes_on(stalls: Stalls) -> None:
    """As the kernel has it: of 50 % for a while and then less than the threshold, it tells twice."""
    one = trigger(stalls, "some 3000000 10000000")
    fired = []
    for second in range(40):
        stalls.pass_by(1, 0.5 if second < 8 else 0.15)
        if one.fires():
            fired.append(second + 1)
    assert len(fired) == 2


def test_where_the_file_has_no_such_line_that_is_an_error(stalls: Stalls) -> None:
    one = trigger(stalls, "full 150000 2000000")
    stalls.now += 3 * SECOND
    stalls.path.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")  # of a CPU, before Linux 5.13
    before = descriptors(stalls)
    for broken in (one.fires, lambda: trigger(stalls, "full 150000 2000000")):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            broken()
    assert descriptors(stalls) == before, "nothing stays open"


def test_what_is_let_go_of_is_closed(stalls: Stalls) -> None:
    one = trigger(stalls, "some 1 2000000")
    assert descriptors(stalls) == 1
    del one
    assert descriptors(stalls) == 0
