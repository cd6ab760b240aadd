"""What the commands' parsers and functions share."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import re
import shutil
import stat
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from lxcfs_py import config as configuration
from lxcfs_py.cgroup.layout import parse_paths
from lxcfs_py.config import Config
from lxcfs_py.errors import LxcfsError, in_words
from lxcfs_py.linux import mountpoint, regular_file, roots, serving

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

CONFIG_PATH = "/etc/lxcfs.toml"


class CommandError(LxcfsError):
    """Why a command cannot be done."""


_MOST_COLUMNS = 100  # longer lines are read less well


def text_width() -> int:
    """Return how many columns text may take: no more than the terminal has."""
    return min(shutil.get_terminal_size((_MOST_COLUMNS, 0)).columns, _MOST_COLUMNS)


class _HelpFormatter(argparse.HelpFormatter):
    """One that keeps paragraphs apart, and examples as they are."""

    def _format_usage(self, *arguments: Any) -> str:
        """Break lines between alternatives too, which argparse takes for one word."""
        lines: list[str] = []
        for line in super()._format_usage(*arguments).split("\n"):
            indent = " " * (len(line) - len(line.lstrip(" ")) + 1)
            text = line.replace(",", ", ") if "{" in line and len(line) > self._width else line
            text = re.sub(r"(--\S+) ([A-Z]+)", "\\1\N{NO-BREAK SPACE}\\2", text)
            width = max(self._width, 1)  # argparse takes two columns off
            lines += textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False) or [""]
        return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph if paragraph.startswith("  ") else textwrap.fill(" ".join(paragraph.split()), width)
            for paragraph in paragraphs
        )


def new_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    text: str,
    examples: Iterable[tuple[str, str]],
) -> argparse.ArgumentParser:
    """Add a command and return its parser.

    `summary` is its line in the list of commands; `text` says what it does, in paragraphs with an empty line between
    them; the examples are command lines, each with what it is good for. The manual pages have the same texts.
    """
    shown = "\n\n".join(
        f"  {line}\n{textwrap.indent(textwrap.fill(purpose, 70), '      ')}" for line, purpose in examples
    )
    parser = commands.add_parser(
        name, help=summary, description=text, epilog=f"examples:\n\n{shown}", formatter_class=_HelpFormatter
    )
    parser.set_defaults(command=run, parser=parser)
    return parser


def add_config(parser: argparse._ActionsContainer, what: str = "") -> None:
    """Add --config."""
    what = what or f"the configuration (default: {CONFIG_PATH} if it is there)"
    parser.add_argument("--config", type=CONFIG_GIVEN, metavar="FILE", help=what)


def path_given(kind: str) -> Callable[[str], str]:
    """Return the type of an argument that is a path, of a kind and with what to name: an empty one is refused."""

    def given(text: str) -> str:
        if not text:
            raise argparse.ArgumentTypeError(f"an empty path is no {kind}")
        return text

    return given


CONFIG_GIVEN = path_given("configuration: name a file")


def add_mountpoint(parser: argparse.ArgumentParser, what: str, name: str = "--mountpoint", **options: Any) -> None:
    """Add --mountpoint, or an argument of that name: a mountpoint as the kernel lists it, however it is given."""
    parser.add_argument(name, type=mountpoint_given, help=f"{what}, instead of the configured one", **options)


def mountpoint_given(text: str) -> str:
    """Return a mountpoint as the kernel lists it. argparse.ArgumentTypeError for what can be none."""
    try:
        return mountpoint.resolve(text)
    except mountpoint.MountError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_config(path: Optional[str], place: Optional[str] = None) -> Config:
    """Return the configuration of a file, or of the default path; the defaults where that does not exist. ConfigError.

    Its mountpoint is as the kernel lists it, or `place`, where somebody has named that.
    """
    if path is None and not os.path.lexists(CONFIG_PATH):
        config = Config()
    else:
        config = configuration.load(Path(path or CONFIG_PATH))
    return dataclasses.replace(config, mountpoint=place) if place else resolved(config)


def resolved(config: Config) -> Config:
    """Return a configuration with its mountpoint as the kernel lists it. ConfigError where none can be there."""
    try:
        return dataclasses.replace(config, mountpoint=mountpoint.resolve(config.mountpoint))
    except (mountpoint.MountError, OSError) as error:
        sentence = f"the mountpoint {config.mountpoint} cannot be used: {in_words(error)}"
        raise configuration.ConfigError([sentence]) from None


def served_config(path: Optional[str]) -> Config:
    """Return the configuration of a file, with the mountpoint where a daemon serves with that file. ConfigError.

    It stays there until it is stopped, whatever mountpoint the file names by now.
    """
    from lxcfs_py.daemon import last_config

    config = load_config(path)
    if mountpoint.is_mounted(config.mountpoint):
        return config
    places = (before.mountpoint for before in last_config.served_with(config_path(path)))
    return dataclasses.replace(config, mountpoint=next(filter(mountpoint.is_mounted, places), config.mountpoint))


def served_mountpoint(options: argparse.Namespace) -> str:
    """Return where the files are, of add_mountpoint() or the configuration. CommandError where no server answers."""
    path: str = options.mountpoint or served_config(options.config).mountpoint
    if not mountpoint.is_mounted(path):
        raise CommandError(f"nothing is mounted at {path}", f"start the daemon: lxcfs-py run {path}")
    if not mountpoint.answers(path, mountpoint.PATIENCE):
        if not mountpoint.may_answer(path):
            raise CommandError(f"the server of {path} has ended", f"start the daemon: lxcfs-py run {path}")
        raise CommandError(f"the server of {path} does not answer", serving.cure(path))
    return path


def config_path(path: Optional[str]) -> str:
    """Return the absolute path of the configuration, by which the daemon is known."""
    return os.path.abspath(path or CONFIG_PATH)


def mountpoint_even_if_broken(path: Optional[str]) -> str:
    """Return where a daemon serves with a configuration, with the one of before where that has errors.

    ConfigError for a file that was named and that no daemon has served with: it may be meant for any mountpoint.
    """
    from lxcfs_py.daemon import last_config

    try:
        return served_config(path).mountpoint
    except configuration.ConfigError:
        before = next(iter(last_config.served_with(config_path(path))), None)
        if before is None and path is not None:
            raise
        return mountpoint.resolve((before or Config()).mountpoint)


def add_output(parser: argparse.ArgumentParser, default: str = "-") -> None:
    """Add --output: where `write` is to write."""
    usual = "standard output" if default == "-" else f"{default}; - is standard output"
    what = f"where to write it (default: {usual})"
    parser.add_argument("--output", metavar="FILE", type=_output_given, default=default, help=what)


def _output_given(text: str) -> Optional[Path]:
    """Return the name of a file to write, None for the standard output. argparse.ArgumentTypeError for no name."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path is no file: name one")
    return None if text == "-" else Path(text)


