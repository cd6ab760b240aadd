"""All by which one changes a file, its name or its attributes; and what FUSE has commands for."""

import fcntl
import os
import time

from rounds import CPUS, FILES, PRESSURE, attempt, for_ever


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def ioctl(path: str, request: int) -> None:
    with open(path) as file:
        fcntl.ioctl(file, request, bytes(64))


def allocate(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, 1 << 20)
    finally:
        os.close(fd)


def copied(path: str) -> None:
    with open(path) as source, open("/tmp/copy", "w") as target:
        os.copy_file_range(source.fileno(), target.fileno(), 4096)


def work() -> None:
    for path in (*FILES, *PRESSURE, f"{CPUS}/online", CPUS):
        for name, change in (
            ("chmod", lambda path=path: os.chmod(path, 0)),
            ("chown", lambda path=path: os.chown(path, 0, 0)),
            ("utime", lambda path=path: os.utime(path, (time.time(), 0))),
            ("setxattr", lambda path=path: os.setxattr(path, "user.name", b"value")),
            ("set a security attribute", lambda path=path: os.setxattr(path, "security.name", b"value")),
            ("removexattr", lambda path=path: os.removexattr(path, "user.name")),
            ("truncate", lambda path=path: os.truncate(path, 0)),
            ("open to truncate", lambda path=path: opened(path, os.O_RDONLY | os.O_TRUNC)),
            ("open exclusively", lambda path=path: opened(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL)),
            ("open directly", lambda path=path: opened(path, os.O_RDONLY | os.O_DIRECT)),
            ("allocate", lambda path=path: allocate(path)),
            ("FS_IOC_SETFLAGS", lambda path=path: ioctl(path, 0x40086602)),
            ("FITRIM", lambda path=path: ioctl(path, 0xC0185879)),
            ("copy_file_range", lambda path=path: copied(path)),
            ("unlink", lambda path=path: os.unlink(path)),
            ("rename", lambda path=path: os.rename(path, f"{path}.old")),
            ("rename a file of one's own over it", lambda path=path: os.rename("/tmp/copy", path)),
            ("hard link", lambda path=path: os.link(path, f"{path}.new")),
        ):
            attempt(name, change)
    for name, make in (
        ("mkdir", lambda: os.mkdir(f"{CPUS}/made")),
        ("mknod", lambda: os.mknod(f"{CPUS}/made")),
        ("symlink", lambda: os.symlink("/", f"{CPUS}/made")),
        ("create", lambda: opened(f"{CPUS}/made", os.O_CREAT | os.O_WRONLY)),
    ):
        attempt(name, make)


for_ever(work)
