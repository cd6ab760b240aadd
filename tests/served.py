"""The server of a unit, killed at a system call once all is imported: `-m tests.served FILE ARGUMENT...`

Where the file exists, it is killed at the call whose number is in it (tests/fuse/killed_at.py). It says first that it
was started, and as which process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lxcfs_py.__main__ import main
from tests import forked
from tests.fuse import killed_at

if __name__ == "__main__":
    print(f"started {os.getpid()}", file=sys.stderr, flush=True)
    at_call = Path(sys.argv.pop(1))
    forked.import_all()
    killed_at.be_killed_as(at_call)
    sys.exit(main())
