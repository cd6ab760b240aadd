"""Put the views into containers as they start: `python -m lxcfs_py.attach.auto_attach`, a process beside the daemon.

It has one thread, so that it may fork what enters a container. The daemon holds its standard input: the settings come
there, and when it ends, so does this. inotify tells of new cgroups where containers have theirs. A new one is looked at
every few milliseconds until it has a process whose root and /proc are no longer the host's: the engine has made the
container's mounts by then, and mostly not started its program yet. Then a forked process attaches.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import heapq
import json
import logging
import os
import re
import select
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lxcfs_py.attach import attach, mount_users, results, running
from lxcfs_py.attach.forks import Forks
from lxcfs_py.cgroup import layout
from lxcfs_py.linux import aside, process_texts, seccomp, syscalls
from lxcfs_py.linux.mountpoint import FSTYPE
from lxcfs_py.log import to_stderr
from lxcfs_py.runtimes.names import Names

log = logging.getLogger("lxcfs_py.attach.auto_attach")

MAX_WATCHES = 8192
MAX_LOOKED_AT = 4096
MAX_ATTACHING = 16

# A look comes after a tenth of the time for which the cgroup has been looked at, within these; the most is more where
# there are many, and a look that takes long comes so seldom that the others have their share of the time.
_LOOK_SECONDS = (0.002, 0.05)
_SECONDS_OF_EACH = 0.0002
_MOST_SHARE_SECONDS = 1.0  # a look may have taken long because this process did not run
_GIVE_UP_SECONDS = 30.0

# What a process that was to attach ends with when that is to be tried again: soon, or after a pause, as where it was
# killed, for as long as a cgroup is looked at; or, where it is the daemon that does not answer, until it does.
_LOOK_AGAIN = 1
_LATER = 2
_NO_ANSWER = 3
_AGAIN_SECONDS = 1.0

_MAX_PROCESSES = 64
_MAX_CHILDREN = 16
_MAX_MOUNTINFOS = 4
_MAX_MOUNTINFO = 1 << 18  # bytes

# All of a server's mount: the container is that server's own, or its engine has not put its root in place yet.
_WHOLE = re.compile(rb"^\d+ \d+ \S+ / .* - %b " % re.escape(FSTYPE).encode(), re.MULTILINE)

_ROOTS = re.compile(rb"^\d+ \d+ (\S+) (\S+) (/|/proc) ", re.MULTILINE)

_EVENT = struct.Struct("iIII")  # of inotify(7), before the name


class Settings(NamedTuple):
    """What the daemon says, as a line of JSON."""

    mountpoint: str
    names: Sequence[str]
    """As in files.NAMES."""

    cgroups: Sequence[str]
    """As config.Attach has it."""

    level: str
    """Of the log."""


class Patterns:
    """Patterns of cgroup paths, whose names are matched one by one."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [pattern.split("/")[1:] for pattern in patterns]

    def match(self, path: str) -> bool:
        """Tell whether that is the cgroup of a container."""
        names = path.split("/")[1:]
        return any(len(pattern) == len(names) and _match(names, pattern) for pattern in self._patterns)

    def may_match_below(self, path: str) -> bool:
        """Tell whether there may be such a cgroup below this one; "" is the root."""
        names = path.split("/")[1:]
        return any(len(pattern) > len(names) and _match(names, pattern) for pattern in self._patterns)


def _match(names: list[str], pattern: list[str]) -> bool:
    return all(map(fnmatch.fnmatchcase, names, pattern))


