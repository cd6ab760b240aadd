"""Docker's engine, attackers in their containers, and a victim in another one that measures what it notices."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, NamedTuple

from tests.docker.conftest import Docker, engine_with, mounts

PROGRAMS = Path(__file__).parent
BOOTSTRAP = ("mmdebstrap", "--variant=minbase", "--include=python3", "bookworm")
MEBIBYTES = 128
VIEWS = (
    *(f"proc/{name}" for name in ("cpuinfo", "diskstats", "loadavg", "meminfo", "stat", "swaps", "uptime")),
    "sys/devices/system/cpu",
)

DEFAULT: tuple[str, ...] = ()

_CAPABILITIES = (  # by their numbers, as far as Docker 20.10 knows them; a machine may have no more than some
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP"),
    *("LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER"),
    *("SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE"),
    *("SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP"),
    *("MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ"),
)


def everything() -> list[str]:
    """Return options for every capability that there is, and for the cgroup namespace that cgroup v2 has by default.

    So a container can mount its own cgroups, and write to them.
    """
    (bounds,) = (
        line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    here = [name for number, name in enumerate(_CAPABILITIES) if int(bounds, 16) >> number & 1]
    return ["--cgroupns", "private", *(option for name in here for option in ("--cap-add", name))]


_PATIENCE = 120.0
"""Seconds for an attack to have tried all that it can do once."""


class Attack(NamedTuple):
    """A program of `attacks`, with its arguments; some mean nothing without capabilities."""

    name: str
    arguments: tuple[str, ...] = ()
    privileged: bool = False

    def __str__(self) -> str:
        return " ".join((self.name, *self.arguments)).replace("_", " ")


ATTACKS = (
    Attack("flood", ("500",)),
    Attack("flood", ("2000",)),
    Attack("small_reads"),
    Attack("listings"),
    Attack("leases"),
    Attack("locks"),
    Attack("watches"),
    Attack("changes"),
    Attack("page_cache"),
    Attack("cached_flood", ("500",)),
    Attack("half_read"),
    Attack("descriptors"),
    Attack("killed_readers"),
    Attack("triggers"),
    Attack("writers", ("500",)),
    Attack("writers", ("500", "append")),
    Attack("idle_holders", ("directory",)),
    Attack("idle_holders", ("files",)),
    Attack("idle_holders", ("cgroups",)),
    Attack("tasks"),
    Attack("names"),
    Attack("namespaces", privileged=True),
    Attack("children", privileged=True),
    Attack("spread", privileged=True),
    Attack("moves", privileged=True),
)


@dataclass(frozen=True)
class Noticed:
    """What a victim noticed: its reads and its triggers, open to close, in ms."""

    reads: int
    failed: int
    odd: int
    first: str
    p50: float
    p99: float
    longest: float
    triggers: dict[str, float]


@dataclass(frozen=True)
class Attacker:
    """A container in which an attack runs, and what came of its first round."""

    id: str
    outcomes: dict[str, int]

    def got(self, name: str) -> int:
        """How often something was done that was attempted."""
        return self.outcomes.get(f"{name}: done", 0)


@dataclass(frozen=True)
class Arena:
    """Where attackers and victims meet."""

    docker: Docker
    views: Path
    cpus: float = 0.5
    """What an attacker may use; of those that flood, less of it makes more of them."""

    def files(self) -> list[str]:
        """Return the options for a container that has all files, and the programs."""
        return [*_shown(self.views), "-v", f"{PROGRAMS}:/hostile:ro", "--network", "none"]

    def start_attacker(self, attack: Attack, capabilities: Sequence[str]) -> str:
        """Start an attacker; return its container's id."""
        program = ["python3", "-B", f"/hostile/attacks/{attack.name}.py", *attack.arguments]
        cpus = min(self.cpus, 0.2) if attack.name in ("flood", "cached_flood", "spread", "writers") else self.cpus
        if attack.name == "idle_holders":
            cpus = 1  # its loops have one: where a quota is used up, the kernel lets them wait, and holders go on
        limits = ["--cpus", str(cpus), "-m", "1g", "--pids-limit", "12000"]
        options = [*limits, *capabilities, *self.files()]
        return self.docker("run", "--detach", *options, self.docker.image, *program, timeout=180).strip()

    @contextlib.contextmanager
    def attacked(self, attack: Attack, capabilities: Sequence[str] = DEFAULT) -> Iterator[Attacker]:
        """Have an attacker at work as long as the block runs."""
        container = self.start_attacker(attack, capabilities)
        try:
            yield Attacker(container, self._outcomes(container))
        finally:
            self.docker("rm", "--force", container, timeout=300)

    def _outcomes(self, container: str) -> dict[str, int]:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            done = self.docker.attempt("logs", container)
            for line in done.stdout.splitlines():
                if line.startswith("{"):
                    return {name: int(times) for name, times in json.loads(line).items()}
            running = self.docker("inspect", "--format", "{{.State.Running}}", container).strip()
            assert running == "true", f"the attack ended: {done.stdout}{done.stderr}"
            time.sleep(0.2)
        return {"it did not get that far": 1}

    def victim(self, seconds: float) -> Noticed:
        """Return what a container notices in so many seconds."""
        return noticed(self.docker("run", "--rm", *self._victim(seconds), timeout=seconds + 120))

    def start_victim(self, seconds: float) -> str:
        """Start one that tells in its log what it has noticed, once it has the file /tmp/stop; return its id."""
        return self.docker("run", "--detach", *self._victim(seconds), timeout=600).strip()

    def _victim(self, seconds: float) -> list[str]:
        options = ["-m", f"{MEBIBYTES}m", "--cpus", "1", *self.files()]
        return [*options, self.docker.image, "python3", "-B", "/hostile/victim.py", str(seconds), str(MEBIBYTES)]


@functools.cache
def _shown(views: Path) -> list[str]:
    """Return the options for the files that a server has: it is asked once, and not while it may be away."""
    flags = mounts(views, (name for name in VIEWS if (views / name).exists()))
    return [*flags, "-v", f"{views}/proc/pressure:/views"] if (views / "proc/pressure").exists() else flags


def noticed(printed: str) -> Noticed:
    """Return what a victim says."""
    said = json.loads(printed)
    took = [microseconds / 1000 for microseconds in said.pop("took")]
    return Noticed(**{**said, "first": said["first"] or ""}, p50=took[0], p99=took[1], longest=took[2])


@contextlib.contextmanager
def engine(cache: Path, require: Callable[[object, str], None]) -> Iterator[Docker]:
    """Give Docker's engine, with an image that has no more than Python."""
    with engine_with(BOOTSTRAP, cache, require) as docker:
        yield docker
