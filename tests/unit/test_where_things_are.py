"""Who looks for the place of a change finds it by the names of folders and modules, and there alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent.parent / "lxcfs_py"

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
