"""The part of protobuf that NRI needs: fields of strings, bytes, messages and whole numbers, one after the other.

A message is read as the values of each field by its number, and written as the fields that it has. Fields that nobody
asks for are skipped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Union

from lxcfs_py.errors import LxcfsError

Value = Union[int, bytes]
Fields = Mapping[int, list[Value]]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


class WireError(LxcfsError):
    """Bytes that are no message."""


def read(message: bytes) -> Fields:
    """Return the values of each field, in their order: numbers, and bytes for all else. WireError."""
    fields: dict[int, list[Value]] = defaultdict(list)
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _read_varint(message, position)
            fields[number].append(value)
            continue
        if kind == _BYTES:
            length, position = _read_varint(message, position)
        elif kind in _FIXED:
            length = _FIXED[kind]
        else:
            raise WireError(f"a field of the unknown kind {kind}")
        if position + length > len(message):
            raise WireError("a field is longer than its message")
        fields[number].append(message[position : position + length])
        position += length
    return fields


def text(fields: Fields, number: int) -> str:
    """Return a field's text, "" where there is none. WireError for a number."""
    values = texts(fields, number)
    return values[-1] if values else ""


def texts(fields: Fields, number: int) -> list[str]:
    """Return all texts of a repeated field. WireError."""
    return [value.decode(errors="replace") for value in messages(fields, number)]


def messages(fields: Fields, number: int) -> list[bytes]:
    """Return all messages of a field, as they are. WireError."""
    values = fields.get(number, [])
    found = [value for value in values if isinstance(value, bytes)]
    if len(found) != len(values):
        raise WireError(f"field {number} is a number")
    return found


def message(fields: Fields, number: int) -> Fields:
    """Return the fields of the message in a field; none where there is none. WireError."""
    return read(b"".join(messages(fields, number)))


def whole(fields: Fields, number: int) -> int:
    """Return a field's number, 0 where there is none. WireError."""
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise WireError(f"field {number} is no number")
    return value - (1 << 64) if value >> 63 else value


def mapping(fields: Fields, number: int) -> dict[str, str]:
    """Return a field of the type map<string, string>. WireError."""
    entries = map(read, messages(fields, number))
    return {text(entry, 1): text(entry, 2) for entry in entries}


def field(number: int, value: Union[int, str, bytes]) -> bytes:
    """Return a field as it is written; nothing for 0 and what is empty, as protobuf has it."""
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value) if value else b""
    return item(number, value) if value else b""


def item(number: int, value: Union[str, bytes]) -> bytes:
    """Return an item of a repeated field, empty or not."""
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def write(fields: Fields) -> bytes:
    """Return a message with the fields of another one, as `read` gives them: without those of a fixed width."""
    return b"".join(
        _varint(number << 3 | _VARINT) + _varint(value) if isinstance(value, int) else item(number, value)
        for number, values in fields.items()
        for value in values
    )


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it. WireError."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, position
    raise WireError("a number does not end")


def _varint(value: int) -> bytes:
    parts = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
