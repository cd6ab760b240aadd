"""Each program of the table in Docker on Debian 12: with the files alone, with the agent, with a clock of its own."""

import pytest

from tests.programs.conftest import ROWS, SUITE
from tests.programs.judged import judge


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_program_says_what_the_table_has(row, said, two_cpus):
    judge(row, SUITE, said)
