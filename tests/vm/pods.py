"""Pods by CRI, within a virtual machine: `python3 -m tests.vm.pods SCRIPT WISH ...` starts one for each wish, at once.

A wish is what the annotation lxcfs.py/views says, or "shared" for a pod whose containers share their pids. It prints a
JSON list of what the script printed in each pod.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.kubernetes import cri
from tests.kubernetes.cri import Runtime

cri.SECONDS = 500.0  # an emulated machine starts a dozen of pods at once

SOCKET, LOGS = Path("/run/containerd/containerd.sock"), Path("/var/log/pods")


def run(runtime: Runtime, script: str, wish: str) -> str:
    pod = runtime.pod(shared_pids=True) if wish == "shared" else runtime.pod(views=wish)
    try:
        return pod.run(script)
    finally:
        pod.remove()


def main(script: str, *wishes: str) -> None:
    runtime = Runtime(SOCKET, LOGS, has_systemd=True)
    with ThreadPoolExecutor(len(wishes)) as pool:
        print(json.dumps(list(pool.map(partial(run, runtime, script), wishes))))


if __name__ == "__main__":
    main(*sys.argv[1:])
