"""lxcfs-py status: how the daemon is, and which container has which files."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

from lxcfs_py.attach import attach, servers
from lxcfs_py.commands import unserved
from lxcfs_py.commands.common import (
    add_config,
    add_mountpoint,
    counted,
    load_config,
    mountpoint_even_if_broken,
    new_command,
    require_root,
    text_width,
)
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.daemon import control as daemon
from lxcfs_py.daemon import late_keys
from lxcfs_py.daemon.engines import FUSEPY_ENDS
from lxcfs_py.errors import LxcfsError, report
from lxcfs_py.printable import printable
from lxcfs_py.runtimes.names import Names

if TYPE_CHECKING:
    from lxcfs_py.commands.common import Commands

WELL, DEGRADED, NOT_RUNNING = 0, 1, 3

_NOISIEST = 5
_LEAST_ROOM = 30  # columns; with less of them, the terminal breaks lines better
_BETWEEN_LOOKS = 0.5  # seconds over which reads are counted
_WATCH_SECONDS = 2.0


class Daemon(NamedTuple):
    """How a daemon is."""

    state: str
    """healthy, degraded, "not answering" or "not running"."""

    told: dict[str, Any]
    """What it told of itself, {} where it did not."""

    rates: dict[int, float]
    """Reads a second by the init of the container, and by 0 for all together."""

    shares: dict[str, tuple[float, float]]
    """By cgroup, what was served of its requests while many waited: which part of the daemon's time that took, and how
    many seconds each waited."""

    reason: Optional[LxcfsError] = None

    @property
    def code(self) -> int:
        """The exit code for scripts."""
        return {"healthy": WELL, "not running": NOT_RUNNING}.get(self.state, DEGRADED)


def add(commands: Commands) -> None:
    """Add the command's parser."""
    parser = new_command(
        commands,
        "status",
        _status,
        "say how the daemon is, and which container has which of the files",
        "Say first how the daemon is: whether it answers, what it serves and since when, who keeps its mount, whether "
        "its configuration is the file's, what it has to do without, and which containers keep it busy. Then say of "
        "each container which of the enabled files it has: live (of this mount), other (of another server), dead "
        "(its server has ended), silent (its server does not answer), hidden (masked by the container's engine) or "
        "none.\n\n"
        "The exit code is 0 when all is well, 1 when something is not as it should be, as where a container has dead "
        "files, or the daemon does not answer, and 3 when none runs.",
        [
            ("lxcfs-py status", "at a glance"),
            ("lxcfs-py status --json", "for scripts"),
            ("lxcfs-py status --probe", "only whether the daemon serves, for Kubernetes and monitoring"),
        ],
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="as JSON")
    kind.add_argument(
        "--probe", action="store_true", help="only ask the daemon; exit code 0 if it serves its mount, else 1 or 3"
    )
    parser.add_argument(
        "--here", action="store_true", help="with --probe: only a daemon in the container of this command will do"
    )
    kind.add_argument("--watch", action="store_true", help="repeat until interrupted")
    add_mountpoint(parser, "where the daemon's mount is")
    add_config(parser)


def _status(options: argparse.Namespace) -> int:
    if options.here and not options.probe:
        options.parser.error("--here requires --probe")
    require_root()
    place = options.mountpoint or mountpoint_even_if_broken(options.config)
    if options.probe:
        return _probe(place, options.here)
    if not options.watch:
        return _look(options, place)
    while True:
        sys.stdout.write("\x1b[H\x1b[2J" if sys.stdout.isatty() else "\n")
        _look(options, place)
        sys.stdout.flush()
        time.sleep(_WATCH_SECONDS)


def _probe(place: str, here: bool) -> int:
    """Ask the daemon alone: what is degraded is no reason to start it again.

    While one pod follows another, both share the socket. Which of them serves is told by the daemon's cgroup.
    """
    try:
        told = daemon.ask(place)
    except daemon.NotRunningError as error:
        report(error)
        return NOT_RUNNING
    except daemon.NotAnsweringError as error:
        report(error)
        return DEGRADED
    trouble = told["trouble"]
    if here and not trouble and _cgroups(told["pid"]) != _cgroups("self"):
        trouble = f"{place} is served by process {told['pid']}, which is in another container"
    print(printable(trouble or f"serving at {place}"))
    return DEGRADED if trouble else WELL


def _cgroups(pid: object) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _look(options: argparse.Namespace, place: str) -> int:
    found = look(place)
    containers = list(_containers(options.config, place, found))
    found = _with_losses(found, containers)
    if options.json:
        noisiest = [each._asdict() for each in _noisiest(found, containers)]
        print(json.dumps({**_as_json(found), "noisiest": noisiest, "containers": containers}, indent=2))
    else:
        print(*_lines(found, containers), sep="\n")
        print(*_table(containers), sep="\n")
    return found.code


