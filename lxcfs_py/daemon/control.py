"""What commands ask a daemon, over a socket that only root can reach: how it is, what a file says, and to reload."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from lxcfs_py.daemon import last_config
from lxcfs_py.errors import LxcfsError
from lxcfs_py.linux import mount_table, mountpoint, peer, runtime_directory, serving, threads

log = logging.getLogger(__name__)

ANSWER_SECONDS = 2.0
"""A daemon that has said nothing by then does not answer."""

RELOAD_SECONDS = 15.0

_AGAIN_SECONDS = 0.01

_LOOK_SECONDS = 5.0
_MAX_BYTES = 1 << 24
_MAX_REQUEST = 1 << 16
_MAX_LOADS = 4096


class NotRunningError(LxcfsError):
    """There is no daemon."""


class NotAnsweringError(LxcfsError):
    """There is a daemon, which says nothing."""


def path_of(place: str) -> str:
    """Return where the daemon at a mountpoint is asked. OSError when there can be no such place."""
    path = runtime_directory.writable_path_of(place, runtime_directory.COMMANDS)
    if path is None:
        raise OSError(0, "it cannot be written")
    return path


def listen(place: str, answer: Callable[[dict[str, Any]], bytes], look: Callable[[], object]) -> Callable[[], None]:
    """Answer whoever asks for the daemon at a mountpoint, in threads; return what ends that. OSError.

    `look` is called every few seconds.
    """
    path = path_of(place)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen()
    listener.settimeout(_LOOK_SECONDS)
    mine = os.stat(path)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except socket.timeout:
                look()
                continue
            except OSError:  # it was stopped, or there is no descriptor to be had
                if stopped.wait(1):
                    return
                continue
            try:
                threads.start(_answer, connection, answer, name="control")
            except OSError as error:
                log.warning("a command gets no answer: %s", error.strerror)
                connection.close()

    def stop() -> None:
        stopped.set()
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), mine):  # not a successor's
                os.unlink(path)
        listener.close()

    stopped = threading.Event()
    threads.start(serve, name="control")
    return stop


def _answer(connection: socket.socket, answer: Callable[[dict[str, Any]], bytes]) -> None:
    connection.settimeout(ANSWER_SECONDS)
    with connection, contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        request = json.loads(connection.recv(_MAX_REQUEST))
        if isinstance(request, dict):
            connection.sendall(answer(request))


def ask(place: str, loads: Sequence[int] = ()) -> dict[str, Any]:
    """Return what the daemon at a mountpoint tells of itself, as `Status.describe` has it; of `loads`, the first 4096.

    NotRunningError, NotAnsweringError.
    """
    told: dict[str, Any] = _parsed(place, _request(place, _path(place), {"loads": list(loads[:_MAX_LOADS])}))
    return told


def read(place: str, pid: int, path: str) -> bytes:
    """Return what a process reads of a file by the daemon at a mountpoint, b"" where that fails.

    NotRunningError, NotAnsweringError.
    """
    return _request(place, _path(place), {"pid": pid, "path": path})


def grown(before: float, now: float) -> float:
    """Return how far a counter went from one answer to the next: where the daemon has started anew, from 0."""
    return now - before if now >= before else now


def reload(config_path: str) -> tuple[list[str], list[str]]:
    """Let the daemons that serve with a configuration file read it anew; return their errors and remarks.

    One that says nothing is among the errors where another has read it. NotAnsweringError when none has: of one that
    is known to serve with that file, or that may be the one. NotRunningError where there is no such either.
    """
    read_by_one = False
    errors: list[str] = []
    remarks: list[str] = []
    silent: dict[str, NotAnsweringError] = {}  # but for those that are known to serve with another file
    known = _mountpoints()
    theirs = {config.mountpoint for config in last_config.served_with(config_path)}
    for path in sorted(map(str, Path(runtime_directory.PATH).glob(f"*.{runtime_directory.COMMANDS}"))):
        place = known.get(path, path)
        try:
            told = _parsed(place, _request(place, path, {}))
            if told["configuration"]["file"] == config_path:
                place = told["mountpoint"]
                theirs.add(place)
                reply = _request(place, path, {"reload": True}, RELOAD_SECONDS)
                for all_of_them, these in zip((errors, remarks), _parsed(place, reply)):
                    all_of_them += these
                read_by_one = True
        except NotRunningError:  # left by one that was killed
            pass
        except NotAnsweringError as error:
            if place in theirs or not last_config.is_of_another_file(path, config_path):
                silent[place] = error
    of_the_file = [error for place, error in silent.items() if place in theirs]
    if not read_by_one:
        raise next(iter([*of_the_file, *silent.values()]), NotRunningError(f"no daemon serves with {config_path}"))
    return [*errors, *map(str, of_the_file)], remarks


def _mountpoints() -> dict[str, str]:
    """Return the mountpoint of each daemon here that has one, by the path where it is asked."""
    there = {mount.mountpoint for mount in mount_table.read() if mount.fstype == mountpoint.FSTYPE}
    return {_path(place): place for place in there}


def _path(place: str) -> str:
    return runtime_directory.path_of(place, runtime_directory.COMMANDS)


def _parsed(place: str, reply: bytes) -> Any:
    try:
        return json.loads(reply)
    except (ValueError, RecursionError):
        cut = f"the daemon of {place} does not answer: what it said breaks off after {len(reply)} bytes"
        raise NotAnsweringError(cut if reply else _silent(place, ANSWER_SECONDS), _LOG) from None


def _request(place: str, path: str, request: dict[str, Any], seconds: float = ANSWER_SECONDS) -> bytes:
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        _connect(connection, place, path, deadline, seconds)
        stranger = peer.stranger(connection)
        if stranger:
            raise NotAnsweringError(f"{stranger} is in the place of the daemon of {place}", f"remove {path}, restart")
        reply = bytearray()
        try:
            connection.sendall(json.dumps(request).encode())
            while len(reply) < _MAX_BYTES:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = connection.recv(1 << 16)
                if not part:
                    break
                reply += part
        except socket.timeout:
            raise NotAnsweringError(_silent(place, seconds), serving.cure(place, peer.of(connection)[0])) from None
        except OSError:
            raise NotAnsweringError(_silent(place, seconds), _LOG) from None
    return bytes(reply)


def _connect(connection: socket.socket, place: str, path: str, deadline: float, seconds: float) -> None:
    while True:
        try:
            connection.connect(path)
            return
        except BlockingIOError:  # as many wait already as may, and the kernel has nobody wait for that
            if time.monotonic() >= deadline:
                raise NotAnsweringError(_silent(place, seconds), serving.cure(place)) from None
            time.sleep(_AGAIN_SECONDS)
        except OSError as error:
            if mountpoint.is_mounted(place) and mountpoint.answers(place):
                raise _out_of_reach(place, error) from None
            raise NotRunningError(_not_running(place), _start(place)) from None


_LOG = "its log says why"


def _silent(place: str, seconds: float) -> str:
    return f"the daemon of {place} does not answer: it said nothing within {seconds:.0f} s"


def _out_of_reach(place: str, error: OSError) -> NotAnsweringError:
    if error.errno in (errno.EACCES, errno.EPERM):
        why, hint = f"only root may ask it, in {runtime_directory.PATH}", "run this with sudo"
    elif error.errno == errno.ECONNREFUSED:
        why, hint = f"it does not listen at its socket in {runtime_directory.PATH}", _LOG
    else:
        why, hint = f"it has no socket in {runtime_directory.PATH}", _LOG
    return NotAnsweringError(f"{place} is served, by a process that cannot be asked: {why}", hint)


def _not_running(place: str) -> str:
    if mountpoint.is_mounted(place):
        return f"no daemon runs for {place}, where a mount is left that nobody serves"
    return f"no daemon runs for {place}"


def _start(place: str) -> str:
    if Path("/run/systemd/system").is_dir():
        return "start it: systemctl start lxcfs-py"
    return f"start it: lxcfs-py run {place}"
