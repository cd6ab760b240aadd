"""Whether a program said what the table has: no less, and no more."""

from __future__ import annotations

from tests.programs.observed import Said, Sayings
from tests.programs.table import By, Row


def judge(row: Row, suite: str, said: dict[str, Sayings]) -> None:
    """Assert that a row holds in both containers, in every way that makes a difference to it."""
    by = row.asks(suite)
    assert any(tells_apart(row, each[row.name]) for each in said["files"].values()), "right or wrong are the same here"
    for name, sayings in said["files"].items():
        own, machines = heard(row, sayings[row.name])
        where = f"{name}, files alone: {sayings[row.name]}"
        if by.is_a_call:
            assert machines, where
        elif by is By.CLOCK:
            assert not own, where
        else:
            assert own, where
    for way, makes_a_difference in (("agent", by.is_a_call), ("clock", row.tells_time)):
        for name, sayings in said[way].items() if makes_a_difference else ():
            own, _ = heard(row, sayings[row.name])
            assert own, f"{name}, {way}: {sayings[row.name]}"


def heard(row: Row, said: Said) -> tuple[bool, bool]:
    """Whether the figure is the container's, and whether it is the machine's."""
    value = row.value(said.printed)
    return row.agrees(value, *said.container), row.agrees(value, *said.machine)


def tells_apart(row: Row, said: Said) -> bool:
    """Whether a figure that is right for the machine is wrong for the container."""
    return not any(row.agrees(row.right(moment), *said.container) for moment in said.machine)
