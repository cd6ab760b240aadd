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
from lxcfs_py.daemon import degraded
from lxcfs_py.linux import regular_file, runtime_directory

_KIND = "toml"
_MAX_BYTES = 1 << 20
"""Of what is kept, which may be longer than the file that it is from."""


def remember(config: Config, file: str) -> None:
    """Keep what is served, by its mountpoint, and the file that says so, "" where it does not name the mountpoint."""
    kept = runtime_directory.writable_path_of(config.mountpoint, _KIND)
    try:
        if kept is None:
            raise OSError(0, f"{runtime_directory.PATH} cannot be written")
        regular_file.replace(kept, _header(file) + configuration.dump(config).encode())
    except OSError as error:
        degraded.enter(
            "runtime files", f"a restart with a broken configuration would serve with the defaults ({error.strerror})"
        )
    else:
        degraded.leave("runtime files")


def recall(mount: str) -> Optional[Config]:
    """Return what served last at a mountpoint, None when that is not known."""
    kept = runtime_directory.writable_path_of(mount, _KIND)
    return _load(Path(kept)) if kept else None


def served_with(file: str) -> list[Config]:
    """Return what served last with a configuration file that named the mountpoint, or does so still."""
    found = []
    for kept in sorted(Path(runtime_directory.PATH).glob(f"*.{_KIND}")):
        config = _load(kept) if _first_line(kept) == _header(file) else None
        if config:
            found.append(config)
    return found


def is_of_another_file(server: str, file: str) -> bool:
    """Tell whether a server is known to have another configuration file than this one, by the path of its socket."""
    return _first_line(Path(server).with_suffix(f".{_KIND}")) not in (b"", _header(file), _header(""))


def _header(file: str) -> bytes:
    """Return the first line, a comment with a file's name: in UTF-8 whatever the locale, and on one line."""
    name = os.fsencode(file).decode(errors="backslashreplace")
    return b"# %s\n" % name.encode("utf-8" if name.isprintable() else "unicode_escape")


def _first_line(kept: Path) -> bytes:
    """Return the header of what is kept, b"" where there is none."""
    with contextlib.suppress(OSError):
        return regular_file.read(kept, _MAX_BYTES).partition(b"\n")[0] + b"\n"
    return b""


def _load(kept: Path) -> Optional[Config]:
    with contextlib.suppress(OSError, configuration.ConfigError):
        return configuration.parse(regular_file.read(kept, _MAX_BYTES), str(kept))
    return None  # there is none, or it is another version's
