"""What could be wrong on a host, checked one by one."""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import platform
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

from lxcfs_py.attach import attach, mount_users, servers
from lxcfs_py.attach.running import cgroup
from lxcfs_py.cgroup import layout
from lxcfs_py.commands import unserved
from lxcfs_py.commands.common import counted
from lxcfs_py.config import Config
from lxcfs_py.daemon import control as daemon
from lxcfs_py.errors import LxcfsError, in_words
from lxcfs_py.linux import capabilities, mount_table, roots, serving
from lxcfs_py.linux.mountpoint import FSTYPE, is_mounted
from lxcfs_py.printable import printable
from lxcfs_py.runtimes.names import Names

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_COMMAND_SECONDS = 10
_ALIAS = Path("/etc/systemd/system/lxcfs.service")
_MAX_LOG_RECORDS = 20_000
_CONTROLLERS = ("memory", "cpu", "cpuset", "pids")
_VERSIONS = ("systemctl", "runc", "crun", "docker", "podman", "containerd", "crio", "lxc-info")
_SERVED = ("live", "other", attach.HIDDEN)
_CALLED = {"systemctl": "systemd", "lxc-info": "lxc"}


class Finding(NamedTuple):
    """What a check of that name has found, and what to do."""

    check: str
    verdict: str
    found: str
    advice: str = ""


class Found(NamedTuple):
    """The same, of a check that knows no name of its own."""

    verdict: str
    found: str
    advice: str = ""


Check = Callable[[Config], Iterator[Found]]


def all_of(config: Config) -> Iterator[Finding]:
    """Make every check; one that cannot be made is told as such."""
    for name, check in CHECKS.items():
        try:
            yield from (Finding(name, *found) for found in check(config))
        except (OSError, ValueError, LxcfsError, subprocess.SubprocessError) as error:
            advice = "run this as root on the host itself, with all capabilities"
            yield Finding(name, WARNING, f"cannot be checked: {printable(in_words(error))}", advice)


def _daemon(config: Config) -> Iterator[Found]:
    try:
        told = daemon.ask(config.mountpoint)
    except (daemon.NotRunningError, daemon.NotAnsweringError) as error:
        yield Found(PROBLEM, str(error), error.hint)
        return
    yield Found(OK, f"version {told['version']}, process {told['pid']}, engine {told['engine']}, it answers")
    for sentence in told["degraded"]:
        yield Found(PROBLEM, sentence, "lxcfs-py status says more")
    if told["keeper"] == "none":
        yield Found(
            WARNING,
            "nobody keeps its mount when it dies",
            "run it as the service lxcfs-py, or with --keep, and with the engine kernel",
        )


def _fuse(config: Config) -> Iterator[Found]:
    try:
        mode = os.stat("/dev/fuse").st_mode
    except OSError:
        yield Found(PROBLEM, "it is not there", "modprobe fuse; in a container: --device /dev/fuse")
        return
    if stat.S_ISCHR(mode) and os.access("/dev/fuse", os.R_OK | os.W_OK):
        yield Found(OK, "it is there and may be opened")
    else:
        yield Found(PROBLEM, "it may not be opened from here", "be root; in a container: --device /dev/fuse")


def _capabilities(config: Config) -> Iterator[Found]:
    if capabilities.has("self", capabilities.SYS_ADMIN):
        yield Found(OK, "this process has CAP_SYS_ADMIN")
    else:
        yield Found(PROBLEM, "this process has no CAP_SYS_ADMIN", "in a container: --cap-add SYS_ADMIN")


def _cgroups(config: Config) -> Iterator[Found]:
    found = layout.find()
    versions = {name: found.version(name) for name in _CONTROLLERS}
    there = {version for version in versions.values() if version}
    kind = {frozenset({1}): "v1", frozenset({2}): "v2", frozenset({1, 2}): "v1 and v2"}.get(frozenset(there), "none")
    missing = [name for name, version in versions.items() if not version]
    if missing:
        advice = "mount them at /sys/fs/cgroup; on v2, switch them on in the root's cgroup.subtree_control"
        yield Found(PROBLEM, f"{kind}; no controller {', '.join(missing)}", advice)
    else:
        yield Found(OK, f"{kind}, with {', '.join(_CONTROLLERS)}")
    if os.readlink("/proc/self/ns/cgroup") != os.readlink("/proc/1/ns/cgroup"):
        yield Found(WARNING, "this process is in a cgroup namespace of its own", "in a container: --cgroupns host")


