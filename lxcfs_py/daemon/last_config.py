"""The configuration that served last, for a server that must go on although the file has been broken meanwhile.

A restart must not end the mount that running containers use, whatever somebody was writing into the file just then.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Optional

from lxcfs_py import config as configuration
from lxcfs_py.config import Config
from lxcfs_py.linux.mountpoint import runtime_file


def remember(path: str, config: Config) -> None:
    """Keep what was read from the file `path`; where it cannot be kept, it is not."""
    kept = runtime_file(path, "toml")
    if kept:
        with contextlib.suppress(OSError):
            new = Path(f"{kept}.new")
            new.write_text(configuration.dump(config))
            os.replace(new, kept)


def recall(path: str) -> Optional[Config]:
    """Return what served last of the file `path`, None when that is not known."""
    kept = runtime_file(path, "toml")
    try:
        return configuration.load(kept) if kept and os.path.exists(kept) else None
    except configuration.ConfigError:  # another version's
        return None
