"""A package that is broken for good: ten starts fail, and then containers see the machine's figures, and no error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest

from lxcfs_py.runtimes.sandbox import Sandbox
from tests.conftest import ROOT, Daemon
from tests.kept import wait_for


@pytest.mark.slow
def test_a_broken_package_shows_containers_the_machine_until_it_is_mended(
    tmp_path: Path, sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    package, mountpoint, config = tmp_path / "lxcfs_py", tmp_path / "mount", tmp_path / "lxcfs.toml"
    shutil.copytree(ROOT / "lxcfs_py", package)
    mountpoint.mkdir()
    config.write_text('[fuse]\nengine = "kernel"\n')
    starter = "import sys; sys.path.insert(0, sys.argv.pop(1)); from lxcfs_py.cli import main; sys.exit(main())"
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", starter, str(tmp_path), "run", "--keep", "--config", str(config), str(mountpoint)]
    daemon = Daemon(command, mountpoint, tmp_path / "log")
    try:
        box = sandbox(memory=256 << 20, views=mountpoint)

        def meminfo() -> str:
            """The first line, however long it takes."""
            reader = box.popen(["head", "-n", "1", "/proc/meminfo"], stdout=subprocess.PIPE, text=True)
            line, _ = reader.communicate(timeout=120)
            assert reader.returncode == 0
            return line

        mine, machine = meminfo(), Path("/proc/meminfo").read_text().splitlines(keepends=True)[0]
        assert mine != machine
        broken = package / "cli.py"
        text = broken.read_text()
        broken.write_text("raise ImportError('half an upgrade')\n")
        server = int(Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text())
        os.kill(server, 9)
        assert meminfo() == machine
        assert "10 starts in a row have failed" in daemon.log.read_text()
        broken.write_text(text)
        wait_for(lambda: meminfo() == mine)
    finally:
        assert daemon.stop() == 0