def _propagation(config: Config) -> Iterator[Found]:
    above = [mount for mount in mount_table.read() if config.mountpoint.startswith(mount.mountpoint.rstrip("/") + "/")]
    if not above:  # in a directory that was made the root, and is no mount
        found = f"the mount that has {config.mountpoint} cannot be seen from here"
        yield Found(WARNING, found, "run this on the host itself")
        return
    around = max(reversed(above), key=lambda mount: len(mount.mountpoint))  # the upper one of two
    named = printable(around.mountpoint)
    if any(word.startswith("shared:") for word in around.propagation):
        yield Found(OK, f"{named} is shared: a new mount reaches containers that follow it")
    else:
        yield Found(
            WARNING,
            f"{named} is private: containers that follow the host's mounts do not get a new one",
            f"mount --make-shared {named}",
        )


def _dead_mounts(config: Config) -> Iterator[Found]:
    found = mount_users.find(config.mountpoint)
    users = found.users
    states = mount_users.states(users)
    bad: dict[tuple[str, str], list[mount_users.User]] = {}  # by state, and by device where each has its own cure
    for user in users:
        state = states.get(user.device, servers.LIVE)
        if state in unserved.EFFECTS:
            bad.setdefault((state, user.device if state == servers.SILENT else ""), []).append(user)
    if found.missing:
        yield Found(WARNING, found.missing)
    if not bad:
        yield Found(OK, f"none; containers and services with files of a living server: {len(users)}")
        return
    names = Names()
    for (state, device), theirs in bad.items():
        shown = ", ".join(f"process {user.pid} ({_called(user, names)})" for user in theirs[:10])
        more = f" and {len(theirs) - 10} more" if len(theirs) > 10 else ""
        whose = "--all" if state == servers.DEAD else "--pid PID"
        advice = unserved.cure(state, device, whose, config)
        yield Found(PROBLEM, f"{shown}{more} with files whose server {unserved.EFFECTS[state]}", advice)


def _called(user: mount_users.User, names: Names) -> str:
    """Return what to call a mount namespace: the container's name, or its first process's."""
    with contextlib.suppress(OSError):
        identity = names.of(cgroup(user.pid))
        if identity:
            return printable(identity.name)
    return printable(user.command)


def _c_program(config: Config) -> Iterator[Found]:
    running = list(filter(_is_the_c_program, roots.pids()))
    if running:
        yield Found(
            WARNING,
            f"it runs, as process {', '.join(map(str, running))}",
            "install lxcfs-py's package, which takes its place: lxcfs-py.service(8)",
        )
    else:
        yield Found(OK, "it does not run")


def _is_the_c_program(pid: int) -> bool:
    """Tell it by what no process can keep waiting who asks: its arguments, in its memory, are not such."""
    try:
        process = Path(roots.PROC, str(pid))
        return (process / "comm").read_bytes() == b"lxcfs\n" and "python" not in os.readlink(process / "exe")
    except PermissionError:  # of another user, and it is called so
        return True
    except OSError:  # it has ended
        return False


def _unit(config: Config) -> Iterator[Found]:
    if not Path("/run/systemd/system").is_dir():
        yield Found(OK, "this is no system with systemd")
        return
    shown = _said(["systemctl", "show", "lxcfs-py.service", "--property=LoadState,ActiveState,Names,NeedDaemonReload"])
    told = dict(line.partition("=")[::2] for line in shown.splitlines())
    if told.get("LoadState") != "loaded":
        yield Found(WARNING, "there is no lxcfs-py.service", "install the package, or run lxcfs-py run --keep")
        return
    if told.get("ActiveState") != "active" and _said(["systemctl", "is-enabled", "lxcfs.service"]).strip() == "masked":
        advice = "systemctl unmask lxcfs; systemctl enable --now lxcfs-py"
        yield Found(PROBLEM, "lxcfs, which is another name of it, is masked: it cannot be enabled", advice)
    elif told.get("ActiveState") != "active":
        yield Found(PROBLEM, f"it is {told.get('ActiveState')}", "journalctl -u lxcfs-py says why")
    elif told.get("NeedDaemonReload") == "yes":
        yield Found(WARNING, "its file has changed on disk", "systemctl daemon-reload")
    elif _said(["systemctl", "is-enabled", "lxcfs-py.service"]).strip() == "disabled":
        yield Found(WARNING, "active, but not enabled: no boot starts it", "systemctl enable lxcfs-py")
    elif _ALIAS.is_file() and not _ALIAS.is_symlink():
        found = f"active, but {_ALIAS} is another unit: who names that gets it, and not lxcfs-py.service"
        yield Found(WARNING, found, "remove it, then systemctl enable lxcfs-py")
    else:
        yield Found(OK, f"active, as {told.get('Names')}")


