"""Pods by CRI, within a virtual machine: `python3 -m tests.vm.pods SCRIPT WISH ...` has one for each wish, all at once.

A wish is what the annotation lxcfs.py/views says, or "shared" for a pod whose containers share their pids. It prints a
JSON list of what the script printed in each pod. A pod goes when all have come.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.kubernetes import cri
from tests.kubernetes.cri import Runtime

cri.SECONDS = 500.0  # an emulated machine is slow

SOCKET, LOGS = Path("/run/containerd/containerd.sock"), Path("/var/log/pods")
START = 6  # at a time: of very many, an emulated machine's containerd loses some by its own deadlines


def run(runtime: Runtime, pods: ExitStack, script: str, wish: str) -> str:
    pod = runtime.pod(shared_pids=True) if wish == "shared" else runtime.pod(views=wish)
    pods.callback(pod.remove)
    return pod.run(script)


def main(script: str, *wishes: str) -> None:
    runtime = Runtime(SOCKET, LOGS, has_systemd=True)
    with ExitStack() as pods, ThreadPoolExecutor(START) as pool:
        print(json.dumps(list(pool.map(partial(run, runtime, pods, script), wishes))))


if __name__ == "__main__":
    main(*sys.argv[1:])
