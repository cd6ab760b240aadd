"""The form of the lines that all processes of this program log: "lxcfs-py: WARNING: …" on standard error."""

from __future__ import annotations

import logging
import sys


def to_stderr(level: str = "info") -> None:
    """Log what is of that level or above: "debug", "info", "warning" or "error"."""
    logging.basicConfig(format="lxcfs-py: %(levelname)s: %(message)s", stream=sys.stderr, level=level.upper())
