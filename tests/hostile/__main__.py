"""`python -m tests.hostile [SECONDS [ATTACK...]]`: what a container notices of attacks in another one: a table.

Of each attack, with Docker's default capabilities and with all; lxcfs-py beside the C program lxcfs.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path

from bench.contenders import Contender, c_program, lxcfs_py, running
from tests import cached
from tests.hostile.arena import ATTACKS, DEFAULT, Arena, Attack, engine, everything

SECONDS = 10.0


def require(condition: object, what: str) -> None:
    if not condition:
        raise SystemExit(f"this needs {what}")


def cells(arena: Arena, attack: Attack, privileged: bool, seconds: float) -> str:
    """What the victim noticed, as cells of the table; who does not answer in time has told enough."""
    try:
        with arena.attacked(attack, everything() if privileged else DEFAULT) as attacker:
            print(f"  {attack}: {attacker.outcomes}", file=sys.stderr, flush=True)
            noticed = arena.victim(seconds)
    except (subprocess.TimeoutExpired, AssertionError) as error:
        print(f"  {attack}: {str(error)[-300:]}", file=sys.stderr, flush=True)
        return "does not answer | | | "
    if noticed.first:
        print(f"  {attack}: {noticed.first}", file=sys.stderr, flush=True)
    print(f"  {attack}: triggers in ms: {noticed.triggers}", file=sys.stderr, flush=True)
    wrong = f"{noticed.failed} + {noticed.odd} of {noticed.reads}"
    return f"{noticed.p50:.2f} | {noticed.p99:.1f} | {noticed.longest:.1f} | {wrong}"


def attacked(contender: Contender, attack: Attack, privileged: bool, seconds: float, cache: Path) -> str:
    """The cells of one server, which is a new one, with an engine that knows nothing of the attack before."""
    with running(contender) as server, engine(cache, require) as docker:
        return cells(Arena(docker, server.mount), attack, privileged, seconds)


def is_well(cells: str) -> bool:
    """Tell whether the victim had an answer to each read, and a right one."""
    return "| 0 + 0 of " in cells


def main() -> int:
    """Print the table, row by row; return the exit code, which is 1 where a victim of this project's noticed more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="of each attack (%(default)s)")
    names = [attack.name for attack in ATTACKS]
    parser.add_argument("attack", nargs="*", metavar="ATTACK", choices=[[], *names], default=[], help=", ".join(names))
    options = parser.parse_args()
    seconds, wanted = options.seconds, options.attack
    cache = cached.directory()
    contenders = (lxcfs_py("kernel"), c_program())
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} CPUs\n")
    names = [f"{contender.name}: p50 ms | p99 | longest | failed + odd" for contender in contenders]
    print(f"| attack | capabilities | {' | '.join(names)} |\n| --- | --- {'| --- ' * 8}|", flush=True)
    code = 0
    for attack in ATTACKS:
        if wanted and attack.name not in wanted:
            continue
        for privileged in (True,) if attack.privileged else (False, True):
            found = [attacked(contender, attack, privileged, seconds, cache) for contender in contenders]
            code = code if is_well(found[0]) else 1
            print(f"| {attack} | {'all' if privileged else 'default'} | {' | '.join(found)} |", flush=True)

    return code


if __name__ == "__main__":
    sys.exit(main())
