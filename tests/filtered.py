"""Run a command whose sysinfo(2) and sched_getaffinity(2) are handed to an agent, as a container runtime arranges it.

python filtered.py SOCKET COMMAND...
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lxcfs_py.linux import seccomp, syscalls

PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    path, *command = sys.argv[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)  # for containers that have few capabilities
        seccomp.hand_over(connection)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
