"""Whoever reads the log may stand still: nobody waits for that."""

from __future__ import annotations

import logging
import os

import pytest

from lxcfs_py.log import _Handler, to_stderr


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


def test_a_name_that_a_container_has_chosen_stays_on_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    to_stderr()
    logging.root.warning("/%s: ü", "a\n\033[2J\udcff")
    assert capsys.readouterr().err == "lxcfs-py: WARNING: /a\\n\\x1b[2J\\udcff: ü\n"
