"""What the kernel's texts of one process say: /proc/PID/stat and /proc/PID/status."""

from __future__ import annotations


def stat_fields(stat: bytes) -> list[bytes]:
    """Split /proc/PID/stat behind the process's name, which may hold anything: state, parent, …"""
    return stat.rpartition(b") ")[2].split()


def start_ticks(stat: bytes) -> int:
    """Return when a process was started, in ticks since boot, from /proc/PID/stat."""
    return int(stat_fields(stat)[19])


def pids_within(status: bytes) -> list[int]:
    """Return a process's pid in each pid namespace that it is in, from the outermost, from /proc/PID/status."""
    return [int(word) for word in status.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()]