def _denials(config: Config) -> Iterator[Found]:
    """Look for what AppArmor or SELinux has refused, in the kernel's log."""
    found = []
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for _ in range(_MAX_LOG_RECORDS):
            with contextlib.suppress(BrokenPipeError):  # a record was overwritten meanwhile
                record = os.read(descriptor, 8192)
                refused = b'apparmor="DENIED"' in record or b"avc:  denied" in record
                if refused and (b"lxcfs" in record or b"fuse" in record):
                    found.append(record.partition(b";")[2].decode(errors="replace").splitlines()[0])
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
    if found:
        advice = "allow it in AppArmor's profile; for SELinux, a label by fuse.options: docs/runtimes.md"
        yield Found(PROBLEM, f"{len(found)} refusals, the last: {found[-1][:200]}", advice)
    else:
        yield Found(OK, "no refusals in the kernel's log")


def _engine(config: Config) -> Iterator[Found]:
    library = ctypes.util.find_library("fuse") or ctypes.util.find_library("fuse3")
    found = f'fuse.engine is "{config.fuse.engine}", libfuse is {library or "not there"}'
    if config.fuse.engine == "fusepy" and not library:
        yield Found(PROBLEM, found, 'install libfuse, or set fuse.engine to "auto"')
    else:
        yield Found(OK, found)


def _versions(config: Config) -> Iterator[Found]:
    there = [f"Linux {platform.release()}", f"Python {platform.python_version()}"]
    for program in _VERSIONS:
        if shutil.which(program):
            version = re.search(r"(?:^|\s)(\d[\w.]*)", _said([program, "--version"]))
            there.append(f"{_CALLED.get(program, program)} {version[1] if version else ''}".strip())
    yield Found(OK, "; ".join(there))


def _containers(config: Config) -> Iterator[Found]:
    if not is_mounted(config.mountpoint):
        yield Found(WARNING, "not looked at, as nothing is mounted")
        return
    auto = "" if config.attach.auto else "; attach.auto = true does so for all that start"
    attached = f"lxcfs-py attach NAME puts them there{auto}"
    names, without, with_all, left_alone = Names(), [], 0, 0
    for container in attach.status(config.mountpoint, config.files.enabled):
        missing = [name for name, state in container.files.items() if state not in _SERVED]
        if not missing and not container.error:
            with_all += 1
            continue
        identity = names.of(container.cgroup)
        if identity and identity.opt_out():
            left_alone += 1
            continue
        called = identity.name if identity else container.cgroup
        why = container.error or f"{counted(len(missing), 'file')} not served"
        is_lost = any(state in unserved.EFFECTS for state in container.files.values())
        without.append((f"{called} (process {container.pid}): {why}", "as for the dead mount" if is_lost else attached))
    for sentence, hint in without[:20]:
        yield Found(WARNING, printable(sentence), hint)
    if len(without) > 20:
        yield Found(WARNING, f"{len(without) - 20} more are without some file", "lxcfs-py status")
    alone = f"; left alone, as they opt out or only hold a pod together: {left_alone}" if left_alone else ""
    yield Found(OK, f"with all enabled files: {with_all}{alone}")


def _mounted(config: Config) -> Iterator[Found]:
    found = [mount for mount in mount_table.read() if mount.mountpoint == config.mountpoint]
    kinds = ", ".join(mount.fstype for mount in found)
    if len(found) > 1:
        yield Found(
            WARNING,
            f"{len(found)} mounts are stacked at {config.mountpoint}: {kinds}",
            "umount the lower ones",
        )
    elif found:
        state = servers.state(found[0].device, config.mountpoint) if found[0].fstype == FSTYPE else servers.LIVE
        if state in unserved.EFFECTS:
            advice = "start the daemon" if state == servers.DEAD else serving.cure(config.mountpoint)
            yield Found(PROBLEM, f"{config.mountpoint} has files whose server {unserved.EFFECTS[state]}", advice)
        else:
            yield Found(OK, f"{config.mountpoint} is mounted ({kinds})")
    else:
        yield Found(PROBLEM, f"nothing is mounted at {config.mountpoint}", "start the daemon")


def _said(command: list[str]) -> str:
    """Return the standard output of a command. OSError, subprocess.SubprocessError."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_COMMAND_SECONDS
    ).stdout


CHECKS: dict[str, Check] = {
    "daemon": _daemon,
    "mountpoint": _mounted,
    "/dev/fuse": _fuse,
    "capabilities": _capabilities,
    "cgroups": _cgroups,
    "mount propagation": _propagation,
    "dead mounts": _dead_mounts,
    "the C program lxcfs": _c_program,
    "unit": _unit,
    "AppArmor and SELinux": _denials,
    "engine": _engine,
    "versions": _versions,
    "containers": _containers,
}
