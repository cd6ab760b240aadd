"""What a user is told when something cannot be done."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from lxcfs_py.printable import printable

_PACKAGE = Path(__file__).parent


class LxcfsError(Exception):
    """Why something cannot be done: one sentence for a user, and where there is one, a hint of what to do."""

    def __init__(self, sentence: str = "", hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint

    def told_by(self, program: str) -> str:
        """Return the lines that a user reads."""
        return "\n".join([f"{program}: {printable(str(self))}", *([f"  {printable(self.hint)}"] if self.hint else [])])


def report(error: BaseException, program: str = "lxcfs-py") -> None:
    """Tell a user on standard error why a command ended: a traceback is nothing to go by."""
    if isinstance(error, LxcfsError):
        text = error.told_by(program)
    elif isinstance(error, OSError):
        text = f"{program}: {printable(of_system(error))}"
    else:
        what = f"{type(error).__name__}: {printable(str(error))}"
        text = f"{program}: this is a bug, please report it: {what} ({_way(error)})"
    print(text, file=sys.stderr, flush=True)


def of_system(error: OSError) -> str:
    """Return an error of the system as a sentence, without its number."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def in_words(error: BaseException) -> str:
    """Return what an error says to a user, without the number that Python puts before a system call's."""
    return of_system(error) if isinstance(error, OSError) else str(error)


def _way(error: BaseException) -> str:
    """Return where this package's code was, from the outside in: "cli.py:61, commands/show.py:30"."""
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    return ", ".join(f"{path.relative_to(_PACKAGE)}:{line}" for path, line in frames if _PACKAGE in path.parents)
