"""Inputs made of others: bits turned, parts cut, doubled, moved, and taken from elsewhere; numbers at their bounds."""

from __future__ import annotations

import random
from collections.abc import Sequence

NUMBERS = [b"0", b"-1", b"1e999", b"nan", b"18446744073709551616", b"9" * 400, b"0x10", b"\xd9\xa1", b"1_0", b"+1", b""]
WORDS = [b"\n", b" ", b"\0", b":", b"/", b"..", b"\\012", b"\xff\xfe", b"{", b"[" * 100, b'"', b"null", b"kB", b"max"]
BINARY = [bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x80" * 10, bytes(8), b"\xff" * 8, b"\1" + bytes(7)]
_MOST = 1 << 16


def mutated(chance: random.Random, inputs: Sequence[bytes]) -> bytes:
    """Return something like one of the inputs."""
    text = chance.choice(inputs)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        text = _WAYS[chance.randrange(len(_WAYS))](chance, text, inputs)
    return text[:_MOST]


def _place(chance: random.Random, text: bytes) -> tuple[int, int]:
    start = chance.randrange(len(text) + 1)
    return start, min(start + chance.choice((0, 1, 1, 2, 4, 8, 40, 200)), len(text))


def _turn(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    if not text:
        return text
    place = chance.randrange(len(text))
    return text[:place] + bytes([text[place] ^ 1 << chance.randrange(8)]) + text[place + 1 :]


def _replace(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _place(chance, text)
    return text[:start] + chance.choice(chance.choice((NUMBERS, WORDS, BINARY))) + text[end:]


def _number(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    """Put another number in the place of one."""
    starts = [place for place, byte in enumerate(text) if 48 <= byte < 58]
    if not starts:
        return text
    start = end = chance.choice(starts)
    while end < len(text) and 48 <= text[end] < 58:
        end += 1
    return text[:start] + chance.choice(NUMBERS) + text[end:]


def _cut(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _place(chance, text)
    return text[:start] + text[end:]


def _end(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    return text[: chance.randrange(len(text) + 1)]


def _double(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _place(chance, text)
    return text[:end] + text[start:end] * chance.choice((1, 1, 3, 100)) + text[end:]


def _noise(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _place(chance, text)
    return text[:start] + bytes(chance.getrandbits(8) for _ in range(chance.choice((1, 4, 16)))) + text[end:]


def _cross(chance: random.Random, text: bytes, inputs: Sequence[bytes]) -> bytes:
    other = chance.choice(inputs)
    return text[: chance.randrange(len(text) + 1)] + other[chance.randrange(len(other) + 1) :]


def _lines(chance: random.Random, text: bytes, _: Sequence[bytes]) -> bytes:
    """Swap two lines, or leave one out."""
    lines = text.split(b"\n")
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    if chance.random() < 0.3:
        del lines[one]
    return b"\n".join(lines)


_WAYS = (_turn, _replace, _replace, _number, _number, _cut, _end, _double, _noise, _cross, _lines)
