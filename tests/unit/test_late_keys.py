"""What a reload of the configuration does not apply, and what status says of it."""

from __future__ import annotations

import errno
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from unittest.mock import Mock

import pytest

from lxcfs_py.commands import common, run, status
from lxcfs_py.config import KEYS, Config, ConfigError, Policy
from lxcfs_py.daemon import late_keys
from lxcfs_py.linux import mountpoint
from lxcfs_py.linux.mountpoint import MountError

OTHERWISE = {bool: lambda value: not value, int: lambda value: value + 1, float: lambda value: value + 1}


def changed(key: str) -> Config:
    """A configuration with another value of one key."""
    if key == "policy":
        return replace(Config(), policy=(Policy(),))
    value = attrgetter(key)(Config())
    return Config().with_settings([(key, OTHERWISE.get(type(value), lambda value: f"not {value}")(value))])


@pytest.mark.parametrize("key", KEYS)
def test_a_reload_takes_each_key_or_says_what_does(key: str) -> None:
    taken, remarks = late_keys.keep(Config(), changed(key))
    if key in late_keys.APPLIED_WHEN:
        assert taken == Config()
        assert remarks == [f"{key} stays what it is until the service is {late_keys.APPLIED_WHEN[key]}"]
    else:
        assert (taken, remarks) == (changed(key), [])


def test_what_waits_is_what_the_daemon_has_from_its_start() -> None:
    """The mount with its options, the workers, the metrics' server."""
    assert set(late_keys.APPLIED_WHEN) == {key for key in KEYS if key.startswith(("mountpoint", "fuse.", "metrics."))}


def test_status_names_what_applies_each_key() -> None:
    told = {"file": "f", "exists": True, "reloaded": None, "errors": []}
    keys = ["mountpoint", "cpu.mode", "fuse.threads", "metrics.listen", "log.level"]
    assert list(status._configuration({**told, "differences": keys}))[1] == (
        "    the file has changed since: mountpoint (once the service is stopped and started); "
        "cpu.mode, log.level (lxcfs-py reload); fuse.threads, metrics.listen (once the service is restarted)"
    )


@pytest.mark.parametrize("leads_to", ["nowhere", "lxcfs.toml"], ids=["dangling", "looping"])
def test_a_link_that_leads_nowhere_is_no_configuration_that_is_absent(
    leads_to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "lxcfs.toml"
    monkeypatch.setattr(common, "CONFIG_PATH", str(file))
    assert common.load_config(None) == Config()
    file.symlink_to(tmp_path / leads_to)
    with pytest.raises(ConfigError, match="cannot be read"):
        common.load_config(None)


@pytest.mark.parametrize("error", [MountError("it is in /dev"), OSError(errno.EMFILE, "Too many open files")])
def test_a_mountpoint_that_cannot_be_is_an_error_of_the_configuration_unless_another_is_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "CONFIG_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(mountpoint, "resolve", Mock(side_effect=error))
    with pytest.raises(ConfigError, match=r"^the mountpoint /var/lib/lxcfs cannot be used: (it is|Too many)"):
        common.load_config(None)
    assert common.load_config(None, "/srv/views") == Config(mountpoint="/srv/views")
    assert run._default_place() == "/var/lib/lxcfs"
