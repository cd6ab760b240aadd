"""`python -m tests.serviced [NAME[=NUMBER]...]`: the service's server, killed at each system call under a real systemd.

The systemd is PID 1 of namespaces of its own (tests/booted) and has the package's unit, whose server is this tree's.
As in tests/soak.py the number says every how many-th call is tried, and `=4+2` begins with the second; eight readers of
all files in a small container see no error and no text that is not whole.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Callable

from lxcfs_py.runtimes.sandbox import Sandbox
from tests import wanted
from tests.conftest import ROOT
from tests.fuse import killed_at
from tests.kept import reading, wait_for

UNIT = "lxcfs-py.service"
STARTED = "started "  # tests/served.py
SERVING = "INFO: serving"
IMPORTS = 3100  # about so many of a start's system calls are made by Python, before the package's own code runs

BARE = "[Unit]\nDefaultDependencies=no\n"
TARGETS = ("sysinit.target", "basic.target", "shutdown.target")

DROP_IN = """
[Service]
WorkingDirectory={root}
ExecStart=
ExecStart={python} {killed_at} {directory}/at-import {python} -m tests.served {directory}/at-call \
    run --config {directory}/lxcfs.toml
ExecStopPost=
ExecStopPost={python} -m lxcfs_py unmount --config {directory}/lxcfs.toml --unless-restarting lxcfs-py.service
StandardError=append:{directory}/log
# The tracer's.
SystemCallFilter=
"""

TRIALS = """
[Unit]
DefaultDependencies=no
Wants=lxcfs-py.service
After=lxcfs-py.service
SuccessAction=exit-force
FailureAction=exit-force

[Service]
Type=oneshot
TimeoutStartSec=infinity
WorkingDirectory={root}
ExecStart={python} -m tests.serviced --trials {directory} {arguments}
StandardOutput=append:{directory}/output
StandardError=append:{directory}/output
"""


class Service:
    """The unit, in the systemd that this process was started by."""

    def __init__(self, directory: Path) -> None:
        self.mountpoint = directory / "mount"
        self.at_import = directory / "at-import"
        self.at_call = directory / "at-call"
        self._log = directory / "log"
        wait_for(lambda: self.serves(-1))

    def starts(self) -> list[str]:
        """What each server has said, from its process id on."""
        return self._log.read_text().split(STARTED)[1:]

    def serves(self, start: int) -> bool:
        """Tell whether the server of that start has come to serve."""
        starts = self.starts()
        return start < len(starts) and SERVING in starts[start]

    def server(self) -> int:
        return int(self.starts()[-1].split()[0])

    def start_killed_at(self, number: int) -> bool:
        """Have a start killed at a call, and wait for the next one; tell whether it has come to serve before."""
        killed = len(self.starts())
        self.at_call.write_text(str(number))
        os.kill(self.server(), 9)
        wait_for(lambda: self.serves(killed + 1))
        return self.serves(killed)

    def import_killed_at(self, number: int) -> None:
        """Have Python's start killed at a call, before or after it says that it was started; wait for the next one."""
        killed = len(self.starts())
        self.at_import.write_text(str(number))
        os.kill(self.server(), 9)
        wait_for(lambda: any(SERVING in said for said in self.starts()[killed:]))

    def stop_killed_at(self, number: int) -> bool:
        """Have the stop of a restart killed at a call, and wait for the start; tell whether it has stopped before."""
        stopped = len(self.starts())
        restart = ["systemctl", "restart", "--no-block", UNIT]
        trace = [sys.executable, killed_at.__file__, "--stop", str(self.server()), str(number), *restart]
        made = int(subprocess.run(trace, check=True, capture_output=True, timeout=60).stdout)
        wait_for(lambda: self.serves(stopped))
        return made < number


def calls_of_import(service: Service, step: int = 40, first: int = 1) -> int:
    """kill -9 at the system calls of Python's own start and imports"""
    numbers = range(first, IMPORTS, step)
    for number in numbers:
        service.import_killed_at(number)
    return len(numbers)


def calls_of_start(service: Service, step: int = 1, first: int = 1) -> int:
    """kill -9 at each system call of a start"""
    for trials, number in enumerate(count(first, step), 1):
        if service.start_killed_at(number):
            return trials
    raise AssertionError


def calls_of_stop(service: Service, step: int = 1, first: int = 1) -> int:
    """kill -9 at each system call of the stop of a restart"""
    for trials, number in enumerate(count(first, step), 1):
        if service.stop_killed_at(number):
            return trials
    raise AssertionError


SCENARIOS: dict[str, Callable[..., int]] = {
    scenario.__name__: scenario for scenario in (calls_of_import, calls_of_start, calls_of_stop)
}


def run_trials(directory: Path, arguments: list[str]) -> None:
    """Print the table: under the systemd that is to be tried."""
    service = Service(directory)
    version = subprocess.run(["systemctl", "--version"], check=True, capture_output=True, text=True).stdout.split()[1]
    print(f"Linux {platform.release()}, systemd {version}, Python {platform.python_version()}, {os.cpu_count()} CPUs\n")
    print("| what | times | reads | failed or odd | longest wait |\n| --- | --- | --- | --- | --- |", flush=True)
    for name, numbers in wanted.scenarios(__doc__, SCENARIOS, arguments):
        scenario = SCENARIOS[name]
        with Sandbox(memory=256 << 20, cpus=0.25, views=service.mountpoint) as box, reading(box) as readers:
            times = scenario(service, *numbers)
        print(f"| {scenario.__doc__} | {times} | {readers.reads} | 0 | {readers.longest:.2f} s |", flush=True)


def boot(arguments: list[str]) -> int:
    """Run the trials under a systemd of their own; return its exit status, which is theirs."""
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-serviced-") as name:
        directory = Path(name)
        units = directory / "units"
        (directory / "mount").mkdir()
        (directory / "lxcfs.toml").write_text(f'mountpoint = "{directory}/mount"\n[fuse]\nengine = "kernel"\n')
        values = {"root": ROOT, "python": sys.executable, "directory": directory, "arguments": " ".join(arguments)}
        values["killed_at"] = ROOT / "tests/fuse/killed_at.py"
        (units / f"{UNIT}.d").mkdir(parents=True)
        (units / f"{UNIT}.d/trials.conf").write_text(DROP_IN.format(**values))
        (units / UNIT).symlink_to(ROOT / "packaging/systemd" / UNIT)
        (units / "trials.service").write_text(TRIALS.format(**values))
        for target in TARGETS:
            (units / target).write_text(BARE)
        status = subprocess.run([ROOT / "tests/booted", units, "trials.service"], check=False).returncode
        for file in filter(Path.exists, (directory / said for said in (["log"] if status else []) + ["output"])):
            print(file.read_text(), end="")
    return status


def main() -> int:
    """See above. With --trials it is what the unit beside the service runs."""
    if sys.argv[1:2] == ["--trials"]:
        run_trials(Path(sys.argv[2]), sys.argv[3:])
        return 0
    wanted.scenarios(__doc__, SCENARIOS)
    return boot(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
