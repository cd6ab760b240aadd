"""Who looks for the place of a change finds it by the names of folders and modules, and there alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "lxcfs_py"

PLACES = {
    "what MemAvailable counts": ("views/meminfo.py", r'"MemAvailable"\] = '),
    "how long the watchdog waits": ("engine/keeper.py", r"^WATCHDOG = "),
    "which paths Docker may mount": ("files.py", r"runc_mounts=False"),
    "what SIGHUP does": ("daemon/service.py", r"SIGHUP takes"),
    "what a pod's annotation is called": ("runtimes/names.py", r'= "lxcfs\.py/views"'),
    "where the session is kept": ("engine/session.py", r"^class Session\b"),
    "which processes there are": ("linux/roots.py", r"""\b(listdir|scandir)\((f?"/proc"|(roots\.)?PROC)\)"""),
}


@pytest.mark.parametrize("what", PLACES)
def test_each_thing_stands_where_its_name_says_and_nowhere_else(what):
    place, line = PLACES[what]
    found = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if re.search(line, path.read_text(), re.MULTILINE)
    ]
    assert found == [place]


EXERCISE = "lxcfs_py/views/version.py"
"""What a reader of docs/adding-a-file.md makes."""


def test_documents_name_no_module_that_is_not_there():
    paths = [str(path) for top in ("lxcfs_py", "tests", "tools") for path in (ROOT / top).rglob("*.py")]
    named = {
        (document.name, name)
        for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
        for name in re.findall(r"`([^`\s]+\.py)`", document.read_text())
    }
    missing = {(document, name) for document, name in named if not any(path.endswith(f"/{name}") for path in paths)}
    assert missing <= {("adding-a-file.md", EXERCISE)}
