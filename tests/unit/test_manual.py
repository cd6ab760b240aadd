"""The manual pages say what the programs do."""

from __future__ import annotations

import re
from pathlib import Path

from lxcfs_py import cli, config
from lxcfs_py.runtimes import bind_snippets

README = Path(__file__).parent.parent.parent / "README.md"
MAN = Path(__file__).parent.parent.parent / "docs/man"


def commands():
    listed = re.findall(r"^    ([a-z][a-z-]*)", cli.parser().format_help(), re.MULTILINE)
    assert len(listed) > 5
    return listed


def test_every_command_is_in_the_manual():
    page = (MAN / "lxcfs-py.1").read_text()
    for command in commands():
        assert re.search(rf'^\.BR? "?{command}\b', page, re.MULTILINE), command


def test_every_command_and_every_runtime_of_mounts_is_in_the_readme():
    page = README.read_text()
    table = page.partition("\n## Commands\n")[2].partition("\n## ")[0]
    listed = {
        name for row in table.splitlines() for name in re.findall(r"`(?:lxcfs-py )?([a-z]+)", row.split(" | ")[0])
    }
    assert set(commands()) <= listed
    sentence = page.partition("`lxcfs-py mounts` does the same for ")[2].partition(";")[0]
    assert {"docker", *re.findall("`([a-z]+)`", sentence)} == set(bind_snippets.RUNTIMES)


def test_every_key_of_the_configuration_is_in_the_manual_with_its_default():
    page = (MAN / "lxcfs.toml.5").read_text().replace(r"\(dq", '"')
    table = ""
    for line in config.dump(config.Config()).splitlines():
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif re.match(r"\w+ = ", line):
            key, _, default = line.partition(" = ")
            first = {"files.enabled": "proc/cpuinfo", "attach.cgroups": "/docker/*"}
            shown = default if default != "[" else f'["{first[table + key]}"'
            assert f'.BR {table}{key} " = {shown}' in page, f"{table}{key} = {default}"
