"""The socket of NRI: two connections on one, each of which carries calls as ttrpc has them.

A frame is the number of the connection and the length of what follows, and carries a piece of a call or of an answer: a
header, and a protobuf message. On connection 1 the runtime calls the plugin, on connection 2 the plugin the runtime.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple, Optional

from lxcfs_py.errors import LxcfsError
from lxcfs_py.runtimes.nri import wire

OK, UNIMPLEMENTED, INTERNAL = 0, 12, 13
"""Codes of an answer's status, as gRPC has them."""

_PLUGIN, _RUNTIME = 1, 2
_FRAME = struct.Struct(">II")  # connection, length
_HEADER = struct.Struct(">IIBB")  # length of the message, stream, kind, flags
_REQUEST, _RESPONSE = 1, 2
_LARGEST_FRAME = 4096  # that the runtime reads
_LARGEST_MESSAGE = 4 << 20  # that ttrpc allows
_RUNTIME_SERVICE = "nri.pkg.api.v1alpha1.Runtime"


class ConnectionLostError(LxcfsError):
    """The runtime has gone, or does not speak as NRI does: one sentence."""


class Call(NamedTuple):
    """What the runtime asks: a method of the plugin and its message."""

    stream: int
    method: str
    message: bytes


class Connection:
    """One that is open. Nothing blocks longer than the socket's timeout."""

    def __init__(self, opened: socket.socket) -> None:
        self._socket = opened
        self._received = b""
        self._pieces = {_PLUGIN: b"", _RUNTIME: b""}
        self._next_stream = 1

    def fileno(self) -> int:
        """Return the socket's descriptor: it is readable when `calls` has something to do."""
        return self._socket.fileno()

    def close(self) -> None:
        """Leave the runtime."""
        self._socket.close()

    def call(self, method: str, message: bytes) -> None:
        """Call the runtime; `calls` raises where it refuses. ConnectionLostError."""
        request = wire.field(1, _RUNTIME_SERVICE) + wire.field(2, method) + wire.field(3, message)
        self._send(_RUNTIME, self._next_stream, _REQUEST, request)
        self._next_stream += 2

    def answer(self, call: Call, message: bytes, code: int = OK, reason: str = "") -> None:
        """Answer a call; with another code than OK, there is a reason and no message. ConnectionLostError."""
        status = wire.field(1, code) + wire.field(2, reason)
        self._send(_PLUGIN, call.stream, _RESPONSE, wire.field(1, status) + wire.field(2, message))

    def calls(self) -> Iterator[Call]:
        """Read what has come and yield the calls that are complete. ConnectionLostError."""
        try:
            received = self._socket.recv(1 << 16)
        except OSError as error:
            raise ConnectionLostError(f"the runtime cannot be read from: {error.strerror or error}") from None
        if not received:
            raise ConnectionLostError("the runtime has closed the connection")
        self._received += received
        for connection, piece in self._frames():
            if connection not in self._pieces:
                raise ConnectionLostError(f"the runtime uses a connection {connection}, which NRI does not have")
            self._pieces[connection] += piece
            for stream, kind, message in self._messages(connection):
                call = self._call(connection, stream, kind, message)
                if call:
                    yield call

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self._received) >= _FRAME.size:
            connection, length = _FRAME.unpack_from(self._received)
            end = _FRAME.size + length
            if length > _LARGEST_MESSAGE + _HEADER.size:
                raise ConnectionLostError(f"the runtime sends a frame of {length} bytes")
            if len(self._received) < end:
                return
            piece, self._received = self._received[_FRAME.size : end], self._received[end:]
            yield connection, piece

    def _messages(self, connection: int) -> Iterator[tuple[int, int, bytes]]:
        """Yield stream, kind and message of all that is complete on a connection."""
        while len(self._pieces[connection]) >= _HEADER.size:
            pieces = self._pieces[connection]
            length, stream, kind, _ = _HEADER.unpack_from(pieces)
            end = _HEADER.size + length
            if length > _LARGEST_MESSAGE:
                raise ConnectionLostError(f"the runtime sends a message of {length} bytes")
            if len(pieces) < end:
                return
            self._pieces[connection] = pieces[end:]
            yield stream, kind, pieces[_HEADER.size : end]

    def _call(self, connection: int, stream: int, kind: int, message: bytes) -> Optional[Call]:
        try:
            fields = wire.read(message)
            if connection == _PLUGIN and kind == _REQUEST:
                return Call(stream, wire.text(fields, 2), b"".join(wire.messages(fields, 3)))
            status = wire.message(fields, 1)
            if connection == _RUNTIME and kind == _RESPONSE and wire.whole(status, 1) != OK:
                raise ConnectionLostError(f"the runtime refuses: {wire.text(status, 2)}")
        except wire.WireError as error:
            raise ConnectionLostError(f"the runtime sends what is no message: {error}") from None
        return None

    def _send(self, connection: int, stream: int, kind: int, message: bytes) -> None:
        content = _HEADER.pack(len(message), stream, kind, 0) + message
        pieces = [content[start : start + _LARGEST_FRAME] for start in range(0, len(content), _LARGEST_FRAME)]
        try:
            self._socket.sendall(b"".join(_FRAME.pack(connection, len(piece)) + piece for piece in pieces))
        except OSError as error:
            raise ConnectionLostError(f"the runtime cannot be written to: {error.strerror or error}") from None