_NOT_REPLACED = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS)
"""Of a file that is mounted by itself, or whose directory may not be written: it may be written all the same."""


def write(path: Optional[Path], text: str) -> None:
    """Write a text to a file, which is replaced whole, or to a device, a pipe or what a link leads to. CommandError.

    The file's directory is made. Without a path, the text is printed.
    """
    if path is None:
        print(text, end="")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            path.write_text(text)
        else:
            try:
                regular_file.replace(path, text.encode())
            except OSError as error:
                if error.errno not in _NOT_REPLACED:
                    raise
                path.write_text(text)
    except OSError as error:
        blocked = regular_file.not_a_directory(path.parent)
        reason = f"{blocked} is not a directory" if blocked else error.strerror
        raise CommandError(f"{path} cannot be written: {reason}") from None


def counted(number: int, noun: str) -> str:
    """Return "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def process_id(text: str) -> int:
    """Return a --pid. argparse.ArgumentTypeError where no process can have it."""
    if not (text.isascii() and text.isdecimal()) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no process id: give a whole number above 0")
    return int(text)


def add_container(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the ways to say which container is meant."""
    which = parser.add_mutually_exclusive_group(required=required)
    which.add_argument("--container", metavar="NAME", help="by its name, or the start of its id, on any engine")
    which.add_argument("--docker", metavar="NAME", help="by Docker's name or id")
    which.add_argument("--podman", metavar="NAME", help="by Podman's name or id")
    which.add_argument("--pid", type=process_id, help="that of this process")
    which.add_argument(
        "--cgroup",
        metavar="PATH",
        type=path_given("cgroup: its path is as /proc/PID/cgroup has it, such as /docker/ID"),
        help="that of this cgroup, a path as /proc/PID/cgroup has it",
    )


def chosen_process(options: argparse.Namespace) -> Optional[int]:
    """Return a process of the container that was named, None where none was. LxcfsError."""
    from lxcfs_py.attach import attach, running
    from lxcfs_py.runtimes import names

    if options.pid is not None:
        if not os.path.exists(f"/proc/{options.pid}"):
            raise CommandError(f"there is no process {options.pid}")
        return int(options.pid)
    if options.cgroup is not None:
        return _process_in(options.cgroup)
    for engine in ("docker", "podman"):
        if getattr(options, engine) is not None:
            return attach.engine_pid(engine, getattr(options, engine))
    if options.container is not None:
        return names.find(options.container, running.containers(running.processes()))
    return None


def _process_in(cgroup: str) -> int:
    path = "/" + cgroup.strip("/")
    for pid in roots.pids():
        with contextlib.suppress(OSError):
            paths = parse_paths(Path(f"/proc/{pid}/cgroup").read_bytes()).values()
            if any(f"{each}/".startswith(f"{path}/") for each in paths):
                return pid
    raise CommandError(f"there is no process in a cgroup {path}", "its path is as /proc/PID/cgroup has it")


def require_root() -> None:
    """CommandError for everybody else."""
    if os.geteuid() != 0:
        raise CommandError("only root sees and changes the mounts of containers", "run this with sudo")
