"""Completion knows the commands, their options, files and runtimes, in each shell that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lxcfs_py import cli
from tools import commands

COMPLETION = Path(__file__).parent.parent.parent / "packaging/completion"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("lxcfs-py st", "status"),
        ("lxcfs-py status --pr", "--probe"),
        ("lxcfs-py show memi", "meminfo"),
        ("lxcfs-py explain sys/devices/system/cp", "sys/devices/system/cpu"),
        ("lxcfs-py mounts podm", "podman"),
        ("lxcfs-py attach --file upt", "uptime"),
        ("lxcfs-py top --sort mem", "memory"),
    ],
)
def test_bash_offers(require, typed, offered):
    require(shutil.which("bash"), "bash")
    words = typed.split()
    program = f"source {COMPLETION}/lxcfs-py; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _lxcfs_py; "
    done = subprocess.run(
        ["bash", "-c", program + "echo ${COMPREPLY[@]}"], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == [offered]


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("lxcfs-py sta", "lxcfs-py status "),
        ("lxcfs-py mounts podm", "lxcfs-py mounts podman "),
        ("lxcfs-py attach --file upt", "lxcfs-py attach --file uptime "),
        ("lxcfs-py top --sort mem", "lxcfs-py top --sort memory "),
    ],
)
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_tab_in_a_terminal_completes(require, tmp_path, shell, typed, becomes):
    require(shutil.which(shell) and shutil.which("tmux"), f"{shell} and tmux")
    start = {
        "zsh": f"fpath=({COMPLETION} $fpath); autoload -Uz compinit; compinit -u -d {tmp_path}/dump; PS1='@ '",
        "fish": f"source {COMPLETION}/lxcfs-py.fish; function fish_prompt; echo '@ '; end",
    }[shell]

    def tmux(*arguments):
        command = ["tmux", "-S", str(tmp_path / "tmux"), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=30, env={**os.environ, "HOME": str(tmp_path)}
        )

    def wait_for(text):
        deadline = time.monotonic() + 30
        while text not in tmux("capture-pane", "-p", "-J").stdout:
            assert time.monotonic() < deadline, tmux("capture-pane", "-p").stdout
            time.sleep(0.1)

    tmux("new-session", "-d", "-x", "150", "-y", "20", {"zsh": "zsh -f", "fish": "fish --no-config"}[shell])
    try:
        tmux("send-keys", "-l", start)
        tmux("send-keys", "Enter")
        wait_for("\n@ ")
        tmux("send-keys", "-l", typed)
        wait_for(f"@ {typed}")
        tmux("send-keys", "Tab")
        tmux("send-keys", "-l", "#")
        wait_for(f"@ {becomes}#")
    finally:
        tmux("kill-server")


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
