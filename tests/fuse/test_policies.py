"""Policies of lxcfs.toml, in containers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.conftest import ROOT
from tests.kept import wait_for

POLICY = """
[[policy]]
cgroup = "{cgroup}"
cpu.mode = "requests"
memory.swap = false
loadavg.enabled = false
files.enabled = ["proc/cpuinfo", "proc/loadavg", "proc/stat", "sys/devices/system/cpu"]
"""


OF_ONE = """
[[policy]]
cgroup = "{cgroup}"
files.enabled = ["proc/uptime"]
"""


def count(text: str, start: str) -> int:
    return sum(line.startswith(start) for line in text.splitlines())


def test_a_policy_holds_for_its_containers_from_the_reload_on_and_explain_names_it(start_daemon, sandbox) -> None:
    daemon = start_daemon("kernel")
    boxes = [sandbox(memory=256 << 20, views=daemon.mountpoint) for _ in range(2)]
    for box in boxes:
        v1 = box.cgroup("cpu") / "cpu.shares"
        (v1 if v1.exists() else v1.with_name("cpu.weight")).write_text("2")
    path = f"/{boxes[0].cgroup('memory').name}"
    before = daemon.config.read_text()
    daemon.config.write_text(before + POLICY.format(cgroup=path))
    daemon.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "the configuration was reloaded" in daemon.log.read_text())
    seen = [box.run(["cat", "/proc/cpuinfo", "/proc/meminfo"]).stdout for box in boxes]
    assert [count(text, "processor") for text in seen] == [1, os.cpu_count()]
    assert [count(text, "MemTotal:         262144 kB") for text in seen] == [0, 1], "the first one's is the machine's"
    assert boxes[0].run(["ls", "/sys/devices/system/cpu"]).stdout.count("cpu1") == 0
    command = [sys.executable, "-m", "lxcfs_py", "explain", "cpuinfo", "--pid", str(boxes[0].init)]
    told = subprocess.check_output([*command, "--config", daemon.config], cwd=ROOT, text=True, timeout=60)
    assert f"a policy for cgroup {path} overrides cpu.mode, memory.swap, loadavg.enabled, files.enabled" in " ".join(
        told.split()
    )
    assert " shares of CPU time, of which 1024 are a CPU" in " ".join(told.split())


def test_a_file_that_only_a_policy_enables_is_for_its_containers_that_mount_it_by_themselves(
    start_daemon, sandbox
) -> None:
    box = sandbox()
    policy = OF_ONE.format(cgroup=f"/{box.cgroup('memory').name}")
    daemon = start_daemon(config='files.enabled = ["proc/meminfo"]' + policy)
    assert [path.name for path in (daemon.mountpoint / "proc").iterdir()] == ["meminfo"]
    daemon.config.write_text(f'mountpoint = "{daemon.mountpoint}"\n{daemon.config.read_text()}')
    attach = [sys.executable, "-m", "lxcfs_py", "attach", "--pid", str(box.init), "--config", daemon.config]
    subprocess.run(attach, cwd=ROOT, check=True, timeout=60)
    machines = float(box.run(["cat", "/proc/uptime"]).stdout.split()[0])
    subprocess.run([*attach, "--file", "uptime"], cwd=ROOT, check=True, timeout=60)
    assert float(box.run(["cat", "/proc/uptime"]).stdout.split()[0]) < machines
