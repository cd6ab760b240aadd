"""What takes bytes from outside is fed with what was kept of earlier runs, and for a minute with what is made of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz import fuzz, targets

MINUTE = 60.0


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    yield
    targets.clean_up()


@pytest.mark.parametrize("target", targets.TARGETS)
def test_what_was_kept_does_no_harm(target: str) -> None:
    findings = [fuzz.feed(target, text) for text in fuzz.corpus(target)]
    assert not list(filter(None, findings))


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.TARGETS)
def test_nor_does_what_is_made_of_it(target: str) -> None:
    fed = fuzz.run(target, MINUTE / len(targets.TARGETS), seed=len(target))
    print(f"{fed.inputs} inputs, {len(fed.new)} of them new")
    assert not fed.findings, [(finding.what, finding.text) for finding in fed.findings]
