"""Manual pages and completion of the commands, from the parsers that --help shows."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from lxcfs_py import cli, files
from lxcfs_py.runtimes import bind_snippets

_WIDTH = 118

_CONTAINERS = {
    "docker": "docker ps --format '{{.Names}}' 2>/dev/null",
    "podman": "podman ps --format '{{.Names}}' 2>/dev/null",
    "container": "{ docker ps --format '{{.Names}}'; podman ps --format '{{.Names}}'; lxc-ls --running; } 2>/dev/null",
    "pid": "cd /proc && printf '%s\\n' [0-9]*",
}
"""Options whose values a shell command lists."""

_FILES = " ".join(name[len("proc/") :] if name.startswith("proc/") else name for name in files.NAMES)
_RUNTIMES = " ".join(bind_snippets.RUNTIMES)


class Command(NamedTuple):
    """A command, and what its parser says of it."""

    name: str
    summary: str
    parser: argparse.ArgumentParser

    @property
    def options(self) -> list[argparse.Action]:
        """Its options but for --help."""
        return [action for action in self.parser._actions if action.option_strings and action.dest != "help"]

    @property
    def arguments(self) -> list[argparse.Action]:
        """Its positional arguments."""
        return [action for action in self.parser._actions if not action.option_strings]

    @property
    def examples(self) -> list[tuple[str, str]]:
        """Command lines, and what they are good for."""
        shown = [each.split("\n") for each in (self.parser.epilog or "").split("\n\n")[1:]]
        return [(line.strip(), " ".join(" ".join(purpose).split())) for line, *purpose in shown]

    def words(self) -> str:
        """Its first argument's values, for completion: "" where they are files of the caller's."""
        first = self.arguments[0].metavar if self.arguments else None
        if first in ("FILE", "FILE[:FIELD]") and self.name in ("show", "explain"):
            return _FILES
        return _RUNTIMES if self.name == "mounts" else ""


def commands() -> list[Command]:
    """Return all of them in the order of the list that users see."""
    parser = cli.parser()
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    summaries = {choice.dest: choice.help or "" for choice in group._choices_actions}
    return [Command(name, summaries[name], group.choices[name]) for name in cli.COMMANDS]


# Manual pages


def manual_list() -> Iterator[str]:
    """Yield the list of commands in lxcfs-py(1)."""
    for command in commands():
        yield ".TP"
        yield f".B {_escaped(command.name)}"
        yield f"{_escaped(_sentence(command.summary))}"
        yield f"See\n.BR lxcfs\\-py\\-{command.name} (1)."


def manual(command: Command) -> str:
    """Return a command's page."""
    name = f"lxcfs\\-py\\-{command.name}"
    return "\n".join(
        [
            '.\\" Made by make generate of what --help says.',
            f'.TH LXCFS-PY-{command.name.upper()} 1 "" lxcfs-py "User Commands"',
            ".SH NAME",
            f"{name} \\- {_escaped(command.summary)}",
            ".SH SYNOPSIS",
            f".B lxcfs\\-py {command.name}",
            "[\\fIOPTION\\fR]...",
            *(f"\\fI{_escaped(_shown(argument))}\\fR" for argument in command.arguments),
            ".SH DESCRIPTION",
            *_paragraphs(command.parser.description or ""),
            ".SH OPTIONS",
            *_options(command),
            ".SH EXAMPLES",
            *_examples(command),
            ".SH SEE ALSO",
            ".BR lxcfs\\-py (1),",
            ".BR lxcfs.toml (5)",
            "",
        ]
    )


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(text.split("\n\n")):
        if number:
            yield ".PP"
        yield from textwrap.wrap(_escaped(paragraph), _WIDTH, break_on_hyphens=False)


def _options(command: Command) -> Iterator[str]:
    formatter = command.parser._get_formatter()
    for action in [*command.arguments, *command.options]:
        yield ".TP"
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in action.option_strings)
        yield f"{names} \\fI{_escaped(_shown(action))}\\fR".strip() if action.nargs != 0 else names
        yield from textwrap.wrap(_escaped(_sentence(formatter._expand_help(action))), _WIDTH, break_on_hyphens=False)


def _examples(command: Command) -> Iterator[str]:
    for line, purpose in command.examples:
        yield ".TP"
        yield f"\\fB{_escaped(line)}\\fR"
        yield _escaped(_sentence(purpose))


def _shown(action: argparse.Action) -> str:
    """Return what stands for an argument's value."""
    metavar = action.metavar or action.dest.upper()
    return " ".join(metavar) if isinstance(metavar, tuple) else metavar


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?" else ".")


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + text if text[:1] in (".", "'") else text


