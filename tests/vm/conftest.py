"""Machines for the tests, and the rule for where none can be booted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.vm.machine import Machine, missing


@pytest.fixture(scope="module")
def boot(require: Callable[[object, str], None]) -> Iterator[Callable[..., Machine]]:
    """boot(suite, **options), with the arguments of Machine, returns one that runs till the module's tests are over."""
    require(not missing(), ", ".join(missing()))
    with contextlib.ExitStack() as stack:

        def start(suite: str, **options: Any) -> Machine:
            return stack.enter_context(Machine(suite, **options))

        yield start
