"""Which containers are forgotten where there is room for no more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.container import eviction


class Asked:
    """A container that asked last at some time."""

    def __init__(self, path: str, checked: float) -> None:
        self.paths = {"": path, "cpu": "/"}
        self.checked = checked


@pytest.mark.parametrize(
    "place",
    [
        "/user.slice/user-1000.slice/session-1.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/{}",
        "/docker/b0",
        "/docker/b0/inner/{}",
    ],
)
def test_who_makes_thousands_of_containers_pushes_out_his_own(place):
    others = [Asked(f"/docker/b{number}", 0) for number in range(1, 300)]
    others += [Asked(f"/system.slice/s{number}.service", 0) for number in range(40)]
    crowd = [Asked(place.format(number), 1 + number) for number in range(3000)]
    kept = others + crowd
    for _ in range(8):
        gone = eviction.choose(kept)
        assert 0 < len(gone) <= 256
        assert not set(gone) & set(others)
        assert max(each.checked for each in gone) <= min(each.checked for each in crowd if each not in gone)
        crowd = [each for each in crowd if each not in gone]
        kept = others + crowd


@given(st.lists(st.sampled_from(["/", "/a", "/a/b", "/a/b/c", "/d", "/d/e"]), min_size=1))
def test_there_is_always_somebody_to_be_forgotten(paths):
    assert 0 < len(eviction.choose([Asked(path, number) for number, path in enumerate(paths)])) <= 256


class Names(list[str]):
    """The names along a path, which count how many times one is looked at."""

    looks = 0

    def __getitem__(self, depth):
        Names.looks += 1
        return super().__getitem__(depth)


@pytest.mark.parametrize(
    "place",
    [
        lambda number: "/a" * (1 + number % 400),
        lambda number: f"/docker/b0/{number >> 8}/{number >> 4 & 15}/{number & 15}",
    ],
    ids=["a chain", "a tree"],
)
def test_however_containers_are_laid_out_many_go_at_once_and_looking_is_bounded(place, monkeypatch):
    names = eviction._names
    monkeypatch.setattr(eviction, "_names", lambda paths: Names(names(paths)))
    monkeypatch.setattr(Names, "looks", 0)
    others = [Asked(f"/docker/c{number}", 0) for number in range(300)]
    gone = eviction.choose(others + [Asked(place(number), 1 + number) for number in range(3700)])
    assert len(gone) >= 4000 // 32
    assert not set(gone) & set(others)
    assert Names.looks <= 4000 * 13
