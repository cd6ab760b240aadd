#!/usr/bin/env python3
"""Record the trees anew: make.py [NAME...]. v1-2cpu is recorded here, the others in virtual machines.

A tree that exists is replaced. The numbers in it change then, and with them what the tests may assert: see README.md.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

TREES = Path(__file__).resolve().parent
sys.path[:0] = [str(TREES), str(TREES.parent.parent / "vm")]

import container  # noqa: E402
import machine  # noqa: E402

SWAP_FILE = "fallocate -l 512M /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile"
V1 = "systemd.unified_cgroup_hierarchy=0"
PLAIN_V1 = (V1, "systemd.legacy_systemd_cgroup_controller=1")
HYBRID = (V1, "systemd.legacy_systemd_cgroup_controller=0")

# Name: the machine, and a command to run in it first.
MACHINES: dict[str, tuple[str, dict[str, Any], str]] = {
    "v1-2cpu-swap": ("bookworm", {"kernel_args": PLAIN_V1}, SWAP_FILE),
    "v2-64cpu": ("trixie", {"cpus": 64, "memory": 6144, "kernel_args": ("psi=1", "hugepages=16")}, SWAP_FILE),
    "v2-2cpu-noswap-nopsi": ("bookworm", {"kernel_args": ("psi=0",)}, "true"),
    "hybrid": ("bookworm", {"kernel_args": ("psi=1", *HYBRID)}, "true"),
}


def make(name: str, out: Path) -> None:
    if name not in MACHINES:
        container.record_container(name, out)
        return
    suite, options, prepare = MACHINES[name]
    with machine.Machine(suite, **options) as booted:
        booted.run(prepare)
        for script in (TREES / "container.py", TREES.parent / "record.py"):
            booted.put(script, "/root/")
        print(booted.run(f"python3 /root/container.py {name} /root/{name}", timeout=900).stdout, end="")
        booted.get(f"/root/{name}", out)


def main() -> None:
    for name in sys.argv[1:] or ("v1-2cpu", *MACHINES):
        with tempfile.TemporaryDirectory(dir=TREES) as temporary:
            new = Path(temporary) / name
            make(name, new)
            shutil.rmtree(TREES / name, ignore_errors=True)
            new.rename(TREES / name)


if __name__ == "__main__":
    main()
