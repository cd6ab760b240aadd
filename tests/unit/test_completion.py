"""Completion knows the commands, their options, files and runtimes, in each shell that is here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lxcfs_py import cli
from tools import commands

COMPLETION = Path(__file__).parent.parent.parent / "packaging/completion"


@pytest.mark.skipif(not shutil.which("bash"), reason="bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lxcfs-py st", "status"),
        ("lxcfs-py status --pr", "--probe"),
        ("lxcfs-py show memi", "meminfo"),
        ("lxcfs-py explain sys/devices/system/cp", "sys/devices/system/cpu"),
        ("lxcfs-py mounts podm", "podman"),
        ("lxcfs-py attach --file upt", "uptime"),
    ],
)
def test_bash_offers(typed, offered):
    words = typed.split()
    program = f"source {COMPLETION}/lxcfs-py; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _lxcfs_py; "
    done = subprocess.run(
        ["bash", "-c", program + "echo ${COMPREPLY[@]}"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == [offered]


@pytest.mark.parametrize(("shell", "script"), [("zsh", "_lxcfs-py"), ("fish", "lxcfs-py.fish"), ("bash", "lxcfs-py")])
def test_the_shell_can_read_the_script(require, shell, script):
    require(shutil.which(shell), shell)
    subprocess.run([shell, "-n", str(COMPLETION / script)], check=True, timeout=30)


@pytest.mark.parametrize("script", [commands.bash, commands.zsh, commands.fish], ids=["bash", "zsh", "fish"])
def test_every_command_and_option_is_offered(script):
    text = script()
    for command in commands.commands():
        assert command.name in text
        for option in command.options:
            assert option.option_strings[-1].lstrip("-") in text


def test_every_command_has_a_page_with_an_example():
    for name in cli.COMMANDS:
        page = (COMPLETION.parent.parent / f"docs/man/lxcfs-py-{name}.1").read_text()
        assert page.partition(".SH EXAMPLES")[2].count(".TP") >= 1
