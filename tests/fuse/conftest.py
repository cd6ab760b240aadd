"""Recorded machines, for programs that run in a small container to look at, and a kernel without filters."""

from __future__ import annotations

import errno
from typing import Any
from unittest.mock import Mock

import pytest

from lxcfs_py.linux import seccomp
from tests.unit.conftest import machine, rendered

__all__ = ["machine", "rendered"]


@pytest.fixture(params=[True, False], ids=["filters", "no filters"])
def filters(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the test twice: as it is, and as on a kernel that knows no filters for system calls.

    Processes that enter containers go without then. Without one, they also say what they ran, for `make covered`.
    """
    if not request.param:
        monkeypatch.setattr(seccomp, "forbid", Mock(side_effect=OSError(errno.ENOSYS, "no filters")))
