"""Write the parts of documents and examples that are made from the code: `make generate`; `--check` only compares.

A part stands between two lines that its file keeps: everything between the line that begins with `after` and the next
one that begins with `before` is made anew.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Callable, NamedTuple

from lxcfs_py import files
from lxcfs_py.commands import fields
from lxcfs_py.config import Config
from lxcfs_py.runtimes import bind_snippets
from tools import chart, commands, modules, programs

ROOT = Path(__file__).parent.parent


class Part(NamedTuple):
    """A part of a file."""

    file: str
    after: str
    before: str
    make: Callable[[], Iterator[str]]
    """Yields its lines."""


def table_of_files() -> Iterator[str]:
    yield "| file | shows |"
    yield "| --- | --- |"
    for name, file in files.FILES.items():
        yield f"| `/{name}` | {file.shows} |"


def enabled_files() -> Iterator[str]:
    for name in files.NAMES:
        yield f'  "{name}",'


def manual_of_files() -> Iterator[str]:
    for name, file in files.FILES.items():
        yield ".TP"
        yield f".B {name}"
        yield file.shows[0].upper() + file.shows[1:] + "."


def volume_mounts() -> Iterator[str]:
    for volume in bind_snippets.kubernetes_volumes(bind_snippets.binds_of(Config())):
        yield f"            - name: {volume.name}"
        yield f"              mountPath: {volume.target}"
        yield "              readOnly: true"
        yield "              mountPropagation: HostToContainer"


def volumes() -> Iterator[str]:
    for volume in bind_snippets.kubernetes_volumes(bind_snippets.binds_of(Config())):
        yield f"        - name: {volume.name}"
        yield "          hostPath:"
        yield f"            path: {volume.source}"
        yield f"            type: {volume.type}"


def sources(rows: Iterable[fields.Row]) -> Iterator[str]:
    """Yield a table of fields with their sources."""
    yield "| field | cgroup v1 | cgroup v2 |"
    yield "| --- | --- | --- |"
    for row in rows:
        names = row.called or ", ".join(f"`{name}`" for name in row.names)
        yield f"| {names} | {row.v1} | {row.v2 or 'the same'} |"


TABLES = {
    "meminfo": fields.MEMINFO,
    "swaps": fields.SWAPS,
    "vmstat": fields.VMSTAT,
    "diskstats": fields.DISKSTATS,
    "cpus": fields.CPUS + fields.CPUINFO + fields.STAT + fields.UPTIME + fields.LOADAVG,
    "cpu tree": fields.CPU_TREE,
    "node tree": fields.NODE_TREE,
}

PARTS = (
    *(
        Part("docs/views.md", f"<!-- {name} -->", f"<!-- end of {name} -->", functools.partial(sources, rows))
        for name, rows in TABLES.items()
    ),
    Part("README.md", "<!-- files -->", "<!-- end of files -->", table_of_files),
    Part("etc/lxcfs.toml", "enabled = [", "]", enabled_files),
    Part("docs/man/lxcfs.toml.5", '.\\" files', '.\\" end of files', manual_of_files),
    Part("kubernetes/examples/by-hand.yaml", "          volumeMounts:", "      volumes:", volume_mounts),
    Part("kubernetes/examples/by-hand.yaml", "      volumes:", "", volumes),
    Part("docs/man/lxcfs-py.1", '.\\" commands', '.\\" end of commands', commands.manual_list),
    Part("docs/programs.md", "<!-- programs -->", "<!-- end of programs -->", programs.table),
    Part("docs/architecture.md", "<!-- rooms -->", "<!-- end of rooms -->", modules.drawing),
    Part("docs/architecture.md", "<!-- modules -->", "<!-- end of modules -->", modules.table),
)


def generated(part: Part, text: str) -> str:
    """Return a file's text with one part made anew. ValueError when it has no such part."""
    lines = text.splitlines()
    try:
        start = next(number for number, line in enumerate(lines) if line.startswith(part.after)) + 1
        ends = (number for number, line in enumerate(lines) if number >= start and line.startswith(part.before))
        end = next(ends) if part.before else len(lines)
    except StopIteration:
        raise ValueError(f"{part.file} has no part between {part.after!r} and {part.before!r}") from None
    return "\n".join([*lines[:start], *part.make(), *lines[end:]]) + "\n"


def main() -> int:
    """Write the parts, or with --check say which are out of date; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where something is out of date")
    only_compared = parser.parse_args().check
    texts = {part.file: (ROOT / part.file).read_text() for part in PARTS}
    current = dict(texts)
    for part in PARTS:
        current[part.file] = generated(part, current[part.file])
    for name, text in commands.whole_files().items():
        texts[name] = (ROOT / name).read_text() if (ROOT / name).exists() else ""
        current[name] = text
    stale = [name for name, text in current.items() if text != texts[name]]
    for name in stale:
        if only_compared:
            print(f"{name} is out of date: run make generate", file=sys.stderr)
        else:
            (ROOT / name).write_text(current[name])
            print(f"wrote {name}")
    for path in chart.stale():
        stale.append(str(path.relative_to(ROOT)))
        print(f"{stale[-1]} is out of date: run make generate" if only_compared else f"wrote {stale[-1]}")
    if not only_compared:
        chart.write()
    return 1 if stale and only_compared else 0


if __name__ == "__main__":
    sys.exit(main())
