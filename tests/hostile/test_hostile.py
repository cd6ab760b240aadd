"""What containers do to each other, each attack for a few seconds. `make hostile` has the table, and a soak."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Callable

import pytest

from bench.contenders import Server, lxcfs_py, running
from tests.docker.conftest import Docker, cache  # noqa: F401 -- a fixture
from tests.hostile.arena import ATTACKS, DEFAULT, Arena, Attack, engine, everything

SECONDS = 2.0
FEWER = ("flood", "cached_flood", "writers")  # of which 100 threads do: more take minutes to start on a busy machine
SHORT = [Attack(each, ("100",)) for each in FEWER] + [attack for attack in ATTACKS if attack.name not in FEWER]
LIGHT = [attack for attack in SHORT if not attack.privileged]
BY_CAPABILITIES = [
    attack for attack in SHORT if attack.privileged or attack.name in ("leases", "watches", "changes", "cached_flood")
]
"""Those to which capabilities add something."""


@pytest.fixture(scope="session")
def docker(cache: Any, require: Callable[[object, str], None]) -> Iterator[Docker]:  # noqa: F811
    with engine(cache, require) as made:
        yield made


@pytest.fixture(scope="session")
def server(docker: Docker) -> Iterator[Server]:
    with running(lxcfs_py("kernel")) as made:
        yield made


@pytest.fixture(scope="session")
def arena(docker: Docker, server: Server) -> Arena:
    return Arena(docker, server.mount)


def fought(arena: Arena, server: Server, attack: Attack, capabilities: list[str]) -> dict[str, int]:
    """Have it out; return what came of the attack. The victim's reads have all been right."""
    with arena.attacked(attack, capabilities) as attacker:
        noticed = arena.victim(SECONDS)
        print(attack, json.dumps(attacker.outcomes), noticed)
    assert (noticed.failed, noticed.odd) == (0, 0), noticed.first
    assert noticed.reads > 7
    assert not noticed.triggers["refused"], noticed.first
    assert noticed.triggers["set"]
    assert server.process is not None
    assert server.process.poll() is None
    return attacker.outcomes


@pytest.mark.parametrize("attack", LIGHT, ids=str)
def test_what_a_container_with_dockers_capabilities_does_is_nothing_to_a_victim(
    attack: Attack, arena: Arena, server: Server
) -> None:
    outcomes = fought(arena, server, attack, list(DEFAULT))
    assert not outcomes.get("write lease: done")
    assert not outcomes.get("read lease: done")


@pytest.mark.parametrize("attack", BY_CAPABILITIES, ids=str)
def test_nor_is_it_with_all_capabilities(attack: Attack, arena: Arena, server: Server) -> None:
    outcomes = fought(arena, server, attack, everything())
    assert not outcomes.get("write lease: done"), "others' opens would wait for its end"
    if attack.privileged:
        assert any(name.endswith(": done") for name in outcomes), "it could not even be tried"
