"""Read all files for some seconds, or until there is /tmp/stop, and see that each text is whole and one's own.

`python victim.py SECONDS MEBIBYTES`: the memory limit that it has. Where there is pressure, it sets triggers beside.
Prints JSON: the reads, those that failed, those that were odd, with the first of both, and how long each took, open to
close, in microseconds; and the triggers that were set, those that were refused, and the longest time of one in ms.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections import Counter
from typing import Optional

seconds, mebibytes = float(sys.argv[1]), int(sys.argv[2])
last: dict[str, list[float]] = {}
NUMBERS = re.compile(rb"[\d.]+")


def odd_meminfo(text: bytes) -> bool:
    return text.split()[:3] != [b"MemTotal:", b"%d" % (mebibytes << 10), b"kB"]


def odd_stat(text: bytes) -> bool:
    total, *cpus = [[int(word) for word in line.split()[1:]] for line in text.splitlines() if line.startswith(b"cpu")]
    before, last["stat"] = last.get("stat", [0.0]), [float(word) for word in total]
    return len(cpus) != 1 or b"\nprocs_blocked " not in text or any(b > a for b, a in zip(before, total))


def odd_uptime(text: bytes) -> bool:
    before, last["uptime"] = last.get("uptime", [0.0]), [float(word) for word in text.split()]
    return len(last["uptime"]) != 2 or last["uptime"][0] < before[0]


def odd_loadavg(text: bytes) -> bool:
    return not re.fullmatch(rb"(\d+\.\d\d ){3}\d+/\d+ \d+\n", text)


FILES = {
    "meminfo": odd_meminfo,
    "stat": odd_stat,
    "cpuinfo": lambda text: text.count(b"processor\t:") != 1,
    "uptime": odd_uptime,
    "loadavg": odd_loadavg,
    "swaps": lambda text: not text.startswith(b"Filename"),
    "diskstats": lambda text: any(len(line.split()) < 14 for line in text.splitlines()),
}
TRIGGER = b"some 150000 2000000\0"
PRESSURE = "/views/cpu"
triggers = {"set": 0, "refused": 0, "longest": 0.0}


def set_triggers() -> None:
    """Set one and let it go, again and again."""
    global first
    while True:
        began = time.perf_counter()
        try:
            fd = os.open(PRESSURE, os.O_RDWR)
            try:
                os.write(fd, TRIGGER)
            finally:
                os.close(fd)
            triggers["set"] += 1
        except OSError as error:
            triggers["refused"] += 1
            first = first or f"{PRESSURE}: {error}"
        triggers["longest"] = max(triggers["longest"], (time.perf_counter() - began) * 1000)
        time.sleep(0.02)


def read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def rounded(microseconds: float) -> int:
    """Two digits are told: there may be very many."""
    digits = max(len(str(int(microseconds))) - 2, 0)
    return round(microseconds / 10**digits) * 10**digits


took: Counter[int] = Counter()
reads = failed = odd = 0
longest = 0.0
first: Optional[str] = None
deadline = time.monotonic() + seconds
if os.path.exists(PRESSURE):
    threading.Thread(target=set_triggers, daemon=True).start()
while time.monotonic() < deadline and not os.path.exists("/tmp/stop"):
    for name, is_odd in FILES.items():
        reads += 1
        began = time.perf_counter()
        try:
            text = read(f"/proc/{name}")
        except OSError as error:
            failed += 1
            first = first or f"{name}: {error}"
            continue
        finally:
            microseconds = (time.perf_counter() - began) * 1e6
            took[rounded(microseconds)] += 1
            longest = max(longest, microseconds)
        try:
            wrong = is_odd(text)
        except (ValueError, IndexError):
            wrong = True
        if wrong:
            odd += 1
            first = first or f"{name}: {text[:300]!r}"


def percentile(share: float) -> int:
    passed = 0
    for microseconds in sorted(took):
        passed += took[microseconds]
        if passed > share * (reads - 1):
            return microseconds
    return 0


times = [percentile(0.5), percentile(0.99), round(longest)]
print(json.dumps({"reads": reads, "failed": failed, "odd": odd, "first": first, "took": times, "triggers": triggers}))
