"""What the agent costs: sysinfo(2) and sched_getaffinity(2) with it and without, and programs from start to end.

Between the two, the floor: an agent that has the kernel answer each call at once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.contenders import lxcfs_py, running
from bench.measure import CPUS, MEMORY, Reader, answering
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.runtimes.sandbox import Sandbox

CALLS = ("sysinfo", "sched_getaffinity")
WAYS = ("kernel", "floor", "agent")
ROUNDS = 10
STARTS = 4
"""Of each program in a round."""

_PATIENCE = 15.0  # seconds

# In Python, in Go, and in Java.
PROGRAMS = (("/usr/bin/python3", "-c", "pass"), ("runc", "--version"), ("java", "-version"))


@dataclass
class Cost:
    """What was measured, by the name of a call or a program and the way: ns."""

    calls: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    programs: dict[tuple[str, str], list[int]] = field(default_factory=dict)


@contextlib.contextmanager
def _floor(core: set[int]) -> Iterator[str]:
    """Run the agent that has the kernel answer, on these CPUs, and return its socket."""
    with tempfile.TemporaryDirectory(prefix="lxcfs-bench-") as room:
        path = Path(room, "socket")
        process = subprocess.Popen([sys.executable, str(Path(__file__).with_name("floor_agent.py")), str(path)])
        try:
            os.sched_setaffinity(process.pid, core)
            _wait_for(path)
            yield str(path)
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _calling(views: Path, agent: str) -> Iterator[Reader]:
    with Sandbox(memory=MEMORY, cpus=CPUS, views=views, agent=agent) as box, answering(box, "caller.py") as caller:
        if not agent:
            caller.ask("filter")
        yield caller


def _wait_for(socket: Path) -> None:
    """Wait until there is a socket, which is made after the mount. OSError where there is none for long."""
    deadline = time.monotonic() + _PATIENCE
    while not socket.exists():
        if time.monotonic() >= deadline:
            raise OSError(f"no server listens at {socket}")
        time.sleep(0.01)


def measure(seconds: float) -> Cost:
    """Measure each call for so many seconds with caller and daemon on one core, the two ways taking turns."""
    found = Cost()
    core = {max(os.sched_getaffinity(0))}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running(lxcfs_py("kernel")))
        server.pin(core)
        answers = seccomp_profile.socket_of(str(server.mount))
        _wait_for(Path(answers))
        agent = {"kernel": "", "floor": stack.enter_context(_floor(core)), "agent": answers}
        callers = {way: stack.enter_context(_calling(server.mount, agent[way])) for way in WAYS}
        for caller in callers.values():
            caller.ask("pin", cpus=sorted(core))
        programs = [program for program in PROGRAMS if shutil.which(program[0])]
        for _ in range(ROUNDS):
            for way, caller in callers.items():
                for call in CALLS:
                    took = caller.ask("call", call=call, seconds=seconds / ROUNDS, patience=seconds + 30)
                    found.calls.setdefault((call, way), []).extend(took)
                for program in programs:
                    took = caller.ask("start", command=program, times=STARTS, patience=300)
                    found.programs.setdefault((" ".join(program), way), []).extend(took)
    return found


def figures(cost: Cost) -> dict[str, dict[str, float]]:
    """Return the medians in us, by call or program and way."""
    found: dict[str, dict[str, float]] = {}
    for (what, way), took in (*cost.calls.items(), *cost.programs.items()):
        found.setdefault(what, {})[way] = statistics.median(took) / 1000
    return found


def tables(cost: Cost) -> str:
    """Return the figures for the reader."""
    lines = [
        "| call, caller and daemon on one core | kernel, p50 | floor, p50 | agent, p50 | agent, p99 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for call in CALLS:
        medians = [f"{statistics.median(cost.calls[call, way]) / 1000:.1f} µs" for way in WAYS]
        agent = sorted(cost.calls[call, "agent"])
        p99 = agent[int(0.99 * (len(agent) - 1))] / 1000
        lines.append(f"| `{call}(2)` | {' | '.join(medians)} | {p99:.0f} µs |")
    lines += [
        "",
        "| program, start to end | without, p50 | floor, p50 | with the agent, p50 |",
        "| --- | ---: | ---: | ---: |",
    ]
    for program in dict.fromkeys(program for program, _ in cost.programs):
        without, *others = (statistics.median(cost.programs[program, way]) / 1e6 for way in WAYS)
        changed = (f"{took:.1f} ms ({(took / without - 1) * 100:+.1f} %)" for took in others)
        lines.append(f"| `{program}` | {without:.1f} ms | {' | '.join(changed)} |")
    return "\n".join(lines) + "\n"
