"""lxcfs-py explain: why a container sees a figure."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Optional

from lxcfs_py import files
from lxcfs_py.attach import attach
from lxcfs_py.commands import entries
from lxcfs_py.commands.common import (
    CommandError,
    add_config,
    add_container,
    chosen_process,
    new_command,
    require_root,
    served_config,
    text_width,
)
from lxcfs_py.commands.entries import Entry
from lxcfs_py.commands.show import text_of
from lxcfs_py.commands.sources import Subject
from lxcfs_py.printable import printable
from lxcfs_py.runtimes.names import Names
from lxcfs_py.runtimes.pods import unknown_words

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

_INDENT = " " * 4
_MOST_FIELDS = 24  # of a file, in an error

_SYSINFO = (
    "A program that asks sysinfo(2) instead is told the host's, unless the daemon answers that (lxcfs-py seccomp)."
)
_AFFINITY = (
    "A program that asks sched_getaffinity(2) instead is told the cpuset without the quota, unless the daemon answers "
    "that (lxcfs-py seccomp)."
)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "explain",
        _explain,
        "say why a container sees a figure",
        "Say of the figures in a file, or of one field, where each comes from: which cgroup's limit holds, what those "
        "above it have, what the host has, and which CPUs are shown and why. Say whether the container has the file "
        "mounted, and what a program asks that does not read it. Without a field, those are left out that are 0 or "
        "the kernel's constants.",
        [
            ("lxcfs-py explain meminfo:MemTotal --container web", "why this much memory?"),
            ("lxcfs-py explain cpuinfo --pid 4711", "why one CPU?"),
        ],
    )
    parser.add_argument("file", metavar="FILE[:FIELD]", help="e.g. meminfo, meminfo:MemTotal or stat:idle")
    add_container(parser)
    add_config(parser)


def _explain(options: argparse.Namespace) -> int:
    require_root()
    name, path, field = _file_and_field(options.file)
    pid = chosen_process(options)
    assert pid is not None
    config = served_config(options.config)
    try:
        subject = Subject(pid, config)
    except OSError:
        raise CommandError(f"process {pid} has ended") from None
    for sentence in _subject(subject, pid, name):
        print(_filled(sentence))
    if subject.container is None or name not in subject.config.files.enabled:
        return 0
    told = _entries(subject, name, path, field, options.config)
    for source, alike in itertools.groupby(told, key=lambda entry: entry.source):
        for entry in alike:
            beside = f" (the host's: {entry.host})" if entry.host else ""
            print(f"{entry.label}: {entry.figure}{beside}".rstrip(" :"))
        print(_filled(source, _INDENT))
    for call, figures in _INSTEAD.items():
        if any(entry.label in figures.get(name, ()) for entry in told):
            print(textwrap.fill(call, text_width(), break_on_hyphens=False))
    return 0


def _file_and_field(text: str) -> tuple[str, str, str]:
    """Return a file that can be explained, what is meant inside of it where it is a directory, and the field, or "".

    CommandError. What is inside of a directory has no fields, and may have a colon in its name.
    """
    for directory in files.DIRECTORIES:
        if files.named(text).startswith(f"{directory}/"):
            return directory, files.named(text)[len(directory) + 1 :], ""
    given, _, field = text.partition(":")
    name = files.named(given)
    if name in files.NAMES:
        return name, "", field
    there_is = f"there is: {', '.join(files.NAMES)}"
    if not name:
        raise CommandError(f"{text!r} names no file to explain", there_is)
    near = difflib.get_close_matches(name, files.NAMES, 1) or difflib.get_close_matches(f"proc/{name}", files.NAMES, 1)
    raise CommandError(
        f"there is no file {given} to explain" + (f"; did you mean {near[0]}?" if near else ""),
        there_is,
    )


def _entries(subject: Subject, name: str, path: str, field: str, config: Optional[str]) -> list[Entry]:
    """Return what is to be told. CommandError where there is no such field, or no such file in the directory."""
    if path:
        try:
            return [entries.inside(subject, name, path, text_of(f"{name}/{path}", subject.init, config).decode())]
        except OSError as error:
            raise CommandError(f"/{name}/{path} cannot be explained: {error.strerror}") from None
    text = b""
    with contextlib.suppress(OSError):
        text = text_of(f"{name}/online" if name in files.DIRECTORIES else name, subject.init, config)
    all_of_it = list(entries.of(subject, name, text.decode()))
    if not field:
        return [entry for entry in all_of_it if entry.at_a_glance]
    found = [entry for entry in all_of_it if entry.answers_to(field)]
    if not found:
        known = [entry.label for entry in all_of_it]
        near = difflib.get_close_matches(field, known, 1)
        more = ", …" if len(known) > _MOST_FIELDS else ""
        hint = f"did you mean {near[0]}?" if near else f"there is: {', '.join(known[:_MOST_FIELDS])}{more}"
        raise CommandError(f"{name} has no field {field} to explain", hint)
    return found


def _filled(text: str, indent: str = "") -> str:
    """Return a sentence on lines that fit, with paths in one piece."""
    return textwrap.fill(
        printable(text),
        text_width(),
        initial_indent=indent,
        subsequent_indent=indent or _INDENT,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _subject(subject: Subject, pid: int, name: str) -> Iterator[str]:
    """Yield who it is, and whether it has the file."""
    cgroup = subject.cgroup()
    if subject.container is None:
        yield f"Process {pid} is in no container: it has the host's own files, and /{name} shows it the host."
        return
    identity = Names().of(cgroup)
    called = f"{printable(identity.name)} ({identity.engine}), " if identity else ""
    yield f"{called}process {subject.init}, cgroup {printable(cgroup)}"
    yield f"/{name} in it: {_mounted(subject, name)}"
    for policy in subject.policies:
        whose = ", ".join(f"{key} {value}" for key, value in policy.conditions())
        yield f"a policy for {whose} overrides {', '.join(key for key, _ in policy.settings)}"
    yield from unknown_words(identity.annotations if identity else {})


def _mounted(subject: Subject, name: str) -> str:
    if name not in subject.config.files.enabled:
        return "not enabled (files.enabled): whoever has it mounted sees the host's"
    # Not every container's first process is the first of a pid namespace.
    found = attach.status_of(subject.init, subject.config.mountpoint, [name])
    state = found.files.get(name, found.error) if found else "none"
    return {
        "live": "mounted and served",
        "other": "mounted, of another server than this",
        "dead": "mounted, but its server has ended: reading it fails. lxcfs-py attach gives it again",
        "silent": "mounted, but its server does not answer: who reads it waits",
        attach.HIDDEN: "hidden by the container's engine (a masked path): it sees nothing",
        "none": "not mounted: it sees the host's. lxcfs-py attach puts it there",
    }.get(state, state)


_INSTEAD: dict[str, dict[str, tuple[str, ...]]] = {
    _SYSINFO: {
        "proc/loadavg": ("averages", "tasks"),
        "proc/meminfo": ("MemTotal", "MemFree", "Buffers", "Shmem", "SwapTotal", "SwapFree"),
        "proc/swaps": ("Size", "Used"),
        "proc/uptime": ("uptime",),
    },
    _AFFINITY: {
        "proc/cpuinfo": ("CPUs", "processor"),
        "proc/stat": ("CPUs",),
        "sys/devices/system/cpu": ("CPUs", "online"),
    },
}
"""What is said of programs that ask by a system call, and the fields of files that it tells."""
