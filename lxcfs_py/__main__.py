"""The program lxcfs-py: its commands, and a last resort where these could not serve a mount that is in use."""

import os
import sys


def main() -> int:
    """Run a command; return its exit code."""
    if "LISTEN_PID" in os.environ:  # something is kept for this process
        from lxcfs_py.daemon import last_resort

        if last_resort.is_due():
            return last_resort.serve()
    from lxcfs_py.cli import main as command  # not before: the package may be broken

    return command()


if __name__ == "__main__":
    sys.exit(main())
