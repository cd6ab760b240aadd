"""The OCI hook never stops a container from starting: whatever it is told, it says one sentence and ends with 0."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lxcfs_py.attach import attach, hook
from lxcfs_py.config import Config

ROOT = Path(__file__).parents[2]


def run(state: bytes, *options: str) -> str:
    """What the command says of a state."""
    command = [sys.executable, "-m", "lxcfs_py", "hook", *options]
    done = subprocess.run(command, cwd=ROOT, env={}, input=state, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"")
    return done.stderr.decode()


BEGINNING = "lxcfs-py: this container starts with the machine's files: "

STATES = {
    "nothing": (b"", "the container's state on standard input is not JSON"),
    "garbage": (b"\xff\xfe\0", "the container's state on standard input is not JSON"),
    "brackets": (b"[" * 100_000, "the container's state on standard input is not JSON"),
    "a list": (b"[]", "the container's state on standard input is not a JSON object"),
    "no bundle": (b"{}", "the container's state on standard input does not name its bundle: is this an OCI hook?"),
    "a relative bundle": (b'{"bundle": "a"}', "the container's state on standard input does not name its bundle"),
    "a bundle of another type": (b'{"bundle": 1}', "the container's state on standard input does not name its bundle"),
    "no such bundle": (b'{"bundle": "/no"}', "/no/config.json cannot be read: No such file or directory"),
    "a zero in it": (b'{"bundle": "/no\\u0000"}', "the container's state on standard input does not name its bundle"),
    "half a character": (b'{"bundle": "/\\ud939"}', "the container's state on standard input does not name its bundle"),
    "two MiB": (b" " * (2 << 20), "the container's state on standard input has more than 1048576 bytes"),
}


@pytest.mark.parametrize(("state", "reason"), STATES.values(), ids=STATES)
def test_a_state_that_cannot_be_used_is_one_sentence(state, reason):
    said = run(state)
    assert said.startswith(BEGINNING + reason)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("{}", "does not say where the container's root is"),
        ('{"root": "/"}', "does not say where the container's root is"),
        ('{"root": {"path": 1}}', "does not say where the container's root is"),
        ('{"root": {"path": "/\\ud939"}}', "does not say where the container's root is"),
        (" " * ((1 << 24) + 1), "has more than 16777216 bytes"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_one_sentence(tmp_path, text, reason):
    (tmp_path / "config.json").write_text(text)
    said = run(json.dumps({"bundle": str(tmp_path)}).encode())
    assert said == f"{BEGINNING}{tmp_path}/config.json {reason}\n"


@pytest.mark.parametrize("environment", [["HOME=/", "LXCFS_PY_VIEWS=None"], ["lxcfs.py/views=none"]])
def test_a_container_that_opts_out_by_its_environment_gets_nothing_and_nothing_is_said(tmp_path, environment):
    bundle = {"root": {"path": "rootfs"}, "process": {"env": environment}}
    (tmp_path / "config.json").write_text(json.dumps(bundle))
    assert run(json.dumps({"bundle": str(tmp_path)}).encode()) == ""


@pytest.mark.parametrize("process", [[], {"env": "LXCFS_PY_VIEWS=none"}, {"env": [1, None, "LXCFS_PY_VIEWS=all"]}])
def test_an_environment_that_does_not_opt_out_is_no_matter(tmp_path, process):
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}, "process": process}))
    assert run(json.dumps({"bundle": str(tmp_path)}).encode()).startswith(BEGINNING)


def test_nobody_waits_for_a_bundle_whose_configuration_is_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    said = run(json.dumps({"bundle": str(tmp_path)}).encode())
    assert said == f"{BEGINNING}{tmp_path}/config.json cannot be read: it is no regular file\n"


def test_a_broken_configuration_is_one_sentence(tmp_path):
    (tmp_path / "lxcfs.toml").write_text("mountpoint = 1\n")
    said = run(b"{}", "--config", str(tmp_path / "lxcfs.toml"))
    assert said.startswith(f"{BEGINNING}{tmp_path}/lxcfs.toml:1: mountpoint is 1; allowed: ")


def test_without_a_daemon_one_sentence_says_so(tmp_path):
    (tmp_path / "lxcfs.toml").write_text(f'mountpoint = "{tmp_path}"\n')
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    said = run(json.dumps({"bundle": str(tmp_path)}).encode(), "--config", str(tmp_path / "lxcfs.toml"))
    assert said.startswith(f"{BEGINNING}nothing is mounted at {tmp_path}; start the daemon")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--config", ""], "an empty path is no configuration"),
        (["--of-a-newer-version"], "unrecognized arguments: --of-a-newer-version"),
    ],
)
def test_options_that_cannot_be_understood_let_the_container_start(options, reason):
    assert reason in run(b"{}", *options)


@pytest.mark.parametrize("options", [[], ["--config", "/none"], ["--of-a-newer-version"]])
def test_where_nothing_can_be_said_the_container_starts(options):
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(writer, "wb") as closed:
        for nowhere in (full, closed):
            command = [sys.executable, "-m", "lxcfs_py", "hook", *options]
            assert subprocess.run(command, cwd=ROOT, input=b"{}", stderr=nowhere, timeout=60).returncode == 0


def test_lxcs_hook_lets_the_container_start_whatever_becomes_of_the_program():
    script = (ROOT / "packaging/lxc/lxc.mount.hook").read_text()
    assert subprocess.run(["sh", "-ec", script.replace("/usr/bin/lxcfs-py", "/none-such")], timeout=60).returncode == 0


@pytest.mark.parametrize(("path", "root"), [("rootfs", "/bundle/rootfs"), ("/root/of/it", "/root/of/it")])
def test_a_root_is_below_the_bundle_or_absolute(tmp_path, monkeypatch, path, root):
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": path}}))
    monkeypatch.setattr(attach, "bind", lambda root, mountpoint, names: (root, mountpoint, names))
    config = Config()
    assert hook.run(io.BytesIO(json.dumps({"bundle": str(tmp_path)}).encode()), config) == (
        root.replace("/bundle", str(tmp_path)),
        config.mountpoint,
        config.files.enabled,
    )


def test_the_packages_hook_is_for_containers_that_ask_for_it():
    shipped = json.loads((ROOT / "packaging/oci/lxcfs-py.json").read_text())
    assert set(shipped) == {"version", "hook", "when", "stages"}  # of version 1.0.0, oci-hooks(5)
    assert shipped["stages"] == ["createContainer"]
    ((key, value),) = shipped["when"]["annotations"].items()
    assert key == r"^lxcfs\.py/views$"
    wishes = ("true", "all", " All,", "TRUE", "none", "false", "", "untrue", "meminfo")
    assert [wish for wish in wishes if re.search(value, wish)] == ["true", "all", " All,", "TRUE"]