class Cgroups:
    """The cgroups of containers in one hierarchy, those that are there and those that come."""

    def __init__(self, hierarchy: layout.Hierarchy, patterns: Patterns) -> None:
        """OSError when inotify cannot be had."""
        self._hierarchy = hierarchy
        self._patterns = patterns
        self._watched: dict[int, str] = {}
        self.silent: dict[str, None] = {}
        """Those above others that did not answer, and are to be asked again."""

        self._is_complete = True
        try:
            self._inotify = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            text = "no inotify instance is left for this user; fs.inotify.max_user_instances (sysctl) says how many"
            raise OSError(error.errno, text) from None

    def fileno(self) -> int:
        """Return a descriptor that is readable when `new` has some."""
        return self._inotify

    def all(self) -> Iterator[str]:
        """Yield the paths of those that are there, and watch for others from now on."""
        return self._enter(self._hierarchy.root.rstrip("/"))

    def again(self) -> Iterator[str]:
        """Yield the paths of those that are below where nobody answered before."""
        silent, self.silent = list(self.silent), {}
        for path in silent:
            yield from self._enter(path)

    def new(self) -> Iterator[str]:
        """Yield the paths of those that have come; some of them may come again."""
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._inotify, 1 << 16)
            end = 0
            while end < len(events):
                watch, mask, _, length = _EVENT.unpack_from(events, end)
                start = end + _EVENT.size
                end = start + length
                if mask & syscalls.IN_Q_OVERFLOW:
                    yield from self.all()
                elif mask & syscalls.IN_IGNORED:
                    self._watched.pop(watch, None)
                elif watch in self._watched:
                    name = events[start:end].rstrip(b"\0")
                    yield from self._enter(f"{self._watched[watch]}/{os.fsdecode(name)}")

    def _enter(self, path: str) -> Iterator[str]:
        if self._patterns.match(path):
            yield path
            return
        if not self._patterns.may_match_below(path):
            return
        directory = self._hierarchy.directory(path)
        try:
            self._watch(path, directory)
            # What is made from here on is an event, what was made before is listed: nothing is missed.
            names = aside.look(path, _children, directory)
        except (FileNotFoundError, NotADirectoryError):  # it has gone, or is a file
            return
        except aside.SilentError:
            self.silent[path] = None
            return
        for name in names:
            yield from self._enter(f"{path}/{name}")

    def _watch(self, path: str, directory: str) -> None:
        reason = f"{MAX_WATCHES} cgroups are watched already"
        if len(self._watched) < MAX_WATCHES:
            opened = aside.open_file(path, directory, ".", os.O_PATH | os.O_DIRECTORY)
            try:
                mask = syscalls.IN_CREATE | syscalls.IN_ONLYDIR
                self._watched[syscalls.inotify_add_watch(self._inotify, f"/proc/self/fd/{opened}", mask)] = path
                return
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            finally:
                os.close(opened)
            reason = "fs.inotify.max_user_watches (sysctl) is reached"
        if self._is_complete:
            self._is_complete = False
            log.error("new containers in %s and other new cgroups are not attached: %s", path or "/", reason)


class Candidate(NamedTuple):
    """A cgroup in which a container may be about to start, to be ordered by when to look next."""

    due: float
    """Negative for one that has not been looked at."""

    path: str
    since: float


