"""What a TOML document says in which line, and what is wrong with a text that is none.

All of it is for errors: the parser does not tell in which lines things stand, nor much of what it cannot read.
"""

import re
from collections.abc import Iterator
from typing import Callable, NamedTuple

MAX_PARTS = 8
"""Of a key, with dots between: a parser takes memory by the square of them."""

_LONGEST_SHOWN = 200  # of what the parser says, which may have a key in it
_BEGINS = re.compile(r"\s*([\w.-]+)[ \t]*[=:]")
_SWITCHES = {"yes": "true", "on": "true", "true": "true", "no": "false", "off": "false", "false": "false"}
_AMOUNT = re.compile(r"(\d*(?:\.\d+)?)[ \t]*(?:s|sec|seconds?)?")
_QUOTES = "\"'\u201c\u201d\u201e\u2018\u2019"  # of word processors, too

# Comments go, and so does the text of strings that span lines: what looks like a key in them is none. A string that
# does not end goes as far as it could: who tried anew behind each quote would take forever.
_NOT_KEYS = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"{3,5}|\\?\Z)'
    + r"|'''.*?(?:'{3,5}|\Z)"
    + r'|"(?:\\.|[^"\\\n])*"?'
    + r"|'[^'\n]*'?"
    + r"|#[^\n]*",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?:\.[\w-]+){{{MAX_PARTS}}}")
_LONGEST_KEY = 100  # letters, by which keys are told apart here
_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*"
_STATEMENT = re.compile(rf"[ \t]*(?:\[\[?[ \t]*({_DOTTED})[ \t]*\]\]?[ \t\r]*$|({_DOTTED})[ \t]*=)")


def quoted(text: str) -> str:
    """A TOML string on one line; whatever a terminal might take amiss is escaped."""

    def escaped(letter: str) -> str:
        if letter in '"\\':
            return "\\" + letter
        return letter if letter.isprintable() else f"\\U{ord(letter):08x}"

    return '"' + "".join(map(escaped, text)) + '"'


def fault(name: str, text: str, error: str, may_be: Callable[[str, str], bool]) -> str:
    """Return what is wrong with the text of a file that is no TOML, of which the parser says `error`.

    `may_be` tells whether a key may have a value, as TOML has it.
    """
    again = next(_set_again(text), None) if error.startswith("Cannot ") else None
    if again:
        key, first, line = again
        named = re.sub(r"^policy\[\d+\]", "policy", key)
        return f"{name}:{line}: {quoted(named)} is there twice, in line {first} before; allowed: once"
    at = re.search(r" \(at line (\d+), column \d+\)$", error)
    if not at:
        return f"{name}: cannot be read as TOML: {error}"
    meant = _meant(text.split("\n"), int(at[1]) - 1, may_be)
    shown = error if len(error) <= _LONGEST_SHOWN else f"{error[:_LONGEST_SHOWN]}..."
    return f"{name}:{at[1]}: cannot be read as TOML: {shown}" + (f"; did you mean {meant}?" if meant else "")


def _meant(lines: list[str], number: int, may_be: Callable[[str, str], bool]) -> str:
    """Return what a line, counted from 0, was meant to be, as far as it may be that; "" where it is not known."""
    statement = lines[number].partition("#")[0]
    begins = _BEGINS.match(statement)
    # No pattern for the rest: one that can divide blanks in several ways takes minutes for a line full of them.
    word = statement[begins.end() :].strip().removesuffix(";").rstrip() if begins else ""
    if not (begins and word):
        return ""
    key = begins[1]
    *_, last = (_Statement("", 0, False), *_statements("\n".join([*lines[:number], f"{key} = 0"])))
    if last.line != number + 1:
        return ""
    bare = word.strip(_QUOTES)
    amount = _AMOUNT.fullmatch(bare)
    number_of = re.sub(r"^0+(?=\d|\.)", "", amount[1]) if amount else ""
    # With quotes within, it is several values, or one with what was meant for a comment behind it.
    text = quoted(bare) if set(bare).isdisjoint(_QUOTES) else ""
    values = (_SWITCHES.get(bare.lower()), f"0{number_of}" if number_of[:1] == "." else number_of, word, text)
    return next((f"{key} = {value}" for value in values if value and may_be(last.key, value)), "")


