"""What lxcfs-py doctor says of the unit, by what systemctl says."""

from __future__ import annotations

import pytest

from lxcfs_py.commands import checks
from lxcfs_py.config import Config


@pytest.fixture
def unit(monkeypatch):
    """unit(state, alias, service) is what the check finds."""

    def find(state, alias, service="enabled"):
        told = {"lxcfs.service": f"{alias}\n", "lxcfs-py.service": f"{service}\n"}
        shown = f"LoadState=loaded\nActiveState={state}\nNames=lxcfs-py.service\nNeedDaemonReload=no\n"
        monkeypatch.setattr(checks.Path, "is_dir", lambda self: True)
        monkeypatch.setattr(checks, "_said", lambda command: told[command[2]] if "is-enabled" in command else shown)
        (finding,) = checks.CHECKS["unit"](Config())
        return finding

    return find


def test_an_alias_that_is_masked_is_named_with_what_to_do(unit):
    found = unit("inactive", "masked")
    assert (found.verdict, found.found) == (
        checks.PROBLEM,
        "lxcfs, which is another name of it, is masked: it cannot be enabled",
    )
    assert found.advice.startswith("systemctl unmask lxcfs;")


@pytest.mark.parametrize("alias", ["disabled", "alias", ""])
def test_a_service_that_was_only_stopped_has_its_journal(unit, alias):
    found = unit("inactive", alias)
    assert (found.found, found.advice) == ("it is inactive", "journalctl -u lxcfs-py says why")


def test_a_service_that_runs_is_well_whatever_is_masked(unit):
    assert unit("active", "masked").verdict == checks.OK


def test_a_service_that_does_not_start_at_boot_is_named(unit):
    found = unit("active", "disabled", "disabled")
    assert (found.verdict, found.advice) == (checks.WARNING, "systemctl enable lxcfs-py")


def test_a_unit_of_the_operators_own_with_the_name_of_the_alias_is_named(unit, monkeypatch, tmp_path):
    alias = tmp_path / "lxcfs.service"
    monkeypatch.setattr(checks, "_ALIAS", alias)
    alias.symlink_to("/dev/null")
    assert unit("active", "masked").verdict == checks.OK
    alias.unlink()
    alias.write_text("[Service]\n")
    found = unit("active", "static")
    assert found.verdict == checks.WARNING
    assert f"{alias} is another unit" in found.found
