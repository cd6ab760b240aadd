"""When the programs that attack say that somebody was hurt."""

from __future__ import annotations

import dataclasses

import pytest

from tests.hostile.__main__ import is_well
from tests.hostile.arena import Noticed
from tests.hostile.soak import Takes, faults

UNHURT = Noticed(9, 0, 0, "", 0.1, 0.2, 0.3, {"set": 9.0, "refused": 0.0, "longest": 1.0})
TAKES = Takes(1000, 100, 20)


def test_where_nobody_noticed_anything_and_no_more_is_taken_nothing_is_said() -> None:
    assert list(faults([UNHURT] * 2, 0, TAKES, Takes(1050, 90, 21))) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"failed": 1, "first": "stat: it failed"}, "a victim: stat: it failed"),
        ({"odd": 1, "first": "stat: b'7'"}, "a victim: stat: b'7'"),
        ({"triggers": {"refused": 1.0}, "first": "/views/cpu: none"}, "a victim: /views/cpu: none"),
    ],
)
def test_what_a_victim_noticed_is_said(change: dict[str, object], said: str) -> None:
    hurt = dataclasses.replace(UNHURT, **change)  # type: ignore[arg-type]
    assert list(faults([UNHURT, hurt], 0, TAKES, TAKES)) == [said]


def test_so_is_what_those_noticed_that_came_and_went_and_what_grew() -> None:
    assert list(faults([UNHURT], 2, TAKES, Takes(1051, 106, 22))) == [
        "2 of the containers that came and went saw what was wrong",
        "resident: 1000 after ten minutes, 1051 at the end",
        "descriptors: 100 after ten minutes, 106 at the end",
        "kept: 20 after ten minutes, 22 at the end",
    ]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ("0.17 | 7.1 | 32.4 | 0 + 0 of 8078", True),
        ("0.17 | 7.1 | 32.4 | 1 + 0 of 8078", False),
        ("0.17 | 7.1 | 32.4 | 0 + 10 of 8078", False),
        ("does not answer | | | ", False),
    ],
)
def test_a_row_is_well_where_each_read_was_answered_and_right(cells: str, expected: bool) -> None:
    assert is_well(cells) is expected
