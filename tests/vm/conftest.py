"""Machines for the tests, and the rule for where none can be booted."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest

from tests.vm import debian
from tests.vm.machine import Machine, missing


@pytest.fixture(scope="module")
def boot(require: Callable[[object, str], None]) -> Iterator[Callable[..., Machine]]:
    """boot(suite, **options), with the arguments of Machine, returns one that runs till the module's tests are over."""
    require(not missing(), ", ".join(missing()))
    with contextlib.ExitStack() as stack:

        def start(suite: str, **options: Any) -> Machine:
            return stack.enter_context(Machine(suite, **options))

        yield start


@pytest.fixture(scope="session")
def debs(require: Callable[[object, str], None], tmp_path_factory: pytest.TempPathFactory) -> debian.Debs:
    """The package twice, built from this tree; the second has the higher version."""
    require(not debian.missing(), ", ".join(debian.missing()))
    directory = tmp_path_factory.mktemp("debs")
    return debian.Debs(debian.build(directory), debian.build(directory, "+1"))


@pytest.fixture(scope="session")
def booted(require: Callable[[object, str], None], debs: debian.Debs) -> Iterator[dict[str, Machine]]:
    """All Debian machines, by suite, with the package installed; booted once for all tests."""
    require(not missing(), ", ".join(missing()))
    with debian.one_of_each(functools.partial(debian.start, debs=debs)) as machines:
        yield machines


@pytest.fixture
def machines(booted: dict[str, Machine], debs: debian.Debs) -> dict[str, Machine]:
    """The Debian machines, each with the package installed and serving, and nothing else."""
    with ThreadPoolExecutor() as pool:
        debian.concurrently(pool, lambda machine: debian.reset(machine, debs), booted)
    return booted
