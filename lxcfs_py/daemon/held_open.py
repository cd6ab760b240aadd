"""All files are held open by somebody, so that no container can take a lease of one: for its end others would wait.

A lease is refused, also to who has CAP_LEASE or is the file's owner, where another descriptor has the file open: one
for writing wherever that is, one for reading where it is open for writing (fcntl(2)). A process of its own opens them,
since this one would wait for itself. They lie in a socket that nobody reads and that is kept with the session: so they
are open while no server runs, and no process has to look after them. systemd, which asks what it keeps for its
attributes, asks the socket, and no file of the mount.

The kernel counts what lies in sockets for the user who sent it, in the container or not: a process without
CAP_SYS_RESOURCE can send no descriptor while its user has more there than its own RLIMIT_NOFILE. So they are sent by a
user that nobody is.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Optional

from lxcfs_py import isolated
from lxcfs_py.engine import store
from lxcfs_py.files import FILES
from lxcfs_py.linux import seccomp, syscalls, threads
from lxcfs_py.linux.digest import digest
from lxcfs_py.log import to_stderr

log = logging.getLogger(__name__)

_MOST = 256
"""Files of a directory that is served whole: of a large machine, not all of those that each CPU has."""

_NOBODY = 2**32 - 2
"""The last user id. Ranges for containers and for systemd's users end below it."""

_AT_ONCE = 128
"""Descriptors in one message; the kernel takes 253."""

_PREFIX = "held-"
_NAME = _PREFIX + digest(" ".join((str(_NOBODY), *FILES))).hex()
"""The name under which the socket is kept; a version with other files, or another user that sends, holds these."""

_UNHELD = "containers with CAP_LEASE may take leases of files, and hold up others by them: %s"

_SECONDS = 120.0
"""A lease that was there before, of a version that held nothing, ends after 45 s (/proc/sys/fs/lease-break-time)."""


def start(mount: int, resumes: bool) -> None:
    """Have the files of a mount held, in the background, unless a server before this one has seen to it."""
    kept = store.inherited()
    for name in [name for name in kept.others if name.startswith(_PREFIX) and not (resumes and name == _NAME)]:
        os.close(kept.others[name])
        with contextlib.suppress(OSError):
            kept.forget(name)
    if _NAME not in kept.others:
        try:
            threads.start(_hold, os.dup(mount), name="held open")
        except OSError as error:
            log.warning(_UNHELD, error)


def _hold(mount: int) -> None:
    try:
        queue, end = socket.socketpair()
        with queue:
            with end:
                command = isolated.command(__name__, str(mount), str(end.fileno()))
                subprocess.run(
                    command,
                    cwd="/",
                    pass_fds=(mount, end.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,  # a terminal's Ctrl-C is meant for the server
                    check=True,
                    timeout=_SECONDS,
                )
            with contextlib.suppress(OSError):  # whoever keeps it is gone
                store.inherited().keep(_NAME, queue.detach())
    except (OSError, subprocess.SubprocessError) as error:
        log.warning(_UNHELD, error)
    finally:
        os.close(mount)


# In the process that opens them


def _is_sent_by_nobody() -> bool:
    """Let what this process sends from here on count for no user; return whether that can be."""
    try:
        os.setresuid(_NOBODY, 0, 0)  # the first is what counts; the others are what may open
    except OSError as error:
        log.warning(_UNHELD, f"those in directories are not held open, as they would count for root ({error.strerror})")
        return False
    return True


def _paths(mount: int, most: int) -> Iterator[str]:
    """Yield the paths of files, of each directory that is served whole so many, those that are not deep in it."""
    for name, file in FILES.items():
        if file.is_directory:
            yield from itertools.islice(_below(mount, name), most)
        else:
            yield name


def _below(mount: int, directory: str) -> Iterator[str]:
    directories = [directory]
    for directory in directories:  # it grows on the way
        with contextlib.suppress(OSError):
            entries = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
            try:
                for name in sorted(os.listdir(entries)):
                    mode = os.stat(name, dir_fd=entries, follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        directories.append(f"{directory}/{name}")
                    elif stat.S_ISREG(mode):
                        yield f"{directory}/{name}"
            finally:
                os.close(entries)


def _opened(mount: int, path: str) -> Optional[int]:
    """Open a file, for writing if it can be written; None where it cannot be opened. BlockingIOError: it is leased."""
    for access in (os.O_RDWR, os.O_RDONLY):
        try:
            return os.open(path, access | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=mount)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                return None
    return None


def _open_all(mount: int, most: int) -> Iterator[int]:
    """Yield descriptors of all files, of each directory so many, as soon as they can be had."""
    left = list(_paths(mount, most))
    while left:
        leased = []
        for path in left:
            try:
                descriptor = _opened(mount, path)
            except BlockingIOError:  # whoever has a lease has been told to let go of it
                leased.append(path)
                continue
            if descriptor is not None:
                yield descriptor
        left = leased
        if left:
            time.sleep(1)


def _end_with_the_server(connection: socket.socket) -> None:
    """Have this process end with the one that started it, whose successor starts another one.

    Servers that are killed one after the other would leave as many that go through all directories, while readers wait.
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    hung_up = select.poll()
    hung_up.register(connection, 0)  # which is told whatever is asked for
    if hung_up.poll(0):
        raise BrokenPipeError


def _main(mount: int, end: int) -> None:
    with socket.socket(fileno=end) as connection:
        descriptors: list[int] = []

        def send() -> None:
            socket.send_fds(connection, [b"\0"], descriptors)
            while descriptors:
                os.close(descriptors.pop())

        _end_with_the_server(connection)
        most = _MOST if _is_sent_by_nobody() else 0
        seccomp.try_to_forbid()
        for descriptor in _open_all(mount, most):
            descriptors.append(descriptor)
            if len(descriptors) == _AT_ONCE:
                send()
        if descriptors:
            send()


if __name__ == "__main__":
    to_stderr()
    with contextlib.suppress(BrokenPipeError):  # the server has ended
        _main(int(sys.argv[1]), int(sys.argv[2]))
