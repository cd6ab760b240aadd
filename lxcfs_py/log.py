"""The form of the lines that all processes of this program log: "lxcfs-py: WARNING: …" on standard error."""

from __future__ import annotations

import logging
import select
import sys
from typing import TYPE_CHECKING, TextIO

from lxcfs_py.printable import printable

_SECONDS = 1.0


def to_stderr(level: str = "info") -> None:
    """Log what is of that level or above: "debug", "info", "warning" or "error"."""
    handler = _Handler(sys.stderr)
    handler.setFormatter(_Formatter("lxcfs-py: %(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level.upper())


class _Formatter(logging.Formatter):
    """Keeps each message on its line: containers choose names that are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - as the library has it
        """Return the line, behind which there may be a traceback."""
        record.message = printable(record.message)
        return super().formatMessage(record)


if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[TextIO]
else:  # its class takes a parameter since Python 3.11
    _StreamHandler = logging.StreamHandler


class _Handler(_StreamHandler):
    """Leaves out what nobody takes: whoever reads the log may stand still, and a server must not wait for that."""

    _is_stuck = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if it can be written within a second, or at once where the one before could not."""
        if self._can_be_written(0.0 if self._is_stuck else _SECONDS):
            super().emit(record)

    def _can_be_written(self, seconds: float) -> bool:
        try:
            writable = select.poll()
            writable.register(self.stream, select.POLLOUT)
            self._is_stuck = not writable.poll(seconds * 1000)
        except (OSError, ValueError):  # it is no descriptor, as in tests
            return True
        return not self._is_stuck