class Attacher:
    """The loop around it all."""

    def __init__(self, settings: Settings) -> None:
        """OSError when there are no cgroups, no inotify, no pidfds."""
        hierarchies = layout.find().hierarchies
        hierarchy = hierarchies.get("memory") or hierarchies.get("")
        if hierarchy is None:
            raise OSError(errno.ENOENT, "neither cgroup v2 nor v1's memory controller is mounted")
        self._settings = settings
        self._hierarchy = hierarchy
        self._cgroups = Cgroups(hierarchy, Patterns(settings.cgroups))
        self._candidates: list[Candidate] = []
        self._again = 0.0
        try:
            os.close(os.pidfd_open(os.getpid()))
        except OSError:
            raise OSError(errno.ENOSYS, f"this kernel is {os.uname().release}; Linux 5.3 or later is needed") from None
        self._host_namespaces = running.host_mount_namespaces()
        self._host_roots = []
        for pid in ("self", "1"):
            with contextlib.suppress(PermissionError):
                self._host_roots.append(_roots(_mountinfo(pid)))
        # What is in the mountinfo of a container that has all files; this process does not outlive the daemon's mount.
        device = mount_users.device(settings.mountpoint)
        names = [name for name in settings.names if os.path.lexists(f"/{name}")]
        self._mounted = [f" {device} /{name} /{name} ".encode() for name in names]
        self._poll = select.poll()
        self._poll.register(0, 0)  # its hangup is always told
        self._poll.register(self._cgroups, select.POLLIN)
        self._attaching: Forks[Candidate] = Forks(self._poll, MAX_ATTACHING)

    def run(self) -> None:
        """Attach until the standard input ends."""
        self._add(self._cgroups.all())
        while True:
            self._look()
            if self._cgroups.silent and time.monotonic() >= self._again:
                self._add(self._cgroups.again())
                self._again = time.monotonic() + _AGAIN_SECONDS
            due = [self._candidates[0].due] if self._candidates else []
            due += [self._again] if self._cgroups.silent else []
            pause = max(min(due) - time.monotonic(), 0) * 1000 if due else None
            for descriptor, _ in self._poll.poll(pause):
                if descriptor == 0:
                    return
                if descriptor == self._cgroups.fileno():
                    self._add(self._cgroups.new())
                else:
                    self._reap(descriptor)

    def _add(self, paths: Iterator[str]) -> None:
        now, dropped = time.monotonic(), 0
        for path in paths:  # to the end: they are watched meanwhile
            if len(self._candidates) >= MAX_LOOKED_AT:
                self._candidates.remove(min(self._candidates, key=lambda candidate: candidate.since))
                heapq.heapify(self._candidates)
                dropped += 1
            heapq.heappush(self._candidates, Candidate(-now, path, now))  # first, the latest before others
        if dropped:
            log.error("%d containers are too many at once, and not attached: lxcfs-py attach --all does it", dropped)

    def _look(self) -> None:
        """Look at the cgroup whose turn it is: between two looks, others may come."""
        now = time.monotonic()
        if not self._candidates or self._candidates[0].due > now:
            return
        candidate = heapq.heappop(self._candidates)
        if candidate.due < 0:  # it may have waited
            candidate = candidate._replace(since=now)
        if now - candidate.since > _GIVE_UP_SECONDS:
            log.debug("%s: no container has started there", candidate.path)
        elif not self._is_settled(candidate):
            self._look_again(candidate, now)

    def _look_again(self, candidate: Candidate, looked: float) -> None:
        """Look again, after a look that began then."""
        now = time.monotonic()
        others = len(self._candidates)
        least, most = _LOOK_SECONDS
        pause = min(max((now - candidate.since) / 10, least), max(most, others * _SECONDS_OF_EACH))
        share = min((now - looked) * others, _MOST_SHARE_SECONDS)
        heapq.heappush(self._candidates, candidate._replace(due=now + max(pause, share)))

    def _is_settled(self, candidate: Candidate) -> bool:
        """Attach to the container in a cgroup if it is ready for that; tell whether there is no need to look again."""
        directory = self._hierarchy.directory(candidate.path)
        try:
            pids = aside.look(candidate.path, _processes, directory)
        except OSError as error:
            return isinstance(error, aside.GoneError)
        seen: dict[tuple[int, str], bytes] = {}
        if not any(self._mountinfo_if_ready(pid, seen) for pid in pids):
            return False
        for pid in sorted(pids, key=_age):
            mountinfo = self._mountinfo_if_ready(pid, seen)
            if mountinfo:
                if not all(mounted in mountinfo for mounted in self._mounted):
                    if self._attaching.are_enough:
                        return False
                    self._attaching.start(partial(_attach, pid, candidate.path, self._settings), candidate)
                return True
        return False

    def _mountinfo_if_ready(self, pid: int, seen: dict[tuple[int, str], bytes]) -> bytes:
        """Return the mountinfo of a process with a root and a /proc that are no longer the host's, b"" for another.

        In one look it is read once of each mount namespace and root in that, which `seen` has, and of some only.
        """
        try:
            namespace = _mount_namespace(str(pid))
            if namespace in self._host_namespaces:
                return b""
            place = namespace, _root(str(pid))
            if place not in seen:
                if len(seen) >= _MAX_MOUNTINFOS:
                    return b""
                seen[place] = self._if_ready(_mountinfo(str(pid)))
        except OSError:  # it has ended
            return b""
        return seen[place]

    def _if_ready(self, mountinfo: bytes) -> bytes:
        roots = _roots(mountinfo)
        is_ready = len(roots) == 2 and roots not in self._host_roots and not _WHOLE.search(mountinfo)
        return mountinfo if is_ready else b""

    def _reap(self, pidfd: int) -> None:
        candidate, code = self._attaching.reap(pidfd)
        now = time.monotonic()
        if code == _LOOK_AGAIN:
            self._look_again(candidate, now)  # another process of it may be there
        elif code:
            since = now if code == _NO_ANSWER else candidate.since
            heapq.heappush(self._candidates, Candidate(now + _AGAIN_SECONDS, candidate.path, since))


