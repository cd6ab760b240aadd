"""docs/views.md has every field and every file."""

from __future__ import annotations

import re
from pathlib import Path

from lxcfs_py.files import NAMES
from tests.unit.conftest import MACHINES, TREES

PAGE = Path(__file__).parents[2].joinpath("docs", "views.md").read_text()


def test_every_field_of_meminfo_has_its_source_in_the_document():
    section = PAGE.partition("## `/proc/meminfo`")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`([A-Z][\w()]+)`", section))
    for machine in MACHINES:
        layout = (TREES / machine / "proc/meminfo").read_text()
        assert {line.partition(":")[0] for line in layout.splitlines()} <= documented


def test_every_file_is_in_the_document():
    for name in NAMES:
        directory, _, file = name.rpartition("/")
        assert f"`/{name}" in PAGE or (f"`/{directory}/" in PAGE and f"`{file}`" in PAGE), name
