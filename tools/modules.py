"""Draw the rooms of lxcfs_py and who imports whom, and list what each module holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "lxcfs_py"


def _modules() -> dict[str, ast.Module]:
    """Return the modules by their path below the package, "engine/kernel.py"."""
    return {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _room(path: str) -> str:
    """Return the room that a module stands in: "engine" of "engine/kernel.py", "config" of "config.py"."""
    return path.split("/")[0].partition(".")[0]


def _imported_rooms(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.module == "lxcfs_py":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lxcfs_py."):
            yield str(node.module).split(".")[1]


def drawing() -> Iterator[str]:
    """Yield a graph for Mermaid: an arrow goes from a room to each that it imports."""
    modules = _modules()
    rooms = {_room(path) for path in modules} - {"__init__", "__main__"}
    arrows = {
        (_room(path), room)
        for path, module in modules.items()
        for room in _imported_rooms(module)
        if _room(path) in rooms and room in rooms and room != _room(path)
    }
    yield "```mermaid"
    yield "graph TD"
    for start, end in sorted(arrows):
        yield f"  {start} --> {end}"
    yield "```"


def table() -> Iterator[str]:
    """Yield a table of all modules with the first line of each one's docstring."""
    yield "| module | what it holds |"
    yield "| --- | --- |"
    for path, module in _modules().items():
        docstring = ast.get_docstring(module)
        if docstring:
            yield f"| `{path}` | {docstring.splitlines()[0].rstrip()} |"
