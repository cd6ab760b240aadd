"""`python -m tests.fuzz [SECONDS [TARGET...]]`: feed all that takes bytes from outside, for an hour.

What came to new lines is added to the corpus, and so is what failed.
"""

from __future__ import annotations

import sys
import time

from tests.fuzz.fuzz import all_of
from tests.fuzz.targets import TARGETS

HOUR = 3600.0

if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else HOUR
    sys.exit(0 if all_of(seconds, sys.argv[2:] or list(TARGETS), time.time_ns()) else 1)