def line_of_a_long_key(text: str) -> int:
    """The line, from 1, of a key of more parts than may be; 0 where there is none."""
    bare = re.sub("[ \t]+", "", _NOT_KEYS.sub(lambda match: "\n" * match[0].count("\n") or "x", text))
    long = _LONG_KEY.search(bare)
    return bare.count("\n", 0, long.start()) + 1 if long else 0


class _Statement(NamedTuple):
    """A key that is set, or a table that is opened."""

    key: str
    """Dotted, and numbered within an array: "policy[0].cpu.mode"; the beginning of one that is long."""

    line: int
    opens_next: bool
    """True of a table that is the next one of an array, [[policy]]."""

    tables: tuple[str, ...] = ()
    """Those that a key with dots opens on the way: "cpu" for cpu.mode."""


def _statements(text: str) -> Iterator[_Statement]:
    """Yield what a TOML document says, line by line, from 1.

    A scan, not a parser: it misses a key in an inline table, say.
    """

    def blank(match: "re.Match[str]") -> str:
        token = match[0]
        return token if token[0] in "\"'" and token[:3] not in ('"""', "'''") else "\n" * token.count("\n")

    arrays: dict[str, int] = {}  # how many tables each has so far
    table = ""
    for number, line in enumerate(_NOT_KEYS.sub(blank, text).split("\n"), 1):
        match = _STATEMENT.match(line)
        if not match:
            continue
        dotted = ".".join(part.strip("\"'") for part in re.findall(_NAME, match[1] or match[2]))
        dotted = dotted[:_LONGEST_KEY]
        if match[1]:
            opens_next = match[0].lstrip().startswith("[[")
            if opens_next:
                arrays[dotted] = arrays.get(dotted, -1) + 1
            first, dot, rest = dotted.partition(".")
            key = f"{first}[{arrays[first]}]{dot}{rest}" if first in arrays else dotted
            table = f"{key}."
            yield _Statement(key[:_LONGEST_KEY], number, opens_next)
        else:
            key = (table + dotted)[:_LONGEST_KEY]
            opened = tuple(place for place in _places(key)[1:] if len(place) > len(table))
            yield _Statement(key, number, False, opened)


def _set_again(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield what a TOML document says more than once: its dotted key, the line of before, and its own.

    Tables that keys with dots open come last: these may do that again, but neither for what else is there, nor may that
    come after them.
    """
    before: dict[str, int] = {}
    opened: dict[str, int] = {}
    tables: list[tuple[str, int, int]] = []
    for statement in _statements(text):
        if statement.key in before:
            yield statement.key, before[statement.key], statement.line
        elif statement.key in opened:
            tables.append((statement.key, opened[statement.key], statement.line))
        before[statement.key] = statement.line
        for table in statement.tables:
            if table in before:
                tables.append((table, before[table], statement.line))
            opened.setdefault(table, statement.line)
    yield from tables


def lines(text: str) -> dict[str, int]:
    """Dotted key or table -> the line, from 1, where a TOML document sets or opens it first."""
    found: dict[str, int] = {}
    for key, number, opens_next, _ in _statements(text):
        if opens_next:
            found.setdefault(key.partition("[")[0], number)
        for place in _places(key):
            found.setdefault(place, number)
    return found


def line(key: str, lines: dict[str, int]) -> int:
    """The line of a key, or of the table around it when the key's own was missed; 0 when that was missed too."""
    return next((lines[place] for place in _places(key) if place in lines), 0)


def _places(key: str) -> list[str]:
    """A dotted key and the tables around it, from the innermost on."""
    parts = key[:_LONGEST_KEY].split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
