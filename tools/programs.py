"""docs/programs.md's table, from the one that tests prove."""

from __future__ import annotations

from collections.abc import Iterator

from tests.programs.table import ROWS, By


def table() -> Iterator[str]:
    """Yield its lines."""
    yield "| program | figure | asks | files alone | with the agent | with a clock of its own | or by |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in sorted(ROWS, key=lambda row: row.name):
        alone = "no" if row.by.is_a_call or row.by is By.CLOCK else "yes"
        agent = "no" if row.by is By.CLOCK else "yes"
        clock = "yes" if row.tells_time else alone
        yield f"| {row.program} | {row.figure} | {row.by.value} | {alone} | {agent} | {clock} | {row.cure} |"
