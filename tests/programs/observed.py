"""What all programs say in two containers at once, with different limits: on any machine that has an engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple

from tests.programs.table import MIB, Row, Seen

HERE = Path(__file__).parent
SCRIPTS = ("run.sh", "waiting.py", "../filtered.py")
LOAD = 6
"""Of the machine, beside what its programs are."""


@dataclass(frozen=True)
class Limits:
    """Of a container; and how many bytes it writes to a disk."""

    memory: int
    cpus: int
    written: int


CONTAINERS = {"small": Limits(384 * MIB, 1, 24 * MIB), "large": Limits(768 * MIB, 2, 8 * MIB)}


class Way(NamedTuple):
    """A way to run containers: with which options, and behind which command their programs run."""

    options: str = ""
    prefix: str = ""


# The clock since boot begins with the container; ps knows no age of less than a second.
OWN_CLOCK = Way(
    "--cap-add SYS_ADMIN --cap-add SYS_TIME --security-opt seccomp=unconfined --security-opt apparmor=unconfined",
    """bash -c 'sleep 1; stat=$(</proc/1/stat); stat=(${stat##*) }); started=${stat[19]}
    exec unshare --time --boottime=-${started%??} --fork "$@"' sh""",
)


@dataclass(frozen=True)
class Engine:
    """A container engine on some machine."""

    command: str
    shell: Callable[[str], str]
    """Runs a shell command on that machine, and returns what it prints."""

    options: str
    """What `run` needs, beside limits."""

    image: str
    scripts: str
    """The directory there with what runs in containers."""

    disk: str
    """A directory there on a disk whose I/O is counted."""

    attach: str = ""
    """The command that gives the files to a container, with its pid behind; none where the options do it."""


class Said(NamedTuple):
    """What a program said in a container, and what was so before and after."""

    printed: str
    container: tuple[Seen, Seen]
    machine: tuple[Seen, Seen]


Sayings = dict[str, dict[str, Said]]
"""By the container's name, and the row's."""


def write_scripts(directory: Path, rows: Iterable[Row]) -> None:
    """Write what runs in containers."""
    for name in SCRIPTS:
        (directory / Path(name).name).write_text((HERE / name).read_text())
    for row in rows:
        (directory / f"{row.name}.sh").write_text(row.command + "\n")


def observe(engine: Engine, suite: str, rows: list[Row], agent: Way) -> dict[str, Sayings]:
    """Run all programs with the files alone, and those for which it makes a difference with the agent, or the clock."""
    ways = {
        "files": (Way(), rows),
        "agent": (agent, [row for row in rows if row.asks(suite).is_a_call]),
        "clock": (OWN_CLOCK, [row for row in rows if row.tells_time]),
    }
    pipe = engine.shell("mktemp -u").strip()
    command = f"setsid python3 {engine.scripts}/waiting.py {LOAD} {pipe}"
    waiting = engine.shell(f"{command} >/dev/null 2>&1 & echo $!").strip()
    try:
        return {name: _observe(engine, way, asked) for name, (way, asked) in ways.items()}
    finally:
        engine.shell(f"kill -KILL -- -{waiting}; rm -f {pipe}")


def _observe(engine: Engine, way: Way, rows: list[Row]) -> Sayings:
    words = engine.shell("grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo").split()
    machine = Seen(int(words[1]) * 1024, int(words[3]), 0, 0)
    names = " ".join(row.name for row in rows)
    with ThreadPoolExecutor() as pool:
        texts = pool.map(lambda limits: _run(engine, way, names, limits), CONTAINERS.values())
        return {name: dict(sections(text, limits, machine)) for (name, limits), text in zip(CONTAINERS.items(), texts)}


def _run(engine: Engine, way: Way, names: str, limits: Limits) -> str:
    options = f"--memory {limits.memory} --memory-swap {limits.memory} --cpus {limits.cpus} --network none"
    own = f"-v {engine.scripts}:/programs:ro -v {engine.disk}:/disk"
    volumes = f"-v /proc/uptime:/host/uptime:ro -v /proc/loadavg:/host/loadavg:ro {own}"
    run = f"{engine.command} run --detach {options} {volumes} {engine.options} {way.options} {engine.image}"
    container = engine.shell(f"{run} sleep infinity").split()[-1]
    try:
        if engine.attach:
            pid = engine.shell(f"{engine.command} inspect --format {{{{.State.Pid}}}} {container}")
            engine.shell(f"{engine.attach} {pid}")
        write = f"dd if=/dev/zero of=/disk/{limits.memory} bs=1M count={limits.written // MIB} oflag=direct status=none"
        engine.shell(f"{engine.command} exec {container} {write}")
        return engine.shell(f"{engine.command} exec {container} {way.prefix} bash /programs/run.sh {names}")
    finally:
        engine.shell(f"{engine.command} rm --force {container}")


_SECTION = re.compile(r"^<<<<(\S+) (.*)\n((?s:.*?))>>>>(\d+) (.*)\n", re.MULTILINE)


def sections(text: str, limits: Limits, machine: Seen) -> Iterator[tuple[str, Said]]:
    """Yield what each program said, with its row's name, in the output of run.sh."""
    for name, before, printed, status, after in _SECTION.findall(text):
        moments = [[float(word) for word in line.split()] for line in (before, after)]
        own = [
            Seen(limits.memory, limits.cpus, up - start / 100, load, limits.written) for start, up, _, load in moments
        ]
        host = [Seen(machine.memory, machine.cpus, up, load) for _, up, load, _ in moments]
        yield name, Said(f"{printed}[exit {status}]", (own[0], own[1]), (host[0], host[1]))
