"""What a real Docker's containers are called, by its own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.attach.running import cgroup
from lxcfs_py.runtimes.names import KEY, Names
from tests.docker.conftest import Docker


@pytest.fixture
def names(docker: Docker, tmp_path: Path) -> Callable[[], Names]:
    """A look at this engine's files, where they would be if it were the machine's own."""
    root = Path(docker.environment["DOCKER_HOST"][len("unix://") :]).parent
    (tmp_path / "etc/docker").mkdir(parents=True)
    (tmp_path / "etc/docker/daemon.json").write_text(json.dumps({"data-root": "/data"}))
    (tmp_path / "data").symlink_to(root / "data")
    return lambda: Names(str(tmp_path))


def test_a_container_is_called_as_docker_ps_does_whatever_becomes_of_its_name(
    docker: Docker, start: Callable[..., Any], names: Callable[[], Names]
) -> None:
    container = start("--name", "shop_web-1", "--label", f"{KEY}=none")
    pid = int(docker("inspect", "--format", "{{.State.Pid}}", container.id))
    found = names().of(cgroup(pid))
    assert found is not None
    assert (found.engine, found.name) == ("docker", docker("ps", "--format", "{{.Names}}").strip())
    assert found.id.startswith(container.id[:12])
    assert KEY in found.opt_out()
    docker("rename", container.id, "shop_web-2")
    renamed = names().of(cgroup(pid))
    assert renamed is not None
    assert renamed.answers_to("shop_web-2")
    assert not renamed.answers_to("shop_web-1")
