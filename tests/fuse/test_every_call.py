"""A server may be killed at each system call of its start, takeover and stop: some of them; `make soak` has all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Callable

import pytest

from lxcfs_py.runtimes.sandbox import Sandbox
from tests import soak
from tests.kept import reading


@pytest.fixture
def place(sandbox: Callable[..., Sandbox]) -> Iterator[soak.Place]:
    with soak.place() as place:
        yield place
        print(place.log())  # where a test has failed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "step"), [(soak.calls_of_start, 40), (soak.calls_of_takeover, 40), (soak.calls_of_stop, 10)]
)
def test_no_reader_notices_a_server_that_is_killed_at_any_system_call(
    place: soak.Place, sandbox: Callable[..., Sandbox], scenario: Callable[[soak.Place, int], int], step: int
) -> None:
    with reading(sandbox(memory=256 << 20, cpus=1, views=place.mountpoint)):
        assert scenario(place, step) > 2


@pytest.mark.slow
def test_no_reader_notices_reloads(place: soak.Place, sandbox: Callable[..., Sandbox]) -> None:
    with reading(sandbox(memory=256 << 20, cpus=1, views=place.mountpoint)):
        soak.reloads(place, 20)
