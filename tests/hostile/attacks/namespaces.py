"""Thousands of pid namespaces, each with a process that reads once and then lives on: a container for each."""

import ctypes
import os
import time

from rounds import FILES, attempt, read, said, tally

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWPID, CLONE_NEWUSER = 0x20000000, 0x10000000
MOST = 5000


def one() -> None:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        if libc.unshare(CLONE_NEWPID) and libc.unshare(CLONE_NEWPID | CLONE_NEWUSER):
            os.write(theirs, ctypes.get_errno().to_bytes(1, "big"))
            os._exit(1)
        if os.fork() == 0:
            for path in FILES:
                read(path)
            os.write(theirs, b"\0")
            os.execv("/bin/sleep", ["sleep", "infinity"])
        os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    failed = ord(os.read(ours, 1) or b"\5")
    os.close(ours)
    if failed:
        raise OSError(failed, "")


for number in range(MOST):
    attempt("pid namespace", one)
    if number == 100 and not tally["pid namespace: done"]:
        break
    if number == 300:
        said()
if not tally["pid namespace: done"]:
    said()
while True:
    time.sleep(3600)
