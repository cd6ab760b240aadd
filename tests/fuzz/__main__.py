"""`python -m tests.fuzz [SECONDS [TARGET...]]`: feed all that takes bytes from outside, for an hour.

What came to new lines is added to the corpus, and so is what failed.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.fuzz.fuzz import all_of
from tests.fuzz.targets import TARGETS

HOUR = 3600.0

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=HOUR, help="(%(default)s)")
    parser.add_argument(
        "target", nargs="*", metavar="TARGET", choices=[[], *TARGETS], default=[], help=", ".join(TARGETS)
    )
    options = parser.parse_args()
    sys.exit(0 if all_of(options.seconds, options.target or list(TARGETS), time.time_ns()) else 1)
