"""What was measured, as Markdown and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import lxcfs_py
from bench.contenders import FLOOR_OF_LIBFUSE
from bench.flood import Flood
from bench.measure import CPUS, MEMORY, MODES, READERS, Reads
from bench.scale import FEW, MANY, Scale

Figures = Mapping[tuple[str, str], float]
"""Figures by file and server's name."""

MODE_NAMES = {"pinned": "reader and server on one core", "free": "on all cores"}


def machine(lxcfs: str) -> dict[str, str]:
    """Return what one has to know of the machine that the figures come from."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")]
    return {
        "CPU": f"{(models or [platform.machine()])[0]}, {len(os.sched_getaffinity(0))} cores",
        "kernel": platform.release(),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "Python": platform.python_version(),
        "C program": lxcfs,
        "lxcfs-py": lxcfs_py.__version__,
        "container": f"{MEMORY >> 20} MiB of memory, {CPUS} CPUs, two cgroups below the root",
        "load average at the start": " ".join(f"{load:.2f}" for load in os.getloadavg()),
    }


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with its heading."""
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
    return "\n".join([f"### {title}", "", *lines, ""])


def compared(title: str, figures: Figures, notes: Optional[Mapping[tuple[str, str], str]] = None) -> str:
    """Return a table of files by servers, with lxcfs-py's ratios to the C program and to two floors.

    One is of its own engine, and the other of libfuse in C.

    `notes` is put behind the figures.
    """
    files = list(dict.fromkeys(file for file, _ in figures))
    names = list(dict.fromkeys(name for _, name in figures))
    pairs = [
        (name, other)
        for name in names
        for other in names
        if name.startswith("lxcfs-py")
        and (other.startswith("lxcfs ") or other in (name.replace("lxcfs-py", "floor"), FLOOR_OF_LIBFUSE))
    ]
    rows = []
    for file in files:
        cells = [f"{figures[file, name]:,.0f}{notes[file, name] if notes else ''}" for name in names]
        ratios = [f"{figures[file, name] / figures[file, other]:.2f}" for name, other in pairs]
        rows.append([file, *cells, *ratios])
    return table(title, ["file", *names, *[_ratio(name, other) for name, other in pairs]], rows)


def reads_tables(reads: Reads) -> str:
    """Return the tables of a run of reads."""
    parts = []
    for mode in MODES:
        timings = {(file, name): timing for (m, file, name), timing in reads.timings.items() if m == mode}
        where = MODE_NAMES[mode]
        parts += [
            compared(
                f"Open, read to the end and close, {where}: p50 (p99) in µs",
                {key: timing.percentile(0.5) for key, timing in timings.items()},
                {key: f" ({timing.percentile(0.99):,.0f})" for key, timing in timings.items()},
            ),
            compared(
                f"The server's CPU time per read, {where}, in µs",
                {key: timing.cpu_per_read for key, timing in timings.items() if key[1] in reads.memory},
            ),
        ]
    parts += [
        compared(f"Reads per second, {READERS} readers", {key: run.rate for key, run in reads.throughputs.items()}),
        table(
            "Resident memory after all this, in kB",
            ["server", "VmRSS", "Pss"],
            [[name, f"{memory['VmRSS']:,}", f"{memory['Pss']:,}"] for name, memory in reads.memory.items()],
        ),
    ]
    return "\n".join(parts)


def reads_json(reads: Reads) -> dict[str, Any]:
    """Return the same figures as the tables, for programs."""
    return {
        "timings": [
            {
                "mode": mode,
                "file": file,
                "server": name,
                "reads": len(timing.took),
                "p50_us": timing.percentile(0.5),
                "p99_us": timing.percentile(0.99),
                "cpu_per_read_us": timing.cpu_per_read,
            }
            for (mode, file, name), timing in reads.timings.items()
        ],
        "throughputs": [
            {
                "file": file,
                "server": name,
                "readers": READERS,
                "per_second": run.rate,
                "cpu_per_read_us": run.cpu_per_read,
            }
            for (file, name), run in reads.throughputs.items()
        ],
        "memory_kB": reads.memory,
    }


def scale_tables(scales: Sequence[Scale]) -> str:
    """Return the tables of what many containers cost."""
    costs = [
        [
            scale.server,
            f"{scale.start:.0f}",
            *[f"{scale.memory[number]['VmRSS']:,}" for number in (FEW, MANY)],
            f"{scale.growth:.1f}",
            *[f"{scale.rest[number]:.2f}" for number in (0, FEW, MANY)],
        ]
        for scale in scales
    ]
    times = [[file, *[_pair(scale.p50[file]) for scale in scales]] for file in scales[0].p50]
    return "\n".join(
        [
            table(
                f"Start, memory and CPU at rest, with up to {MANY:,} containers",
                [
                    "server",
                    "start to first answer, ms",
                    *[f"VmRSS with {number:,}, kB" for number in (FEW, MANY)],
                    "each further one, kB",
                    *[f"CPU at rest with {number:,}, ms per s" for number in (0, FEW, MANY)],
                ],
                costs,
            ),
            table(
                f"A container's read on one core, p50 in µs, when the server knows 1 / {MANY:,} containers (ratio)",
                ["file", *[scale.server for scale in scales]],
                times,
            ),
        ]
    )


def _ratio(ours: str, other: str) -> str:
    """Name a ratio: "fusepy / C", "kernel / floor", "kernel / libfuse's floor"."""
    short = "libfuse's floor" if other == FLOOR_OF_LIBFUSE else "floor" if other.startswith("floor") else "C"
    return f"{ours.split(', ')[1]} / {short}"


def _pair(p50: Mapping[int, float]) -> str:
    return f"{p50[1]:.0f} / {p50[MANY]:.0f} ({p50[MANY] / p50[1]:.2f})"


def flood_table(floods: Sequence[Flood]) -> str:
    """Return what a neighbour notices of a container that reads from many processes."""
    rows = [
        [one.server, f"{one.processes:,}", f"{one.cpus}", *[f"{ms:.1f}" for ms in (one.p50, one.p99, one.longest)]]
        for one in floods
    ]
    title = "A container's read of meminfo while another reads stat from many processes, in ms"
    return table(title, ["server", "processes", "of CPUs", "p50", "p99", "longest"], rows)


def takeover_sentence(longest: Sequence[float]) -> str:
    """Return what a reader notices of takeovers, from the longest read in each in ms."""
    return (
        f"The longest read while another server took the mount over, {len(longest)} times: "
        f"median {statistics.median(longest):.1f} ms, worst {max(longest):.1f} ms.\n"
    )
