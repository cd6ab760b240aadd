"""The CDI specification keeps the rules of https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from lxcfs_py import cli
from lxcfs_py.config import Config, Files
from lxcfs_py.runtimes import cdi
from lxcfs_py.runtimes.bind_snippets import is_here
from tests.conftest import ROOT

LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
VENDOR = re.compile(rf"{LABEL}(?:\.{LABEL})*")
CLASS = re.compile(r"[A-Za-z](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
DEVICE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.:-]*[A-Za-z0-9])?")


def check(specification):
    """Every rule of SPEC.md and of its schema that concerns what is used here."""
    assert set(specification) == {"cdiVersion", "kind", "devices"}
    assert specification["cdiVersion"] in ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0")
    vendor, _, kind = specification["kind"].partition("/")
    assert VENDOR.fullmatch(vendor)
    assert len(vendor) <= 253
    assert CLASS.fullmatch(kind)
    assert len(kind) <= 63
    names = [device["name"] for device in specification["devices"]]
    assert names
    assert len(set(names)) == len(names)
    for device in specification["devices"]:
        assert set(device) == {"name", "containerEdits"}
        assert DEVICE.fullmatch(device["name"])
        assert set(device["containerEdits"]) == {"mounts"}
        assert device["containerEdits"]["mounts"]
        for mount in device["containerEdits"]["mounts"]:
            assert set(mount) == {"hostPath", "containerPath", "options"}
            assert mount["hostPath"].startswith("/")
            assert mount["containerPath"].startswith("/")
            assert all(isinstance(option, str) for option in mount["options"])
            assert "bind" in mount["options"]  # else the OCI runtime takes it for a file system of no type


def test_the_specification_keeps_the_rules():
    check(cdi.specification(Config()))


def test_all_is_every_file_that_every_runtime_takes_and_each_of_them_is_a_device():
    devices = {device["name"]: device["containerEdits"]["mounts"] for device in cdi.specification(Config())["devices"]}
    everything = devices.pop("all")
    assert everything == [mount for mounts in devices.values() for mount in mounts]
    assert set(devices) == {
        *("cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"),
        *("sys-block", "sys-class-block", "sys-dev-block", "sys-devices-system-cpu"),
        *(name.replace("/", "-") for name in ("sys/devices/system/memory", "sys/devices/system/node") if is_here(name)),
    }
    assert devices["meminfo"] == [
        {"hostPath": "/var/lib/lxcfs/proc/meminfo", "containerPath": "/proc/meminfo", "options": ["bind", "rw"]}
    ]


def test_only_what_is_enabled_is_in_it_from_where_it_is_mounted():
    config = Config(mountpoint='/run/a "b"', files=Files(("proc/stat",)))
    specification = cdi.specification(config)
    check(specification)
    assert [device["name"] for device in specification["devices"]] == ["all", "stat"]
    assert '/run/a \\"b\\"/proc/stat' in json.dumps(specification)


def test_the_command_writes_the_file_and_its_directory(tmp_path):
    (tmp_path / "lxcfs.toml").write_text("")
    arguments = ["cdi", "--output", str(tmp_path / "cdi/lxcfs-py.json"), "--config", str(tmp_path / "lxcfs.toml")]
    assert cli.main(arguments) == cli.main(arguments) == 0
    written = tmp_path / "cdi/lxcfs-py.json"
    assert json.loads(written.read_text()) == cdi.specification(Config())


@pytest.mark.parametrize("enabled", ["[]", '["proc/pressure/cpu"]'])
def test_a_specification_of_nothing_is_refused(tmp_path, capsys, enabled):
    (tmp_path / "lxcfs.toml").write_text(f"[files]\nenabled = {enabled}\n")
    arguments = ["cdi", "--output", str(tmp_path / "cdi.json"), "--config", str(tmp_path / "lxcfs.toml")]
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err.startswith("lxcfs-py: a CDI specification of no files cannot be: enable some")
    assert not (tmp_path / "cdi.json").exists()


@pytest.mark.usefixtures("unmeasured")
def test_on_a_full_disk_the_file_of_before_stays(tmp_path):
    (tmp_path / "lxcfs.toml").write_text("")
    output = tmp_path / "cdi.json"
    output.write_text("before")
    arguments = [sys.executable, "-m", "lxcfs_py", "cdi", "--output", output, "--config", tmp_path / "lxcfs.toml"]
    limited = ["sh", "-c", 'trap "" XFSZ; ulimit -f 1; exec "$@"', "sh", *map(str, arguments)]  # 512 or 1024 bytes
    done = subprocess.run(limited, capture_output=True, text=True, timeout=60)
    assert done.stderr == f"lxcfs-py: {output} cannot be written: File too large\n"
    assert output.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"cdi.json", "lxcfs.toml"}


def test_what_is_no_regular_file_is_written_to(tmp_path):
    (tmp_path / "lxcfs.toml").write_text("")
    (tmp_path / "link").symlink_to("file")
    assert cli.main(["cdi", "--output", str(tmp_path / "link"), "--config", str(tmp_path / "lxcfs.toml")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "file").read_text()) == cdi.specification(Config())
    assert cli.main(["cdi", "--output", "/dev/null", "--config", str(tmp_path / "lxcfs.toml")]) == 0
    assert Path("/dev/null").is_char_device()


def test_a_file_that_is_replaced_is_for_whom_the_one_of_before_was_and_of_nobody_elses_making(tmp_path):
    (tmp_path / "lxcfs.toml").write_text("")
    output, strange = tmp_path / "cdi.json", tmp_path / "strange"
    output.touch()
    output.chmod(0o640)
    strange.touch()
    (tmp_path / "cdi.json.new").symlink_to(strange)
    assert cli.main(["cdi", "--output", str(output), "--config", str(tmp_path / "lxcfs.toml")]) == 0
    assert json.loads(output.read_text()) == cdi.specification(Config())
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert strange.read_text() == ""


def test_a_file_that_cannot_be_replaced_is_written_to(tmp_path, monkeypatch):
    (tmp_path / "lxcfs.toml").write_text("")
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(errno.EBUSY, "it is mounted by itself")))
    assert cli.main(["cdi", "--output", str(tmp_path / "a"), "--config", str(tmp_path / "lxcfs.toml")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a", "lxcfs.toml"}
    assert json.loads((tmp_path / "a").read_text()) == cdi.specification(Config())


@pytest.mark.parametrize("command", [["cdi"], ["seccomp", "--base", str(ROOT / "packaging/seccomp/containers.json")]])
def test_a_dash_is_the_standard_output_and_no_file(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--output", "-", "--config", "/dev/null"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)
    assert list(tmp_path.iterdir()) == []
    assert cli.main([*command, "--output", "./-", "--config", "/dev/null"]) == 0
    assert isinstance(json.loads((tmp_path / "-").read_text()), dict)


@pytest.mark.parametrize("command", ["cdi", "seccomp"])
def test_an_empty_path_is_refused(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--output", ""])
    assert "argument --output: an empty path is no file: name one" in capsys.readouterr().err


def test_where_it_cannot_be_written_one_sentence_says_so(tmp_path, capsys):
    (tmp_path / "lxcfs.toml").write_text("")
    output = tmp_path / "lxcfs.toml/cdi.json"
    assert cli.main(["cdi", "--output", str(output), "--config", str(tmp_path / "lxcfs.toml")]) == 1
    assert re.fullmatch(rf"lxcfs-py: {output} cannot be written: .*\n", capsys.readouterr().err)
