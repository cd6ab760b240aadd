"""The standard streams of a process, of which whoever started it may have closed some."""

from __future__ import annotations

import io
import os
import sys


def open_closed() -> None:
    """Fill the places of closed streams: what is opened must not take the number of one, and be written into."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - it stays open


def take_all_letters() -> None:
    """Have a letter that the locale's encoding lacks be printed as "?", as the names of containers may have such."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":  # stderr never is
        sys.stdout.reconfigure(errors="replace")
