"""Runs in a container of 256 MiB and one CPU: reads its files over and over, and says at SIGTERM what it saw.

Output: {"reads": number, "failed": number, "failures": [the first few], "stall": seconds of the slowest}
"""

import json
import signal
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


def main():
    signal.signal(signal.SIGTERM, stop)
    reads, failures, stall, before = 0, [], 0.0, {}
    while not stopped:
        for name in FILES:
            began = time.monotonic()
            try:
                with open(f"/proc/{name}", "rb") as file:
                    wrong = wrong_with(name, file.read(), before)
            except OSError as error:
                wrong = str(error)
            stall = max(stall, time.monotonic() - began)
            reads += 1
            if wrong:
                failures.append(f"{name} {wrong}")
        time.sleep(PAUSE)
    print(json.dumps({"reads": reads, "failures": failures[:5], "failed": len(failures), "stall": round(stall, 3)}))


main()