def _with_losses(found: Daemon, containers: list[dict[str, Any]]) -> Daemon:
    """Return how a daemon is where containers have files of another server that has ended, or is silent: not well."""
    sentences = []
    for state, cure in _CURES.items():
        lost = sum(state in each["files"].values() for each in containers)
        if lost:
            sentences.append(f"{counted(lost, 'container')} with files whose server {unserved.EFFECTS[state]}; {cure}")
    if found.reason or not sentences:
        return found
    return found._replace(state="degraded", told={**found.told, "degraded": [*found.told["degraded"], *sentences]})


_CURES = {
    servers.DEAD: "lxcfs-py attach --all --dead",
    servers.SILENT: "lxcfs-py doctor says what helps",
}


def look(place: str) -> Daemon:
    """Ask the daemon of a mountpoint twice, so that its reads can be counted over the time between."""
    try:
        first = daemon.ask(place)
        time.sleep(_BETWEEN_LOOKS)
        told = daemon.ask(place)
    except daemon.NotRunningError as error:
        return Daemon("not running", {}, {}, {}, error)
    except daemon.NotAnsweringError as error:
        return Daemon("not answering", {}, {}, {}, error)
    seconds = told["clock"] - first["clock"]
    before = {each["pid"]: each["reads"] for each in first["containers"]}
    reads = {each["pid"]: daemon.grown(before.get(each["pid"], 0), each["reads"]) for each in told["containers"]}
    reads[0] = daemon.grown(*(sum(answer["reads"].values()) for answer in (first, told)))
    rates = {pid: count / seconds for pid, count in reads.items()}
    shares = dict(_shares(first["shares"], told["shares"], seconds))
    return Daemon("degraded" if told["degraded"] else "healthy", told, rates, shares)


def _shares(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]], seconds: float
) -> Iterator[tuple[str, tuple[float, float]]]:
    none = {"requests": 0, "seconds": 0.0, "waited": 0.0}
    for cgroup, share in after.items():
        requests, served, waited = (daemon.grown(before.get(cgroup, none)[key], share[key]) for key in none)
        if requests > 0:
            yield cgroup, (served / seconds, waited / requests)


def _containers(config_file: Optional[str], place: str, found: Daemon) -> Iterator[dict[str, Any]]:
    """Yield what is known of each container, as JSON has it."""
    try:
        config = load_config(config_file)
    except ConfigError:
        config = Config()
    names = Names()
    for container in attach.status(place, config.files.enabled):
        identity = names.of(container.cgroup)
        inside = " (with a /proc of its own)" if container.within else ""
        yield {
            "name": printable(identity.name if identity else container.cgroup) + inside,
            "engine": identity.engine if identity else "",
            **container._asdict(),
            "left_alone": identity.opt_out() if identity else "",
            "reads_per_second": round(found.rates.get(container.pid, 0.0), 1),
        }


def _as_json(found: Daemon) -> dict[str, Any]:
    told = {key: value for key, value in found.told.items() if key not in ("containers", "shares", "clock")}
    return {
        "state": found.state,
        **({"reason": str(found.reason)} if found.reason else {"reads_per_second": round(found.rates[0], 1)}),
        "daemon": told,
    }


def _lines(found: Daemon, containers: list[dict[str, Any]]) -> Iterator[str]:
    """Yield how the daemon is, for people."""
    if found.reason:
        yield f"{found.state}: {printable(str(found.reason))}"
        if found.reason.hint:
            yield f"  {printable(found.reason.hint)}"
    else:
        told = found.told
        since = time.strftime("%F %T", time.localtime(told["since"]))
        yield f"{found.state}: serving {printable(told['mountpoint'])} since {since}"
        for sentence in told["degraded"]:
            yield textwrap.fill(
                printable(sentence),
                text_width(),
                initial_indent="  problem: ",
                subsequent_indent="    ",
                break_on_hyphens=False,
                break_long_words=False,
            )
        yield f"  version {told['version']}, process {told['pid']}, engine {told['engine']}"
        yield f"  if it dies: {_KEEPERS[told['keeper']]}"
        if told["engine"] == "fusepy":
            yield f"  {FUSEPY_ENDS}"
        again = told["mounted_again"]
        if again["count"]:
            last = time.strftime("%F %T", time.localtime(again["last"]))
            times = counted(again["count"], "time")
            yield f"  taken away from its mountpoint, and mounted there again: {times}, last {last}"
        yield from _configuration(told["configuration"])
        seen = len(told["containers"])
        yield f"  containers that have read: {seen}; now {found.rates[0]:.1f} reads a second"
        yield from (f"    {line}" for line in _noise(found, containers))
        yield from _attachments(told["attachments"])
    yield ""


