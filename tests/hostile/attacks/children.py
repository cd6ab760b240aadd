"""Thirty thousand empty cgroups below the container's own, and readers of what is summed up over them."""

import os
import sys

from hierarchies import own
from rounds import attempt, read, said

CHILDREN = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000
LOOKED_AT = ("cpuacct.usage", "pids.current", "cgroup.controllers")

for directory in own():
    if not any(os.path.exists(f"{directory}/{name}") for name in LOOKED_AT):
        continue
    for number in range(CHILDREN):
        attempt("child", lambda: os.mkdir(f"{directory}/{number}"))
    attempt("deep", lambda: os.makedirs(f"{directory}/{'/'.join(['d' * 200] * 18)}"))
said()
while True:
    for name in ("stat", "loadavg", "meminfo", "uptime", "cpuinfo"):
        read(f"/proc/{name}")
