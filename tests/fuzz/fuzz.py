"""Feed targets with inputs made of those that were new: that came to lines where none was before."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Optional

from tests.conftest import ROOT
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, clean_up

CORPUS = Path(__file__).parent / "corpus"
_PACKAGE = str(ROOT / "lxcfs_py") + os.sep
_SLOW = 2.0
"""Seconds: an input of some kilobytes that takes longer is told of."""


class Finding(NamedTuple):
    """An input that did what none may."""

    target: str
    text: bytes
    what: str

    def keep(self) -> Path:
        """Put it into the corpus, where the tests find it."""
        return kept(self.target, self.text)


def kept(target: str, text: bytes) -> Path:
    path = CORPUS / target / hashlib.sha256(text).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    return path


def corpus(target: str) -> Iterator[bytes]:
    """Yield what was kept of earlier runs, and what one begins with."""
    yield from TARGETS[target].seeds()
    for path in sorted((CORPUS / target).glob("*")):
        yield path.read_bytes()


def feed(target: str, text: bytes) -> Optional[Finding]:
    """Feed one input; return what is wrong with what came of it."""
    started = time.process_time()
    try:
        TARGETS[target].feed(text)
    except Exception:
        return Finding(target, text, traceback.format_exc())
    took = time.process_time() - started
    return Finding(target, text, f"it took {took:.1f} s") if took > _SLOW else None


class Lines:
    """The lines of the package that were come to."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, int]] = set()
        self._new = False

    def are_new(self, what: Callable[[], object]) -> bool:
        """Do something; tell whether it came to lines where nothing was before."""
        self._new = False
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            what()
        finally:
            sys.settrace(before)
        return self._new

    def _call(self, frame: FrameType, _event: str, _argument: Any) -> Optional[Callable[..., Any]]:
        return self._line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Optional[Callable[..., Any]]:
        if event == "line":
            key = (id(frame.f_code), frame.f_lineno)
            if key not in self._seen:
                self._seen.add(key)
                self._new = True
        return self._line


class Fed(NamedTuple):
    """What came of a target's time."""

    inputs: int
    new: list[bytes]
    findings: list[Finding]


def run(target: str, seconds: float, seed: int) -> Fed:
    """Feed a target for so long, with at least all that is kept."""
    chance = random.Random(seed)
    logging.disable(logging.CRITICAL)
    lines, inputs, new, findings = Lines(), [], [], []
    number = 0
    deadline = time.monotonic() + seconds

    def one(text: bytes) -> bool:
        found: list[Optional[Finding]] = []
        is_new = lines.are_new(lambda: found.append(feed(target, text)))
        if found[0]:
            findings.append(found[0])
        return is_new

    for text in corpus(target):
        inputs.append(text)
        one(text)
        number += 1
    while time.monotonic() < deadline and len(findings) < 5:
        text = mutated(chance, inputs)
        number += 1
        if one(text) and len(text) < 4096:
            inputs.append(text)
            new.append(text)
    logging.disable(logging.NOTSET)
    return Fed(number, new, findings)


def all_of(seconds: float, wanted: list[str], seed: int) -> bool:
    """Feed targets in turns for so many seconds together; print a line for each. Return whether all is well."""
    well = True
    try:
        for target in wanted:
            fed = run(target, seconds / len(wanted), seed)
            for text in fed.new:
                kept(target, text)
            print(
                f"{target}: {fed.inputs} inputs, {len(fed.new)} of them new, {len(fed.findings)} findings", flush=True
            )
            for finding in fed.findings:
                well = False
                print(f"{finding.what}\nkept as {finding.keep().relative_to(ROOT)}: {finding.text[:300]!r}", flush=True)
    finally:
        clean_up()
    return well
