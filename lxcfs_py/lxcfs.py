"""The command line of the C program lxcfs, `lxcfs [OPTION]... MOUNTPOINT`, for the units and scripts that call it.

Its flags set what keys of lxcfs.toml set; no file is read. Exit codes: 0, 1 when the mount could not be served, 2 for a
wrong command line.
"""

import argparse
import fcntl
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Callable, Optional, TextIO

from lxcfs_py import __version__, cli, isolated
from lxcfs_py.commands.common import mountpoint_given, path_given
from lxcfs_py.config import Config, Cpu, Fuse, Loadavg, Log, Memory
from lxcfs_py.daemon import service, systemd
from lxcfs_py.errors import LxcfsError, report
from lxcfs_py.linux import regular_file, signals
from lxcfs_py.log import to_stderr

log = logging.getLogger(__name__)

# What the C program hands on to libfuse 2 and 3 and to mount(8), and what changes nothing here: the files are for all
# to read and for nobody to write either way, and libfuse does not serve them.
_MOUNT_OPTIONS = (
    "ac_attr_timeout, allow_other, allow_root, async, async_read, atime, atomic_o_trunc, attr_timeout, auto, "
    "auto_cache, auto_unmount, big_writes, blkdev, blksize, clone_fd, congestion_threshold, debug, "
    "default_permissions, defaults, dev, direct_io, dirsync, dmask, entry_timeout, exec, fd, fmask, fsname, gid, "
    "group_id, hard_remove, intr, intr_signal, kernel_cache, large_read, max_background, max_idle_threads, "
    "max_read, max_readahead, max_threads, max_write, modules, negative_timeout, _netdev, noatime, noauto, "
    "noauto_cache, nodev, noexec, nofail, noforget, nonempty, nopath, norellinks, no_remote_flock, "
    "no_remote_lock, no_remote_posix_lock, no_splice_move, no_splice_read, no_splice_write, nosuid, readdir_ino, "
    "relatime, remember, ro, rootmode, rw, splice_move, splice_read, splice_write, subdir, subtype, suid, sync, "
    "sync_read, uid, umask, use_ino, user, user_id, x-systemd.automount"
)

_LABELS = ("context", "fscontext", "defcontext", "rootcontext")
"""SELinux's mount options, which reach the kernel."""

_ALWAYS_SO = {
    "enable-pidfd": "always on",
    "enable-cgroup": "accepted, no effect: there is no tree of cgroups below the mount",
    "enable-psi-poll": "accepted, no effect: needs no switch here",
}
"""Flags that set nothing here."""


class PidfileError(LxcfsError):
    """A pidfile that cannot be taken; its text is one sentence."""


def main(argv: Optional[list[str]] = None) -> int:
    """Serves until stopped; the exit code. Returns twice without -f: in the caller's process and in the daemon's."""
    return cli.told(lambda: _run(argv), "lxcfs")


def _run(argv: Optional[list[str]]) -> int:
    arguments = _parser().parse_args(argv)
    to_stderr()
    isolated.clean_environment()
    pidfile = Path(arguments.pidfile or f"{arguments.runtime_dir}/lxcfs.pid")
    serve = partial(_serve, _configuration(arguments), pidfile.absolute())
    # systemd follows the process that it has started: units of the C program do without -f.
    if arguments.foreground or arguments.debug or systemd.is_started_by_systemd():
        return serve(lambda: None)
    return _in_background(serve)


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="lxcfs",
        description="Serves every container its own /proc and /sys files below MOUNTPOINT.",
        epilog="The command line of the C program lxcfs. lxcfs-py has more to offer: see lxcfs-py --help.",
    )
    add = parser.add_argument
    add(
        "mountpoint",
        type=mountpoint_given,
        metavar="MOUNTPOINT",
        help="the directory to mount on, such as /var/lib/lxcfs",
    )
    add("-f", "--foreground", action="store_true", help="stay in the foreground")
    add("-d", "--debug", action="store_true", help="stay in the foreground and log all there is to say")
    add("-l", "--enable-loadavg", action="store_true", help="a load average of the container's own tasks")
    add("-u", "--disable-swap", action="store_true", help="show containers no swap")
    add("-s", dest="single_thread", action="store_true", help="answer requests one by one")
    file_given, directory_given = path_given("pidfile: name a file"), path_given("directory: name one")
    add("-p", "--pidfile", type=file_given, metavar="FILE", help="where to write the process id (/run/lxcfs.pid)")
    add("-z", "--disable-zswap", action="store_true", help="accepted, no effect: containers are shown no zswap")
    add(
        "-o",
        dest="mount_options",
        type=_mount_options,
        action="extend",
        default=[],
        metavar="OPTIONS",
        help="mount options; but for SELinux's, such as context=, they are accepted and have no effect: with a warning "
        "where neither libfuse nor mount(8) knows one",
    )
    add("--enable-cfs", action="store_true", help="show as many CPUs as the CPU quota buys, not the whole cpuset")
    for flag, meaning in _ALWAYS_SO.items():
        add(f"--{flag}", action="store_true", help=meaning)
    add("--runtime-dir", type=directory_given, default="/run", metavar="DIR", help="the directory of lxcfs.pid (/run)")
    add("-n", action="help", help="another name of -h")
    add("-v", "--version", action="version", version=f"lxcfs-py {__version__}")
    return parser


