"""Machines for the tests, and the rule for where none can be booted.

Tests of one machine are one group: with `-n` and `--dist loadgroup` they run in one worker, one after the other, on a
machine that boots once, beside those of another machine in another worker.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from tests.vm import debian
from tests.vm.machine import Machine, locked, missing


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of `suite`, or of the `machine` made from it, on each suite, or on those that its module names."""
    if "suite" in metafunc.fixturenames:
        suites = getattr(metafunc.module, "SUITES", debian.SUITES)
        metafunc.parametrize("suite", [pytest.param(suite, marks=pytest.mark.xdist_group(suite)) for suite in suites])


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
    """The package twice, built from this tree; the second has the higher version. All workers take the same files."""
    require(not debian.missing(), ", ".join(debian.missing()))
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "debs"
    with locked(directory.with_suffix(".lock")):
        return debian.Debs(*(debian.build_once(directory, revision) for revision in ("", "+1")))


@pytest.fixture(scope="session")
def booted(require: Callable[[object, str], None], debs: debian.Debs) -> Iterator[Callable[[str], Machine]]:
    """booted(suite) returns a machine with the package installed, which boots when it is first asked for."""
    require(not missing(), ", ".join(missing()))
    machines: dict[str, Machine] = {}
    with contextlib.ExitStack() as stack:

        def start(suite: str) -> Machine:
            if suite not in machines:
                machines[suite] = debian.start(stack, suite, debs)
            return machines[suite]

        yield start


@pytest.fixture
def machine(suite: str, booted: Callable[[str], Machine], debs: debian.Debs) -> Machine:
    """A Debian machine with the package installed and serving, and nothing else."""
    machine = booted(suite)
    debian.reset(machine, debs)
    return machine
