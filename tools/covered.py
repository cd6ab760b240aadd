"""Say how much of the package the tests have run, of lines and branches, and fail where it is too little."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import coverage

PACKAGE = 90.0
"""The least percentage of the package as a whole."""
MODULE = 75.0
"""The least percentage of each module."""


def main() -> int:
    """Print the modules by what they lack, and the figure; return the exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    measured = coverage.Coverage()
    measured.load()
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "report.json")
        measured.json_report(outfile=str(file))
        report = json.loads(file.read_text())
    modules = {name: module["summary"]["percent_covered"] for name, module in report["files"].items()}
    for name, percent in sorted(modules.items(), key=lambda item: item[1]):
        if percent < PACKAGE:
            print(f"{percent:6.1f} %  {name}")
    total = report["totals"]["percent_covered"]
    print(f"{total:6.1f} %  lines and branches of the package, run by tests that need no virtual machine")
    little = [name for name, percent in modules.items() if percent < MODULE]
    for name in little:
        print(f"make covered: {name}: at least {MODULE:g} % are wanted", file=sys.stderr)
    if total < PACKAGE:
        print(f"make covered: at least {PACKAGE:g} % of the package are wanted", file=sys.stderr)
    return 1 if little or total < PACKAGE else 0


if __name__ == "__main__":
    sys.exit(main())
