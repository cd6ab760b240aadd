"""What a container sees: one module per file, each a pure function of what the kernel reports."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Callable

from lxcfs_py.files import FILES
from lxcfs_py.views import sys_block, sys_cpu, sys_memory, sys_node

if TYPE_CHECKING:
    from lxcfs_py.config import Config
    from lxcfs_py.container.containers import Container
    from lxcfs_py.linux.host import Host

View = Callable[["Container", "Host", "Config"], bytes]
"""Renders a file. OSError or ValueError when the container's cgroup cannot be read."""


def _view(name: str) -> View:
    """Return a view: `render` of meminfo.py for proc/meminfo, `cpu` of pressure.py for proc/pressure/cpu."""
    _, module, *function = name.split("/")
    view: View = getattr(import_module(f"{__name__}.{module}"), *function or ["render"])
    return view


VIEWS = {name: _view(name) for name, file in FILES.items() if not file.is_directory}
"""The views by the names of their files."""

TREES = {
    tree.name: tree
    for tree in (
        *(sys_block.TREE, sys_block.BY_NAME, sys_block.BY_NUMBER),
        *(sys_cpu.TREE, sys_node.TREE, sys_memory.TREE),
    )
}
"""The directories of the host's by their names."""