def _attach(pid: int, path: str, settings: Settings) -> int:
    """Attach and log what came of it; return 0, or when to try again.

    Who has ended is no result, as another process of the container may do, nor is one that does not answer.
    """
    try:
        identity = Names().of(path)
        reason = identity.opt_out() if identity else ""
        if reason:
            raise attach.LeftAloneError(reason)
        outcomes = attach.attach(pid, settings.mountpoint, settings.names, attach.Wanted(opt_outs=True))
        results.tell(results.of(outcomes))
        _log(pid, path, outcomes)
    except attach.EndedError:
        log.debug("container %d (%s) has ended", pid, path)
        return _LOOK_AGAIN
    except attach.AttachError as error:
        results.tell(results.of_error(error))
        level = logging.DEBUG if isinstance(error, attach.LeftAloneError) else logging.WARNING
        log.log(level, "container %d (%s): %s", pid, path, error)
        if isinstance(error, attach.SilentError):  # by the container, or a busy machine: it is looked at for a while
            return _NO_ANSWER if error.device == mount_users.device(settings.mountpoint) else _LATER
    except Exception:
        results.tell(results.FAILED)
        log.exception("container %d (%s)", pid, path)
    return 0


def _log(pid: int, path: str, outcomes: Sequence[attach.Outcome]) -> None:
    refused: dict[str, list[str]] = {}
    for name, result, reason in outcomes:
        if result == "refused":
            refused.setdefault(reason, []).append(f"/{name}")
    done = sum(result in ("attached", "replaced") for _, result, _ in outcomes)
    if done:
        log.info("container %d (%s): %d files attached", pid, path, done)
    for reason, names in refused.items():
        log.warning("container %d (%s): %s: %s", pid, path, " ".join(names), reason)


def _mountinfo(pid: str) -> bytes:
    """Return /proc/PID/mountinfo, as far as a bounded look goes. OSError when the process has ended."""
    descriptor = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        return file.read(_MAX_MOUNTINFO)


def _roots(mountinfo: bytes) -> dict[bytes, tuple[bytes, bytes]]:
    """Return what is mounted at / and at /proc: device and root of each."""
    return {place: (device, root) for device, root, place in _ROOTS.findall(mountinfo)}


def _age(pid: int) -> tuple[bool, int]:
    """Order a container's processes: its init is first, then the oldest. Pids tell nothing, for they wrap around."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        status, stat = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("status", "stat"))
        return process_texts.pids_within(status)[-1] != 1, process_texts.start_ticks(stat)
    return True, sys.maxsize  # it has ended


def _mount_namespace(pid: str) -> int:
    return os.stat(f"/proc/{pid}/ns/mnt").st_ino


def _root(pid: str) -> str:
    return os.readlink(f"/proc/{pid}/root")


def _processes(directory: str) -> list[int]:
    """Return some of the pids in a cgroup, or in its children where it has none of its own. OSError, GoneError."""
    try:
        pids = _members(directory)
    except FileNotFoundError:
        raise aside.GoneError(directory) from None
    if not pids:
        for child in _children(directory)[:_MAX_CHILDREN]:
            with contextlib.suppress(OSError):
                pids += _members(f"{directory}/{child}")
    return pids[:_MAX_PROCESSES]


def _children(directory: str) -> list[str]:
    """Return the names of the cgroups below one. OSError."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _members(directory: str) -> list[int]:
    descriptor = os.open(f"{directory}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [int(pid) for pid in os.read(descriptor, 4096).split(b"\n")[:-1]]
    finally:
        os.close(descriptor)


def main() -> int:
    """Attach until the standard input ends; return the exit code."""
    line = sys.stdin.readline()
    if not line:  # the daemon has ended
        return 0
    settings = Settings(*json.loads(line))
    to_stderr(settings.level)
    seccomp.try_to_forbid()
    try:
        attacher = Attacher(settings)
        aside.start((_processes, _children))
        attacher.run()
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        log.error("new containers cannot be attached: %s%s", what, error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
