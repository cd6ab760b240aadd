"""Draw docs/top.svg: a real screen of `lxcfs-py top` with some containers that work. As root: `make picture`."""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lxcfs_py.runtimes.sandbox import Sandbox

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/top.svg"
WIDTH, HEIGHT = 116, 8
LOOKS = 17  # so many are in a sparkline
MIB = 1 << 20

BURSTS = """
import time
while True:
    end = time.time() + {busy}
    while time.time() < end:
        pass
    time.sleep({idle})
"""
HOLDS = "import time\nkept = bytearray({mib} << 20)\nwhile True: time.sleep(0.05); open('/proc/meminfo').read()"


class Container(Sandbox):
    """One whose cgroup has the name that LXC gives it, so that it is called by that."""

    def __init__(self, name: str, **limits: object) -> None:
        super().__init__(**limits)  # type: ignore[arg-type]
        self._name = name

    def _unused_name(self) -> str:
        return f"lxc.payload.{self._name}"


def screen(mountpoint: Path, config: Path) -> str:
    """Return the screen, with the terminal's escapes."""
    with contextlib.ExitStack() as stack:

        def container(name: str, program: str = "", has_files: bool = True, **limits: object) -> None:
            started = Container(name, views=mountpoint if has_files else None, **limits)
            stack.enter_context(started)
            if program:
                started.popen([sys.executable, "-c", program])

        container("web", BURSTS.format(busy=3, idle=1.5), memory=512 * MIB, cpus=1)
        container("database", HOLDS.format(mib=180), memory=256 * MIB, cpus=2)
        container("batch", BURSTS.format(busy=9, idle=0), memory=128 * MIB, cpus=0.5)
        container("monitoring", BURSTS.format(busy=0.3, idle=6), memory=64 * MIB, cpus=0.25)
        container("without-files", memory=1024 * MIB, has_files=False)
        command = [sys.executable, "-m", "lxcfs_py", "top", "--config", str(config)]
        tmux = ["tmux", "-S", str(config.parent / "tmux")]
        size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
        subprocess.run([*tmux, "new-session", "-d", *size, " ".join(command)], check=True, cwd=ROOT)
        try:
            time.sleep(2 * LOOKS)
            shown = subprocess.run([*tmux, "capture-pane", "-e", "-p"], check=True, capture_output=True, text=True)
        finally:
            subprocess.run([*tmux, "kill-server"], check=False)
        return shown.stdout.rstrip("\n")


def drawn(text: str) -> str:
    """Return a terminal's text as an SVG that asks no other server for anything."""
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Text.from_ansi(text), soft_wrap=True)
    svg = console.export_svg(title="lxcfs-py top", unique_id="top")
    return re.sub(r"@font-face \{.*?\}\n", "", svg, flags=re.DOTALL)


def main() -> None:
    """Draw it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-picture-") as name:
        directory = Path(name)
        mountpoint, config = directory / "mount", directory / "lxcfs.toml"
        config.write_text(f'mountpoint = "{mountpoint}"\n')
        command = [sys.executable, "-m", "lxcfs_py", "run", "--config", str(config)]
        with (directory / "log").open("w") as log:
            daemon = subprocess.Popen(command, cwd=ROOT, stderr=log)
        try:
            while not (mountpoint / "proc").exists():
                if daemon.poll() is not None:
                    raise SystemExit((directory / "log").read_text())
                time.sleep(0.1)
            PICTURE.write_text(drawn(screen(mountpoint, config)))
        finally:
            daemon.terminate()
            daemon.wait(30)


if __name__ == "__main__":
    main()
