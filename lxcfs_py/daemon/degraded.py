"""What this server has to do without: it serves all the same, and says so here, in the journal and in its metrics."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

_states: dict[str, str] = {}


def enter(what: str, sentence: str) -> None:
    """Take note, by a word for what is concerned, and warn unless that is known."""
    if _states.get(what) != sentence:
        _states[what] = sentence
        log.warning("degraded: %s", sentence)


def leave(what: str) -> None:
    """Take note that it is as it should be again."""
    if _states.pop(what, None):
        log.info("no longer degraded: %s", what)


def states() -> dict[str, str]:
    """Return what is not as it should be: a sentence by a word for what is concerned."""
    return dict(_states)
