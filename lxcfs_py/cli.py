"""The command line."""

from __future__ import annotations

import argparse
import dataclasses
import faulthandler
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, Optional

from lxcfs_py import __version__, files
from lxcfs_py import config as configuration
from lxcfs_py.attach import attach, hook, mount_users
from lxcfs_py.config import Config, ConfigError
from lxcfs_py.daemon import last_config, reload_socket, service, systemd
from lxcfs_py.engine import keeper
from lxcfs_py.files import DIRECTORIES, NAMES
from lxcfs_py.linux import mountpoint
from lxcfs_py.linux.mountpoint import is_mounted
from lxcfs_py.runtimes import bind_snippets, cdi, sandbox

CONFIG_PATH = "/etc/lxcfs.toml"

_SETTLING_SECONDS = 1.0

_Act = Callable[[int], list[attach.Outcome]]  # what to do with the container that a process is in


class CommandError(Exception):
    """Why a command cannot be done: one sentence for the user."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run a command; return its exit code. A user's error is one sentence on stderr and exit code 1."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        print(*error.errors, sep="\n", file=sys.stderr)
    except (
        CommandError,
        attach.AttachError,
        reload_socket.ControlError,
        bind_snippets.MountsError,
        sandbox.SandboxError,
        service.ServiceError,
    ) as error:
        print(f"lxcfs-py: {error}", file=sys.stderr)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # who reads our output has seen enough
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lxcfs-py", description="Show every container its own /proc and /sys.")
    parser.add_argument("--version", action="version", version=f"lxcfs-py {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="mount and serve, in the foreground")
    run.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    run.add_argument(
        "mountpoint", metavar="MOUNTPOINT", nargs="?", help="where to mount, instead of the configured one"
    )
    run.add_argument(
        "--keep", action="store_true", help="run it under a process that starts it again when it dies or hangs"
    )
    run.add_argument(
        "--stay", action="store_true", help="with --keep: end when told to, not when another server has taken over"
    )
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="print the effective configuration, or all errors in it")
    check.add_argument("file", metavar="FILE", nargs="?", help=f"default: {CONFIG_PATH} if it is there")
    check.set_defaults(command=_check)

    show = commands.add_parser("show", help="print what a process would read, without any mount")
    show.add_argument("file", metavar="FILE", help="e.g. meminfo, pressure/cpu or sys/devices/system/cpu/online")
    show.add_argument("--pid", type=int, default=os.getpid(), help="the process (default: this one)")
    show.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    show.set_defaults(command=_show)

    sandboxed = commands.add_parser("try", help="run a command in a small container of its own that sees itself")
    sandboxed.add_argument("--memory", metavar="SIZE", type=_size, help="limit of memory, e.g. 256M")
    sandboxed.add_argument("--swap", metavar="SIZE", type=_size, help="limit of swap, e.g. 0 or 1G")
    sandboxed.add_argument("--cpus", metavar="NUMBER", type=float, help="CPU quota, e.g. 1.5")
    sandboxed.add_argument("--cpuset", metavar="LIST", help="the CPUs to run on, e.g. 0 or 0-3")
    sandboxed.add_argument("--mountpoint", help="where the daemon's mount is, instead of the configured one")
    sandboxed.add_argument(
        "--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)"
    )
    sandboxed.add_argument("arguments", metavar="COMMAND", nargs="+", help="the command and its arguments, after --")
    sandboxed.set_defaults(command=_try)

    bound = commands.add_parser("mounts", help="print what binds the enabled files into a container")
    bound.add_argument("runtime", choices=bind_snippets.RUNTIMES, help="in whose terms")
    bound.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    bound.set_defaults(command=_mounts)

    reload = commands.add_parser("reload", help="let the daemon read its configuration anew, and say how that went")
    reload.add_argument("--config", metavar="FILE", help=f"the daemon's (default: {CONFIG_PATH})")
    reload.set_defaults(command=_reload)

    unmount = commands.add_parser("unmount", help="take the mount away, and say who loses it")
    unmount.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    unmount.add_argument(
        "--unless-restarting", metavar="UNIT", help="leave it where systemd is about to start this unit again"
    )
    unmount.set_defaults(command=_unmount)

    used = commands.add_parser("users", help="print who has files of the mount, or of another like it, mounted")
    used.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    used.set_defaults(command=_users)

    attached = commands.add_parser("attach", help="put the enabled files into containers that already run")
    _add_containers(attached, _attach)

    detached = commands.add_parser("detach", help="take the files out of containers that run")
    _add_containers(detached, _detach)

    status = commands.add_parser("status", help="print which container has which of the enabled files")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    status.set_defaults(command=_status)

    hooked = commands.add_parser("hook", help="be an OCI createContainer hook: bind the enabled files for a container")
    hooked.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    hooked.set_defaults(command=_hook)

    specified = commands.add_parser("cdi", help=f"write a CDI specification, for --device {cdi.KIND}=all")
    specified.add_argument("--output", metavar="FILE", default=cdi.PATH, help=f"where (default: {cdi.PATH})")
    specified.add_argument(
        "--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)"
    )
    specified.set_defaults(command=_cdi)

    webhook = commands.add_parser("webhook", help="add the enabled files to the pods of a Kubernetes cluster")
    pair = webhook.add_mutually_exclusive_group(required=True)
    pair.add_argument(
        "--certificate", nargs=2, metavar=("FILE", "KEY"), help="serve with this, read anew when it changes"
    )
    pair.add_argument(
        "--self-signed", metavar="NAME", help="make one for the Service of that name, and tell the cluster"
    )
    webhook.add_argument("--listen", metavar="HOST:PORT", default=":8443", help="default: port 8443 of all addresses")
    webhook.add_argument("--dry-run", action="store_true", help="change no pod, and log what would be changed")
    webhook.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    webhook.set_defaults(command=_webhook)
    return parser


def _add_containers(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int]) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--pid", type=int, help="the container that this process is in")
    which.add_argument("--docker", metavar="NAME", help="a container by Docker's name or id")
    which.add_argument("--podman", metavar="NAME", help="a container by Podman's name or id")
    which.add_argument("--all", action="store_true", help="every container on this machine")
    parser.add_argument("--file", action="append", help="only this file, e.g. meminfo; may be given again")
    parser.add_argument("--config", metavar="FILE", help=f"the configuration (default: {CONFIG_PATH} if it is there)")
    parser.set_defaults(command=command)


def _size(text: str) -> int:
    try:
        return sandbox.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_config(path: Optional[str]) -> Config:
    """Return the configuration of a file, or of the default path; the defaults where that does not exist."""
    if path is None and not os.path.exists(CONFIG_PATH):
        return Config()
    return configuration.load(Path(path or CONFIG_PATH))


def _run(options: argparse.Namespace) -> int:
    if options.stay and not options.keep:
        raise CommandError("--stay says what the process of --keep is to do: give both")
    if options.keep:
        arguments = [*(["--config", options.config] if options.config else []), *filter(None, [options.mountpoint])]
        # The server finds its modules where this process did, wherever a package has put them.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        return keeper.keep([sys.executable, "-m", "lxcfs_py", "run", *arguments], options.stay)
    logging.basicConfig(format="lxcfs-py: %(levelname)s: %(message)s", stream=sys.stderr)

    faulthandler.enable()  # the watchdog's SIGABRT leaves in the log where every thread was
    unit = systemd.Unit()
    path = os.path.abspath(options.config or CONFIG_PATH)

    def load() -> Config:
        config = load_config(options.config)
        return dataclasses.replace(config, mountpoint=mountpoint.resolve(options.mountpoint or config.mountpoint))

    try:
        config = load()
    except ConfigError as error:
        before = last_config.recall(path) if systemd.keeps_a_session() else None
        if before is None:
            print(*error.errors, sep="\n", file=sys.stderr)
            return os.EX_CONFIG  # systemd need not try again
        config = before
        logging.error("%s; serving with the configuration of before, because containers use the mount", error)
    return service.serve(
        config,
        reload=load,
        remember=lambda config: last_config.remember(path, config),
        control_path=mountpoint.runtime_file(path, "control"),
        unit=unit,
    )


def _check(options: argparse.Namespace) -> int:
    print(configuration.dump(load_config(options.file)), end="")
    return 0


def _show(options: argparse.Namespace) -> int:
    name = files.named(options.file)
    if not os.path.exists(f"/proc/{options.pid}"):
        raise CommandError(f"there is no process {options.pid}")
    if name in DIRECTORIES:
        raise CommandError(f"{options.file} is a directory; name a file in it, such as {name}/online")
    try:
        text = service.show(load_config(options.config), f"/{name}", options.pid)
    except OSError as error:
        raise CommandError(f"{options.file} cannot be shown ({error.strerror}); there is: {', '.join(NAMES)}") from None
    sys.stdout.buffer.write(text)
    sys.stdout.flush()
    return 0


def _try(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    mountpoint = options.mountpoint or config.mountpoint
    if not is_mounted(mountpoint):
        raise CommandError(f"nothing is mounted at {mountpoint}; start the daemon: lxcfs-py run {mountpoint}")
    limits = {name: getattr(options, name) for name in ("memory", "swap", "cpus", "cpuset")}
    return sandbox.run_command(options.arguments, views=Path(mountpoint), **limits)


def _mounts(options: argparse.Namespace) -> int:
    print(bind_snippets.snippet(options.runtime, load_config(options.config)), end="")
    return 0


def _reload(options: argparse.Namespace) -> int:
    path = os.path.abspath(options.config or CONFIG_PATH)
    socket = mountpoint.runtime_file(path, "control")
    if socket is None:
        raise CommandError("only root may ask the daemon to reload")
    try:
        errors, remarks = reload_socket.ask(socket)
    except reload_socket.ControlError as error:
        raise CommandError(f"{path} was not reloaded: {error}") from None
    print(*errors, *remarks, sep="\n", end="\n" if errors or remarks else "", file=sys.stderr)
    if errors:
        print(f"lxcfs-py: {path} was not reloaded; the daemon goes on with what it had", file=sys.stderr)
    return 1 if errors else 0


def _unmount(options: argparse.Namespace) -> int:
    unit = options.unless_restarting
    if unit and systemd.will_be_started_again(unit):
        return 0
    places = {_mountpoint_even_if_broken(options.config)}
    served = last_config.recall(os.path.abspath(options.config or CONFIG_PATH))
    if unit and served:  # the file may name another place by now
        places.add(served.mountpoint)
    for path in sorted(places):
        _unmount_at(path)
    return 0


def _unmount_at(path: str) -> None:
    losing = [user for user in mount_users.find(path) if user.device == mount_users.device(path)]
    while is_mounted(path):
        mountpoint.unmount(path)
    if losing:
        print(
            f"lxcfs-py: files of {path} are still mounted in the containers of "
            f"{', '.join(f'process {user.pid} ({user.command})' for user in losing)}: without a server, reading them "
            "fails with 'Transport endpoint is not connected' until they get them anew from a server that runs "
            "(lxcfs-py attach --all), or are restarted",
            file=sys.stderr,
        )


def _users(options: argparse.Namespace) -> int:
    for user in mount_users.find(_mountpoint_even_if_broken(options.config)):
        # Both names are the container's to choose: neither may end the line, or be none that can be printed.
        names = (name.encode("unicode_escape").decode() for name in (user.command, user.path))
        print(user.pid, *names, "unserved" if mount_users.is_unserved(user) else "served", sep="\t")
    return 0


def _mountpoint_even_if_broken(path: Optional[str]) -> str:
    """Return the mountpoint of a configuration, of the one before where that has errors."""
    try:
        return load_config(path).mountpoint
    except ConfigError:
        return (last_config.recall(os.path.abspath(path or CONFIG_PATH)) or Config()).mountpoint


def _attach(options: argparse.Namespace) -> int:
    config = load_config(options.config)
    names = _chosen_files(options) or config.files.enabled
    return _for_containers(options, lambda pid: attach.attach(pid, config.mountpoint, names))


def _detach(options: argparse.Namespace) -> int:
    names = _chosen_files(options) or NAMES
    return _for_containers(options, lambda pid: attach.detach(pid, names))


def _chosen_files(options: argparse.Namespace) -> list[str]:
    names = [files.named(given) for given in options.file or ()]
    for given, name in zip(options.file or (), names):
        if name not in NAMES:
            raise CommandError(f"there is no file {given}; there is: {', '.join(NAMES)}")
    return names


def _for_containers(options: argparse.Namespace, act: _Act) -> int:
    """Do something with the containers that were named, and say of each what became of its files."""
    _require_root()
    if options.all:
        found = _act_on_all(act)
    else:
        pid = _named_container(options)
        found = {pid: act(pid)}
    for pid, outcomes in found.items():
        counts = Counter(outcome.result for outcome in outcomes)
        print(f"{pid}: {', '.join(f'{count} {result}' for result, count in counts.items())}", flush=True)
        for outcome in filter(_is_refused, outcomes):
            file = f"/{outcome.name}: " if outcome.name else ""
            print(f"lxcfs-py: container {pid}: {file}{outcome.reason}", file=sys.stderr)
    return 1 if any(_is_refused(outcome) for outcomes in found.values() for outcome in outcomes) else 0


def _act_on_all(act: _Act) -> dict[int, list[attach.Outcome]]:
    """Do something with every container that lives; what is refused is tried again.

    A container that is only being made has no /proc of its own yet.
    """

    def attempt(pid: int) -> list[attach.Outcome]:
        try:
            return act(pid)
        except attach.EndedError:
            return []
        except attach.AttachError as error:
            return [attach.Outcome("", "refused", str(error))]

    found = {pid: attempt(pid) for pid in attach.containers()}
    unsettled = {pid: outcomes for pid, outcomes in found.items() if any(map(_is_refused, outcomes))}
    if unsettled:
        time.sleep(_SETTLING_SECONDS)
    for pid, before in unsettled.items():
        after = attempt(pid)
        if len(after) == len(before):
            after = [new if _is_refused(old) else old for old, new in zip(before, after)]
        found[pid] = after
    return {pid: outcomes for pid, outcomes in found.items() if outcomes}


def _is_refused(outcome: attach.Outcome) -> bool:
    return outcome.result == "refused"


def _named_container(options: argparse.Namespace) -> int:
    if options.pid is not None:
        return int(options.pid)
    if options.docker is not None:
        return attach.engine_pid("docker", options.docker)
    return attach.engine_pid("podman", options.podman)


def _status(options: argparse.Namespace) -> int:
    _require_root()
    config = load_config(options.config)
    found = list(attach.status(config.mountpoint, config.files.enabled))
    if options.json:
        print(json.dumps([container._asdict() for container in found], indent=2))
        return 0
    rows = [("PID", "CGROUP", "FILES")]
    for container in found:
        states: dict[str, list[str]] = {}
        for name, state in container.files.items():
            states.setdefault(state, []).append(name.rpartition("proc/")[2])
        # Whoever has them all in one state needs no list of them.
        parts = [
            f"{state}: {' '.join(names)}" if len(states) > 1 else f"all {state}" for state, names in states.items()
        ]
        rows.append((str(container.pid), container.cgroup, container.error or "; ".join(parts)))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for pid, cgroup, states_of_files in rows:
        print(f"{pid:<{widths[0]}}  {cgroup:<{widths[1]}}  {states_of_files}")
    return 0


def _hook(options: argparse.Namespace) -> int:
    """Bind the files, and return 0 whatever goes wrong: the runtime would start no container otherwise."""
    try:
        for outcome in filter(_is_refused, hook.run(sys.stdin.buffer, load_config(options.config))):
            print(f"lxcfs-py: /{outcome.name} of this container is the machine's: {outcome.reason}", file=sys.stderr)
    except Exception as error:
        print(f"lxcfs-py: this container starts with the machine's files: {error}", file=sys.stderr)
    return 0


def _cdi(options: argparse.Namespace) -> int:
    specification = cdi.specification(load_config(options.config))
    if len(specification["devices"]) == 1:
        raise CommandError("a CDI specification of no files cannot be: enable some in the configuration")
    path = Path(options.output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(specification, indent=2) + "\n")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
    return 0


def _webhook(options: argparse.Namespace) -> int:
    try:
        from lxcfs_py.webhook import command
    except ImportError as error:
        raise CommandError(
            "webhook needs the Python packages aiohttp, cryptography and prometheus-client (Debian: python3-aiohttp, "
            f"python3-cryptography, python3-prometheus-client): {error}"
        ) from None
    try:
        return command.run(options, load_config(options.config))
    except command.WebhookError as error:
        raise CommandError(str(error)) from None


def _require_root() -> None:
    if os.geteuid() != 0:
        raise CommandError("only root sees and changes the mounts of containers: run this with sudo")
