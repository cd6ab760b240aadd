"""The command line: finds the command, runs it, and says in one sentence why it could not be done."""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Callable, NoReturn, Optional

from lxcfs_py import __version__
from lxcfs_py.errors import LxcfsError, in_words, report
from lxcfs_py.linux import standard_streams
from lxcfs_py.printable import printable

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

COMMANDS = {
    "run": "run",
    "reload": "reload",
    "check": "check",
    "status": "status",
    "top": "top",
    "doctor": "doctor",
    "show": "show",
    "explain": "explain",
    "try": "try_command",
    "selftest": "selftest",
    "mounts": "mounts",
    "attach": "attach",
    "detach": "attach",
    "users": "users",
    "unmount": "unmount",
    "remove": "remove",
    "hook": "hook",
    "cdi": "cdi",
    "seccomp": "seccomp",
    "webhook": "webhook",
}
"""Each command, in the order of the list that users see, and its module in lxcfs_py.commands."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command; return its exit code. What a user has to be told is on standard error, and the code is 1."""
    given = sys.argv[1:] if arguments is None else arguments
    return _without_fail(given) if given and given[0] == "hook" else _told(given)


def _without_fail(arguments: Sequence[str]) -> int:
    """Run a hook and return 0, whatever it is given, and wherever it says what went wrong: no container starts else."""
    try:
        _told(arguments)
    except SystemExit:  # of argparse: its help, or an option of another version
        sys.exit(0)
    except OSError:  # it can be said nowhere
        pass
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _discard(2)
    return 0


def _told(arguments: Sequence[str]) -> int:
    return told(lambda: _run(arguments), "lxcfs-py")


def told(run: Callable[[], int], program: str) -> int:
    """Run what a program does; return its exit code. Why it could not be done is on standard error: the code is 1."""
    standard_streams.open_closed()
    standard_streams.take_all_letters()
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()  # here, where it is said that the disk is full
    except BrokenPipeError:
        _discard(1)  # who reads our output has seen enough
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        full = _is_of_a_full_disk(error)
        report(LxcfsError(f"the output cannot be written: {in_words(error)}") if full else error, program)
        _discard(1)
    return 1


def _is_of_a_full_disk(error: Exception) -> bool:
    """Tell whether the output went to one: whoever writes another file names that."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename


class Parser(argparse.ArgumentParser):
    """One that says what was probably meant, and does not keep it to itself where its help cannot be written."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        choices = re.findall(r"[\w-]+", wrong[2]) if wrong else []
        near = difflib.get_close_matches(wrong[1], choices, 1) if wrong else []
        super().error(printable(f"{message}; did you mean {near[0]}?" if near else message))

    def print_help(self, file: Optional[SupportsWrite[str]] = None) -> None:
        print(self.format_help(), end="", file=file)


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of these commands, of all unless told; a command's module is imported for it."""
    parser = Parser(
        prog="lxcfs-py",
        description="Show every container its own /proc and /sys.",
        epilog="lxcfs-py COMMAND --help says what a command does, and has examples.",
    )
    parser.add_argument("--version", action="version", version=f"lxcfs-py {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in dict.fromkeys(COMMANDS[name] for name in names):
        importlib.import_module(f"lxcfs_py.commands.{module}").add(commands)
    return parser


def _run(arguments: Sequence[str]) -> int:
    asked = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    whole = parser(asked)
    options, unknown = whole.parse_known_args(arguments)
    if unknown:  # refused by the command, whose usage helps
        (options.parser if "parser" in options else whole).error(f"unrecognized arguments: {' '.join(unknown)}")
    if "command" not in options:
        whole.print_help()
        return 0
    return int(options.command(options))


def _discard(stream: int) -> None:
    """Let Python's own flush at the end go nowhere: what it could not write then, it would complain of."""
    os.close(stream)  # first: there may be no other descriptor to be had
    os.open(os.devnull, os.O_WRONLY)
