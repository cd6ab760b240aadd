"""In which order containers are looked at where there is not the time for all."""

from __future__ import annotations

from lxcfs_py.container.order import in_turn


def test_the_cheap_ones_are_first():
    assert in_turn([("/b", 2.0, "dear"), ("/a", 1.0, "cheap")]) == ["cheap", "dear"]
    assert in_turn([]) == []


def test_what_is_in_one_branch_has_as_much_together_as_the_one_beside_it():
    costs = [(f"/docker/a/{number}", 1.0, "a") for number in range(5)] + [("/docker/b", 3.5, "b")]
    assert in_turn(costs) == ["a", "a", "a", "b", "a", "a"]


def test_so_it_is_in_a_chain_of_cgroups_and_in_one_cgroup():
    chain = [("/docker/a" + "/a" * depth, 1.0, "a") for depth in range(50)]
    same = [("/docker/c", 1.0, "c")] * 50
    order = in_turn([*chain, *same, ("/docker/b", 2.5, "b"), ("/docker/d/d/d", 2.5, "d")])
    assert len(order) == 102
    assert sorted(order[:6]) == ["a", "a", "b", "c", "c", "d"]


def test_the_last_of_a_chain_is_not_the_last_where_it_costs_less():
    chain = [("/a" * depth, 1.0, depth) for depth in range(1, 30)]
    assert in_turn([*chain, ("/a" * 30, 0.1, "last")])[0] == "last"
