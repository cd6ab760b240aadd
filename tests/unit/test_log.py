"""Whoever reads the log may stand still: nobody waits for that."""

from __future__ import annotations

import logging
import os

from lxcfs_py.log import _Handler


def test_a_line_that_nobody_takes_is_left_out_and_later_ones_are_written() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filled = os.write(writing, b"x" * (1 << 20))
    os.set_blocking(writing, True)
    with open(writing, "w") as stream, open(reading, "rb", buffering=0) as reader:
        handler = _Handler(stream)
        for text in ("one", "two"):
            handler.emit(logging.makeLogRecord({"msg": text}))
        assert len(reader.read(filled)) == filled
        handler.emit(logging.makeLogRecord({"msg": "three"}))
        assert reader.read(100) == b"three\n"
