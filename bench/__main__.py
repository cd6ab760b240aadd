"""`python -m bench`: the C program lxcfs and lxcfs-py side by side, as root on an otherwise idle machine."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import contenders, devices, flood, measure, report, scale, syscalls, takeover, webhook
from lxcfs_py.runtimes.sandbox import SandboxError

PARTS = ("reads", "scale", "flood", "takeover", "devices", "syscalls", "webhook")
FILES = ("meminfo", "cpuinfo", "stat", "swaps", "diskstats", "uptime", "loadavg")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "part",
        nargs="?",
        choices=PARTS,
        help="time of a read, what 1,000 containers cost, what a reader notices of a flood and of a takeover, "
        "what a list of 200 disks takes, what the agent for system calls costs, what the webhook keeps up with "
        "(default: all)",
    )
    parser.add_argument("--seconds", type=float, default=3, help="how long to read each file of each server (3)")
    parser.add_argument(
        "--engine", choices=(*contenders.ENGINES, "both"), default="both", help="lxcfs-py's engine (both)"
    )
    parser.add_argument("--files", default=",".join(FILES), help="files below /proc, with commas between (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE too")
    options = parser.parse_args()
    options.files = options.files.split(",")
    unknown = [file for file in options.files if file not in FILES]
    if unknown:
        parser.error(f"--files: {', '.join(unknown)}: not among {', '.join(FILES)}")
    return options


def main() -> None:
    """Run the parts, print the tables."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    engines = contenders.ENGINES if options.engine == "both" else (options.engine,)
    c_program = contenders.c_program()
    ours = [contenders.lxcfs_py(engine) for engine in engines]
    results: dict[str, Any] = {"machine": report.machine(c_program.name)}
    print("\n".join(f"- {key}: {value}" for key, value in results["machine"].items()), end="\n\n")
    parts = [options.part] if options.part else PARTS
    if "reads" in parts:
        floors = [contenders.floor(engine) for engine in engines]
        with contenders.floor_of_libfuse() as libfuse:
            all_ = [contenders.KERNEL, c_program, *ours, *floors, libfuse]
            reads = measure.reads(all_, options.files, options.seconds)
        results["reads"] = report.reads_json(reads)
        print(report.reads_tables(reads))
    if "scale" in parts:
        scales = [scale.measure(contender, options.files, options.seconds) for contender in (c_program, *ours)]
        results["scale"] = [dataclasses.asdict(one) for one in scales]
        print(report.scale_tables(scales))
    if "flood" in parts:
        floods = [one for contender in (c_program, *ours) for one in flood.measure(contender, options.seconds)]
        results["flood"] = [dataclasses.asdict(one) for one in floods]
        print(report.flood_table(floods))
    if "takeover" in parts and "kernel" in engines:
        results["takeover_ms"] = takeover.measure()
        print(report.takeover_sentence(results["takeover_ms"]))
    if "devices" in parts and "kernel" in engines:
        results["devices_ms"] = devices.measure()
        print(devices.sentence(*results["devices_ms"]))
    if "syscalls" in parts and "kernel" in engines:
        cost = syscalls.measure(options.seconds)
        results["syscalls_us"] = syscalls.figures(cost)
        print(syscalls.tables(cost))
    if "webhook" in parts:
        results["webhook_ms"] = webhook.measure()
        print(webhook.sentence(results["webhook_ms"]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except (OSError, SandboxError, subprocess.SubprocessError, KeyboardInterrupt) as error:
        sys.exit(f"bench: {error or 'interrupted'}")
