"""Runs in a container of 256 MiB and one CPU: reads its files over and over, and says at SIGTERM what it saw.

With a number, so many readers do.

Output: {"reads": number, "failed": number, "failures": [the first few], "stall": seconds of the slowest}
"""

import json
import signal
import sys
import threading
import time

FILES = ("meminfo", "cpuinfo", "stat", "uptime", "swaps", "diskstats", "loadavg")
PAUSE = 0.01  # seconds: the machine has other things to do, too

stopped = False


def stop(*_):
    global stopped
    stopped = True


def wrong_with(name, text, before):
    """What is wrong with a file's text; `before` has what may not get less, by file."""
    if not text.endswith(b"\n"):
        return "is cut off"
    if name == "meminfo" and text.split()[1] != b"262144":
        return f"has {text.split()[1].decode()} kB"
    if name == "cpuinfo" and text.count(b"processor\t") != 1:
        return "has not one CPU"
    if name in ("stat", "uptime"):
        words = text.split()
        now = [float(word) for word in (words[1:9] if name == "stat" else words[:2])]
        if any(new < old for new, old in zip(now, before.get(name, now))):
            return f"went back from {before[name]} to {now}"
        before[name] = now
    return ""


def read(seen):
    """Read until it is time to stop; add up what was seen, (failures, seconds), a pair for each read."""
    before = {}
    while not stopped:
        for name in FILES:
            began = time.monotonic()
            try:
                with open(f"/proc/{name}", "rb") as file:
                    wrong = wrong_with(name, file.read(), before)
            except OSError as error:
                wrong = str(error)
            seen.append((f"{name} {wrong}" if wrong else "", time.monotonic() - began))
        time.sleep(PAUSE)


def main():
    signal.signal(signal.SIGTERM, stop)
    seen = []
    readers = [threading.Thread(target=read, args=(seen,)) for _ in range(int(sys.argv[1]) if sys.argv[1:] else 1)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    failures = [failure for failure, _ in seen if failure]
    stall = max(seconds for _, seconds in seen)
    print(json.dumps({"reads": len(seen), "failures": failures[:5], "failed": len(failures), "stall": round(stall, 3)}))


main()
