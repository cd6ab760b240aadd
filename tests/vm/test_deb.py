"""The Debian package as a file."""

from __future__ import annotations

import hashlib
import subprocess

from tests.vm import debian


def test_lintian_finds_nothing_in_the_package(debs):
    command = ["lintian", "--allow-root", "--display-info", debs.old]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert not found.stdout


def test_the_same_tree_gives_the_same_package_byte_for_byte(debs, tmp_path):
    # Not the bytes themselves, whose differences would take pytest half an hour to show.
    one, other = (hashlib.sha256(deb.read_bytes()).hexdigest() for deb in (debs.old, debian.build(tmp_path)))
    assert one == other


def test_the_manual_pages_are_without_faults(debs, tmp_path):
    for page in sorted((debian.ROOT / "docs/man").iterdir()):
        command = ["man", "--warnings", "--local-file", page]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0
        assert not shown.stderr, f"{page.name}: {shown.stderr}"
