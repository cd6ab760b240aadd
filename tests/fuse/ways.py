"""All ways to read a file, run in a container by the tests: `python ways.py SECONDS PATH WORD [PATH WORD …]`.

Each way, of a file that has WORD in every container's own text and in nobody else's, must give that text whole, or an
error of the kernel's. Prints a line for each way and file: its name, "text", or the error's name; and what went wrong.
Needs Python 3.9 and nothing else, so that it runs in any container; programs that are missing are passed over, and so
is the way that the environment's LEAVE_OUT names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Callable

libc = ctypes.CDLL(None, use_errno=True)
LONGEST = 1 << 20
IO_URING_SETUP, IO_URING_ENTER = 425, 426


@contextlib.contextmanager
def opened(path: str, flags: int = 0) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        os.close(fd)


def in_parts(size: int, first: int = 0) -> Callable[[str], bytes]:
    """A way: so many bytes at a time, the first time another number of them."""

    def read(path: str) -> bytes:
        with opened(path) as fd:
            text = os.read(fd, first) if first else b""
            while part := os.read(fd, size):
                text += part
            return text

    return read


def pread(path: str) -> bytes:
    with opened(path) as fd:
        text = os.pread(fd, 4096, 0)
        while part := os.pread(fd, 1000, len(text)):
            text += part
        return text


def readv(path: str) -> bytes:
    text = b""
    with opened(path) as fd:
        while True:
            buffers = [bytearray(10), bytearray(100), bytearray(4096)]
            count = os.readv(fd, buffers)
            text += b"".join(buffers)[:count]
            if not count:
                return text


def rewound(path: str) -> bytes:
    with opened(path) as fd:
        os.read(fd, 100)
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, LONGEST)


def direct(path: str) -> bytes:
    text = b""
    with opened(path, os.O_DIRECT) as fd, mmap.mmap(-1, 1 << 16) as buffer:
        while count := os.readv(fd, [buffer]):
            text += buffer[:count]
    return text


def advised(path: str) -> bytes:
    with opened(path) as fd:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
        libc.readahead(fd, ctypes.c_int64(0), 4096)
        return os.read(fd, LONGEST)


def mapped(flags: int) -> Callable[[str], bytes]:
    """A way: mmap(2), in a process of its own that SIGBUS may end."""

    def read(path: str) -> bytes:
        ours, childs = os.pipe()
        child = os.fork()
        if not child:
            try:
                with opened(path) as fd:
                    os.write(childs, mmap.mmap(fd, 4096, flags, mmap.PROT_READ)[:])
                os._exit(0)
            except OSError as error:
                os._exit(error.errno or 1)
        os.close(childs)
        with os.fdopen(ours, "rb") as result:
            text = result.read().rstrip(b"\0")
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            raise OSError(errno.EFAULT, signal.Signals(os.WTERMSIG(status)).name)
        if os.WEXITSTATUS(status):
            raise OSError(os.WEXITSTATUS(status), "")
        return text

    return read


def into(path: str, copy: Callable[[int, int], int]) -> bytes:
    """What copy(in, out), called until it copies nothing, puts into a file."""
    with opened(path) as fd, tempfile.TemporaryFile() as target:
        while copy(fd, target.fileno()):
            pass
        target.seek(0)
        return target.read()


def sendfile(path: str) -> bytes:
    return into(path, lambda fd, target: os.sendfile(target, fd, None, 4096))


def copy_file_range(path: str) -> bytes:
    return into(path, lambda fd, target: os.copy_file_range(fd, target, 4096))


def splice(path: str) -> bytes:
    text = b""
    ours, theirs = os.pipe()
    try:
        with opened(path) as fd:
            while True:
                count = libc.splice(fd, None, theirs, None, ctypes.c_size_t(4096), 0)
                if count < 0:
                    raise OSError(ctypes.get_errno(), "")
                if not count:
                    return text
                text += os.read(ours, count)
    finally:
        os.close(ours)
        os.close(theirs)


def io_uring(path: str) -> bytes:
    """By requests in a ring, of which the kernel's own threads read one after the other."""
    parameters = bytearray(120)
    ring = _called(IO_URING_SETUP, 1, (ctypes.c_char * 120).from_buffer(parameters))
    try:
        entries = mmap.mmap(ring, 64, offset=0x1000_0000)
        submitted, completed = (mmap.mmap(ring, 4096, offset=offset) for offset in (0, 0x800_0000))
        sq_tail, sq_array = (struct.unpack_from("I", parameters, offset)[0] for offset in (44, 64))
        cqes = struct.unpack_from("I", parameters, 100)[0]
        buffer = ctypes.create_string_buffer(1000)
        text, part, count = b"", b"", 0
        with opened(path) as fd:
            while part or not count:
                entries[:] = struct.pack("=BBHiQQII32x", 22, 0, 0, fd, len(text), ctypes.addressof(buffer), 1000, 0)
                struct.pack_into("I", submitted, sq_array, 0)
                struct.pack_into("I", submitted, sq_tail, count + 1)
                _called(IO_URING_ENTER, ring, 1, 1, 1, None, 0)
                # The ring of completions has twice as many places as that of requests.
                (result,) = struct.unpack_from("=i", completed, cqes + 16 * (count % 2) + 8)
                count += 1
                struct.pack_into("I", completed, struct.unpack_from("I", parameters, 80)[0], count)
                if result < 0:
                    raise OSError(-result, os.strerror(-result))
                part = buffer.raw[:result]
                text += part
        return text
    finally:
        os.close(ring)


