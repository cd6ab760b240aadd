"""Scenarios as the programs that make tables take them by name: NAME, NAME=NUMBER or NAME=NUMBER+NUMBER."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Optional


class Wanted(NamedTuple):
    """A scenario, and how often it is to be tried."""

    name: str
    numbers: list[int]


def scenarios(doc: Optional[str], known: Iterable[str], arguments: Optional[Sequence[str]] = None) -> list[Wanted]:
    """Return those that are named, or all; `doc` is what --help says. SystemExit for what is none."""
    names = list(known)

    def wanted(text: str) -> Wanted:
        name, _, number = text.partition("=")
        if name not in names or not re.fullmatch(r"(\d+(\+\d+)*)?", number):
            raise argparse.ArgumentTypeError(f"{text!r} is no scenario; there is: {', '.join(names)}")
        return Wanted(name, [int(each) for each in number.split("+") if each])

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wanted", nargs="*", type=wanted, metavar="NAME[=NUMBER]", help=", ".join(names))
    return parser.parse_args(arguments).wanted or [Wanted(name, []) for name in names]