_KEEPERS = {
    "systemd": "systemd keeps the mount, and starts it again",
    "keeper": "the process above it keeps the mount, and starts it again",
    "none": "the mount ends with it",
}


def _configuration(told: dict[str, Any]) -> Iterator[str]:
    file = printable(told["file"] or "given by options")
    if told["file"] and not told["exists"]:
        others = told["errors"] or told["differences"]
        file = f"what {file} had, which is not there any more" if others else f"the defaults, as there is no {file}"
    yield f"  configuration: {file}{_reloaded(told)}"
    yield from (f"    the file has an error: {printable(error)}" for error in told["errors"])
    if told["differences"]:
        yield f"    the file has changed since: {_with_what_applies(told['differences'])}"


def _with_what_applies(keys: Iterable[str]) -> str:
    """Return keys of the configuration, those together that one thing applies."""
    by_cure: dict[str, list[str]] = {}
    for key in keys:
        when = late_keys.APPLIED_WHEN.get(key)
        by_cure.setdefault(f"once the service is {when}" if when else "lxcfs-py reload", []).append(key)
    return "; ".join(f"{', '.join(together)} ({cure})" for cure, together in by_cure.items())


def _reloaded(told: dict[str, Any]) -> str:
    if told["reloaded"] is None:
        return ""
    result = "refused" if told["reload_errors"] else "accepted"
    return f", reloaded {time.strftime('%F %T', time.localtime(told['reloaded']))}, {result}"


class _Noise(NamedTuple):
    """What one container makes of the daemon's work."""

    name: str
    reads_per_second: float = 0.0
    share: float = 0.0
    """The part of the daemon's time that its requests took while many waited, of 1."""

    wait_seconds: float = 0.0
    """For which each of these waited."""


def _noisiest(found: Daemon, containers: Iterable[dict[str, Any]]) -> list[_Noise]:
    """Return who makes the daemon busiest, by the names of the containers."""
    called = {each["pid"]: each["name"] for each in containers if not each["within"]}
    noises: dict[str, _Noise] = {}
    for pid, rate in found.rates.items():
        if pid and rate:
            name = called.get(pid, f"process {pid}")
            noises[name] = _Noise(name, round(rate, 1))
    names = Names()
    for cgroup, (share, waits) in found.shares.items():
        identity = names.of(cgroup)
        name = printable(identity.name if identity else cgroup or "processes that have ended")
        before = noises.get(name, _Noise(name))
        longer = max(waits, before.wait_seconds)
        noises[name] = before._replace(share=round(before.share + share, 3), wait_seconds=round(longer, 6))
    return sorted(noises.values(), key=lambda each: (-each.share, -each.reads_per_second))[:_NOISIEST]


def _noise(found: Daemon, containers: Iterable[dict[str, Any]]) -> Iterator[str]:
    for name, rate, share, waits in _noisiest(found, containers):
        queued = f", {share:.0%} of the daemon's time, waiting {waits * 1000:.1f} ms each time" if share else ""
        yield f"{name}: {rate:.1f} reads a second{queued}"


def _attachments(told: dict[str, dict[str, int]]) -> Iterator[str]:
    """Yield what came of containers as they started, where the daemon attaches."""
    for kind, counts in told.items():
        yield f"  as containers start ({kind}): {', '.join(f'{count} {result}' for result, count in counts.items())}"


def _table(containers: list[dict[str, Any]]) -> Iterator[str]:
    rows = [("CONTAINER", "PID", "FILES")]
    rows += [(each["name"], str(each["pid"]), printable(each["error"]) or _state(each)) for each in containers]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    room = shutil.get_terminal_size((1 << 16, 0)).columns - sum(widths) - 4
    for name, pid, files in rows:
        first, *rest = (textwrap.wrap(files, room) or [""]) if room >= _LEAST_ROOM else [files]
        yield f"{name:<{widths[0]}}  {pid:>{widths[1]}}  {first}"
        yield from (f"{'':<{sum(widths) + 4}}{line}" for line in rest)


def _state(container: dict[str, Any]) -> str:
    """Return which files a container has, and why it may have none."""
    return _files(container["files"]) + (f" ({container['left_alone']})" if container["left_alone"] else "")


def _files(files: dict[str, str]) -> str:
    states: dict[str, list[str]] = {}
    for name, state in files.items():
        states.setdefault(state, []).append(name.rpartition("proc/")[2])
    # Whoever has them all in one state needs no list of them.
    return "; ".join(
        f"{state}: {' '.join(names)}" if len(states) > 1 else f"all {state}" for state, names in states.items()
    )