def _called(number: int, *arguments: object) -> int:
    """What a system call returns that the C library has no function for."""
    result = libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def by_shutil(path: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        shutil.copyfile(path, f"{directory}/copy")
        with open(f"{directory}/copy", "rb") as file:
            return file.read()


def program(command: str) -> Callable[[str], bytes]:
    """A way: a shell command in which $1 is the file, and $2 one to write to instead of standard output."""

    def read(path: str) -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            copy = f"{directory}/copy"
            done = subprocess.run(["sh", "-c", command, "sh", path, copy], capture_output=True, check=False)
            if done.returncode:
                raise ValueError(f"exit code {done.returncode}: {done.stderr!r}")
            if os.path.exists(copy):
                with open(copy, "rb") as file:
                    return file.read()
            return done.stdout

    return read


WAYS: dict[str, Callable[[str], bytes]] = {
    "read": in_parts(LONGEST),
    "read 1": in_parts(1),
    "read 4096": in_parts(4096),
    "read 4095 + 1": in_parts(1, 4095),
    "read 4097": in_parts(4097),
    "read 511": in_parts(511),
    "pread": pread,
    "readv": readv,
    "rewound": rewound,
    "direct": direct,
    "advised": advised,
    "mmap private": mapped(mmap.MAP_PRIVATE),
    "mmap shared": mapped(mmap.MAP_SHARED),
    "sendfile": sendfile,
    "copy_file_range": copy_file_range,
    "splice": splice,
    "io_uring": io_uring,
    "shutil": by_shutil,
}
MAY_FAIL = ("mmap private", "mmap shared", "sendfile", "copy_file_range", "splice")

COMMANDS = {
    "cat": 'cat "$1"',
    "cp": 'cp "$1" "$2"',
    "cp sparse": 'cp --sparse=always "$1" "$2"',
    "dd": 'dd if="$1" of="$2"',
    "dd direct": 'dd if="$1" of="$2" bs=64k iflag=direct',
    "tail": 'tail -n +1 "$1"',
    "tail -c": 'tail -c 1000000 "$1"',
    "head": 'head -c 1000000 "$1"',
    "tail -n": 'lines=$(grep -c "" "$1"); tail -n "$lines" "$1"',
    "tac": 'tac "$1" | tac',
    "grep": 'grep "" "$1"',
    "sed": 'sed "" "$1"',
    "awk": 'awk 1 "$1"',
    "busybox cat": 'busybox cat "$1"',
    "busybox cp": 'busybox cp "$1" "$2"',
    "busybox dd": 'busybox dd if="$1" of="$2"',
    "busybox tail": 'busybox tail -n +1 "$1"',
    "busybox tac": 'busybox tac "$1" | busybox tac',
    "coreutils cat": 'coreutils cat "$1"',
    "coreutils cp": 'coreutils cp "$1" "$2"',
    "coreutils dd": 'coreutils dd if="$1" of="$2"',
    "coreutils tail": 'coreutils tail -n +1 "$1"',
    "coreutils tac": 'coreutils tac "$1" | coreutils tac',
    "shell": 'IFS=; while read -r line; do printf "%s\\n" "$line"; done <"$1"',
}
COUNTS = {
    "wc": 'wc -c <"$1"',
    "wc file": 'wc -c "$1"',
    "busybox wc": 'busybox wc -c "$1"',
    "coreutils wc": 'coreutils wc -c "$1"',
}


def shape(text: bytes) -> bytes:
    """A text without its figures."""
    return re.sub(rb"[ \t]*\d+(\.\d+)?", b" 0", text)


def fault(way: str, text: bytes, path: str, word: bytes) -> str:
    """What is wrong with a text, if anything is."""
    if word not in text:
        return f"{way} of {path} has not {word!r}, but {text[:60]!r}, {len(text)} bytes"
    if shape(text) != shape(in_parts(LONGEST)(path)):
        return f"{way} of {path} is not whole: {len(text)} bytes"
    return ""


def attempt(way: str, path: str, word: bytes, read: Callable[[str], bytes], may_fail: bool) -> tuple[str, str]:
    """What came of it, and the fault if that is one."""
    try:
        return "text", fault(way, read(path), path, word)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        return name, "" if may_fail else f"{way} of {path}: {name}"
    except ValueError as error:
        return "failed", f"{way} of {path}: {error}"


def count(way: str, path: str) -> str:
    """What is wrong with a count of bytes, if anything is; figures may have changed by some digits."""
    done = subprocess.run(["sh", "-c", COUNTS[way], "sh", path], capture_output=True, check=False)
    length = len(in_parts(LONGEST)(path))
    counted = int((done.stdout.split() or [b"-1"])[0])
    return "" if abs(counted - length) < 200 else f"{way} of {path}: {counted}, it has {length} bytes"


def main(seconds: float, files: list[tuple[str, bytes]]) -> int:
    calls = {name: read for name, read in WAYS.items() if name != os.environ.get("LEAVE_OUT")}
    ways = dict(calls)
    ways.update(
        (name, program(command))
        for name, command in COMMANDS.items()
        if shutil.which(name.split()[0]) or name == "shell"
    )
    results: dict[str, set[str]] = {}
    faults: list[str] = []
    end, rounds = time.monotonic() + seconds, 0
    while not rounds or time.monotonic() < end:
        for path, word in files:
            # Programs take long to start: once is enough.
            for way in ways if not rounds else calls:
                result, wrong = attempt(way, path, word, ways[way], way in MAY_FAIL)
                results.setdefault(f"{way}, {path}", set()).add(result)
                faults += [wrong] if wrong else []
            if not rounds:
                counts = [count(way, path) for way in COUNTS if shutil.which(COUNTS[way].split()[0])]
                faults += [wrong for wrong in counts if wrong]
        rounds += 1
    for way, outcome in results.items():
        print(f"{way}: {' '.join(sorted(outcome))}")
    for wrong in faults[:20]:
        print("FAULT:", wrong)
    print(f"{rounds} rounds, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    arguments = sys.argv[2:]
    sys.exit(main(float(sys.argv[1]), [(path, word.encode()) for path, word in zip(arguments[::2], arguments[1::2])]))
