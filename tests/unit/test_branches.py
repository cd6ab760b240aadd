"""What owners hold along the tree of cgroups."""

from __future__ import annotations

from lxcfs_py.engine.branches import Branches


def test_the_fullest_one_is_of_the_branch_that_holds_the_most() -> None:
    branches = Branches()
    for handle in range(60):
        branches.add("/containers/victim", handle)
    for handle in range(100, 300):
        branches.add(f"/user/{handle % 100}", handle)
    branches.add("/user", 400)
    assert branches.of("/containers/victim") == 60
    assert branches.of("/user/7") == 2
    assert branches.of("/user") == branches.of("/user/7/") + 1 == 1
    assert branches.of("/nobody/at/all") == 0
    assert set(branches.fullest()) < set(range(100, 300))
    for handle in range(100, 300):
        branches.remove(f"/user/{handle % 100}", handle)
    assert list(branches.fullest()) == list(range(60))
    branches.remove("/user", 400)
    for handle in range(60):
        branches.remove("/containers/victim", handle)
    assert list(branches.fullest()) == []


def test_what_is_removed_is_forgotten_with_its_branches() -> None:
    """Else a container that makes one cgroup after the other fills the memory."""
    branches = Branches()
    for handle, owner in enumerate(("/a/1", "/a/1", "/a/2")):
        branches.add(owner, handle)
    branches.remove("/a/1", 0)
    branches.remove("/a/2", 2)
    assert list(branches.fullest()) == [1]
    branches.remove("/a/1", 1)
    assert branches._root.branches == {}


def test_one_is_fuller_than_an_owner_where_their_ways_part() -> None:
    branches = Branches()
    for handle, owner in enumerate(("/a/1", "/a/2", "/a/3", "/b/1", "/b/1")):
        branches.add(owner, handle)
    assert list(branches.fuller_than("/c") or ()) == [0]
    assert list(branches.fuller_than("/b/2") or ()) == [3, 4], "of its own branch, which would be as full as the other"
    assert branches.fuller_than("/b/1") is None
    assert branches.fuller_than("/a/1") is None
    assert branches.fuller_than("/a/4") is None, "there, each has one"
    branches.add("/a/2", 5)
    assert list(branches.fuller_than("/a/4") or ()) == [1, 5]


def test_paths_of_any_depth_are_told_apart() -> None:
    branches = Branches()
    deep = "/x" * 40
    branches.add(deep, 1)
    branches.add(f"{deep}/y", 2)
    branches.add("user 1000", 3)
    assert [branches.of(owner) for owner in (deep, f"{deep}/y", "user 1000", "/x")] == [1, 1, 1, 0]