def _mount_options(text: str) -> list[str]:
    # A label may have commas, and is in quotes then.
    return re.findall(r'(?:[^,"]|"[^"]*"?)+', text)


def _labels(options: Iterable[str]) -> str:
    """Those of the mount options that reach the kernel. Of others that nobody knows, a warning."""
    labels = []
    for option in options:
        name = option.partition("=")[0]
        if name in _LABELS:
            labels.append(option)
        elif name not in _MOUNT_OPTIONS.split(", "):
            log.warning(
                'the mount option "%s" is accepted and has no effect: neither libfuse nor mount(8) knows it',
                option[:80],
            )
    return ",".join(labels)


def _configuration(arguments: argparse.Namespace) -> Config:
    """What the flags set; the rest is as in lxcfs.toml."""
    return Config(
        mountpoint=arguments.mountpoint,
        cpu=Cpu(mode="quota" if arguments.enable_cfs else "cpuset"),
        memory=Memory(swap=not arguments.disable_swap),
        loadavg=Loadavg(enabled=arguments.enable_loadavg),
        fuse=Fuse(threads=1 if arguments.single_thread else Fuse.threads, options=_labels(arguments.mount_options)),
        log=Log(level="debug") if arguments.debug else Log(),
    )


def _serve(config: Config, pidfile: Path, ready: Callable[[], None]) -> int:
    # SIGUSR1, too, which the C program's units send to have code loaded anew: nothing here needs that.
    signals.ignore_all_but(signal.SIGTERM, signal.SIGINT)
    try:
        with _held(pidfile):
            return service.serve(config, ready)
    except Exception as error:
        report(error, "lxcfs")
        return 1


def _in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Runs serve(ready) in a daemon.

    Returns to the caller once the daemon is ready, 0, or has ended before, 1, and to the daemon what serve returns.
    """
    told, tells = os.pipe()
    child = os.fork()
    if child:
        os.close(tells)
        os.waitpid(child, 0)
        if os.read(told, 1):
            return 0
        print("lxcfs: the daemon ended before its mount was ready", file=sys.stderr)
        return 1
    os.setsid()
    if os.fork():
        os._exit(0)  # so that the daemon leads no session, and never gets a terminal
    os.close(told)
    os.chdir("/")

    def ready() -> None:
        with suppress(OSError):  # the caller may be gone: the mount is for others
            os.write(tells, b"1")
        os.close(tells)
        # Not before: until then, what goes wrong is said where the caller reads it.
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os.close(null)

    return serve(ready)


@contextmanager
def _held(pidfile: Path) -> Iterator[None]:
    """Holds the pidfile, with this process's id in it, while the block runs. PidfileError when that cannot be."""
    try:
        file = _locked(pidfile)
        file.truncate(0)
        os.write(file.fileno(), b"%d\n" % os.getpid())
    except OSError as error:
        raise PidfileError(f"the pidfile {pidfile} cannot be written: {error.strerror}") from None
    with file:
        try:
            yield
        finally:
            pidfile.unlink(missing_ok=True)


def _locked(pidfile: Path) -> TextIO:
    """The pidfile, open and locked. The lock tells that its process lives: the id alone may be another's by now."""
    while True:
        file = open(pidfile, "a+", opener=regular_file.opener)  # noqa: SIM115 - whoever holds it closes it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read(20).strip()
            raise PidfileError(f"process {holder} runs already and holds the pidfile {pidfile}") from None
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # its holder has removed it since it was opened