# Completion


def bash() -> str:
    """Return the script for bash."""
    found = commands()
    values = "\n".join(
        f'    --{option}) COMPREPLY=($(compgen -W "$({listing})" -- "$word")); return ;;'
        for option, listing in _CONTAINERS.items()
    )
    choices = {
        (action.option_strings[-1], _words(action)) for command in found for action in command.options if _words(action)
    }
    words = "\n".join(
        f'    {option}) COMPREPLY=($(compgen -W "{allowed}" -- "$word")); return ;;'
        for option, allowed in sorted(choices)
    )
    cases = "\n".join(
        f'    {command.name}) words="{" ".join(_names(command))}" first="{command.words()}" ;;' for command in found
    )
    return f"""\
# bash completion for lxcfs-py, made by make generate.

_lxcfs_py() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words first
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "--help --version {" ".join(command.name for command in found)}" -- "$word"))
        return
    fi
    case $before in
{values}
{words}
    esac
    case ${{COMP_WORDS[1]}} in
{cases}
    *) return ;;
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "--help $words" -- "$word"))
    elif [[ $first && $before == "${{COMP_WORDS[1]}}" ]]; then
        COMPREPLY=($(compgen -W "$first" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}

complete -o filenames -F _lxcfs_py lxcfs-py
"""


def zsh() -> str:
    """Return the script for zsh."""
    found = commands()
    listed = "\n".join(f"    {_quoted(f'{command.name}:{command.summary}')}" for command in found)
    cases = "\n".join(
        f"{command.name})\n    _arguments \\\n        "
        + " \\\n        ".join([*map(_zsh_option, command.options), _zsh_argument(command)])
        + "\n    ;;"
        for command in found
    )
    return f"""\
#compdef lxcfs-py
# zsh completion for lxcfs-py, made by make generate.

local -a known
known=(
{listed}
)
if (( CURRENT == 2 )); then
    _describe command known
    return
fi
shift words
(( CURRENT-- ))
case $words[1] in
{cases}
esac
"""


def fish() -> str:
    """Return the script for fish."""
    lines = ["# fish completion for lxcfs-py, made by make generate.", ""]
    for command in commands():
        lines.append(
            f"complete -c lxcfs-py -n __fish_use_subcommand -f -a {command.name} -d {_fish_quoted(command.summary)}"
        )
        seen = f"complete -c lxcfs-py -n '__fish_seen_subcommand_from {command.name}'"
        for action in command.options:
            kind = "" if action.nargs == 0 else " -r"
            if action.dest in _CONTAINERS:
                kind = f' -x -a "(sh -c {_fish_quoted(_CONTAINERS[action.dest])})"'
            elif _words(action):
                kind = f" -x -a '{_words(action)}'"
            name = action.option_strings[-1].lstrip("-")
            lines.append(f"{seen} -l {name}{kind} -d {_fish_quoted(action.help or '')}")
        if command.words():
            lines.append(f"{seen} -f -a '{command.words()}'")
    return "\n".join(lines) + "\n"


def _names(command: Command) -> Iterator[str]:
    for action in command.options:
        yield from action.option_strings


def _words(action: argparse.Action) -> str:
    """Return what an option may be given, "" where that is not known."""
    return _FILES if action.dest == "file" else " ".join(map(str, action.choices or ()))


def _zsh_option(action: argparse.Action) -> str:
    text = f"{action.option_strings[-1]}[{_zsh_escaped(action.help or '')}]"
    if action.nargs == 0:
        return _quoted(text)
    if action.dest in _CONTAINERS:
        return _quoted(f"{text}:{action.dest}:($({_CONTAINERS[action.dest]}))")
    return _quoted(f"{text}:{action.dest}:({_words(action)})" if _words(action) else f"{text}:value:_files")


def _zsh_argument(command: Command) -> str:
    return _quoted(f"*:argument:({command.words()})" if command.words() else "*:argument:_files")


def _zsh_escaped(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").replace(":", "")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def whole_files() -> dict[str, str]:
    """Return each file that is made as a whole, by its path."""
    made = {f"docs/man/lxcfs-py-{command.name}.1": manual(command) for command in commands()}
    completion = "packaging/completion"
    return {
        **made,
        f"{completion}/lxcfs-py": bash(),
        f"{completion}/_lxcfs-py": zsh(),
        f"{completion}/lxcfs-py.fish": fish(),
    }
