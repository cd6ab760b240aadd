"""A text that a container could choose, as a terminal and a log may have it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text on one line, with each character escaped that a terminal may heed, or that is no UTF-8."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
