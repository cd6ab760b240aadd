"""Whether the servers of mounts live, as those who have files of them say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lxcfs_py.attach import processes, servers
from lxcfs_py.attach.servers import LIVE, Use
from lxcfs_py.attach.visits import Visits


@pytest.mark.parametrize(("lying", "found"), [(0, {"0:45": LIVE}), (7, {"0:45": LIVE}), (8, {}), (1000, {})])
def test_of_the_users_of_a_server_a_bounded_number_is_asked_until_one_tells(
    monkeypatch: pytest.MonkeyPatch, lying: int, found: dict[str, str]
) -> None:
    asked: list[int] = []

    def each(works: Sequence[tuple[int, Any]], _: object) -> list[str]:
        asked.extend(pid for pid, _ in works)
        return [LIVE if pid >= lying else "" for pid, _ in works]

    monkeypatch.setattr(processes, "each", each)
    uses = [Use("0:45", pid, "/proc/stat") for pid in range(2000)]
    assert servers.states(uses, Visits()) == found
    assert asked == list(range(min(lying + 1, 8)))
