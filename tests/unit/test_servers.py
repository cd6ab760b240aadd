"""Whether the servers of mounts live, as those who have files of them say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import pytest

from lxcfs_py.attach import processes, servers
from lxcfs_py.attach.errors import SilentError
from lxcfs_py.attach.servers import LIVE, SILENT, Use
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


@pytest.mark.parametrize(("device", "said"), [("0:45", SILENT), ("0:46", None), ("", None)])
def test_a_server_is_silent_where_it_does_not_answer_not_where_nobody_could_be_asked(
    monkeypatch: pytest.MonkeyPatch, device: str, said: Optional[str]
) -> None:
    def one(*_arguments: object) -> str:
        raise SilentError("no answer", device)

    monkeypatch.setattr(Visits, "one", one)
    if said:
        assert servers.state("0:45", "/views") == said
    else:
        with pytest.raises(SilentError):
            servers.state("0:45", "/views")
