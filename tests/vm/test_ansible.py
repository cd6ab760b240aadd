"""The Ansible collection, as an operator runs it: ansible-playbook over ssh, while a container reads all the time.

The tests are a fleet's life in order, each goes on where the one before has left it. The fleet is a machine, and after
it in the inventory a host that nobody answers for: where a rollout must stop before it, it is not even tried.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest

from tests.vm import debian
from tests.vm.machine import Machine, free_port

ANSIBLE = Path(sys.executable).parent
# The package's dependencies, as these machines have no repository to get them from, and what Ansible needs for apt.
PACKAGES = ("python3-apt", "python3-fusepy", "python3-psutil", "python3-sdnotify")
SECOND_RUN_WITHIN = 30  # seconds

# A service is a container of its own to lxcfs-py, with what is bound over its files.
READER = """
systemctl reset-failed reader 2>/dev/null
files=$(lxcfs-py mounts systemd | grep ^Bind | sed 's/^/--property=/')
systemd-run --unit=reader --property=MemoryMax=256M --property=MemorySwapMax=0 $files python3 /root/reader.py
"""
READER_PROGRAM = """
import json, signal, time
seen = {"reads": 0, "failed": [], "longest": 0.0}
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
while not stopping:
    for name, expected in (("meminfo", ["MemTotal:", "262144"]), ("uptime", [])):
        began = time.monotonic()
        try:
            with open(f"/proc/{name}") as file:
                words = file.read().split()
            if words[: len(expected)] != expected:
                seen["failed"].append(words[:3])
        except OSError as error:
            seen["failed"].append(str(error))
        seen["reads"] += 1
        seen["longest"] = max(seen["longest"], time.monotonic() - began)
    time.sleep(0.1)
print(json.dumps(seen))
"""
# A release that is wrong for containers of 64 MiB, and for no others.
BAD_VIEW = """

_right = render


def render(*arguments):
    return _right(*arguments).replace(b" 65536 kB", b" 65535 kB")
"""


@dataclass(frozen=True)
class Run:
    code: int
    output: str
    seconds: float
    busy: float
    """Seconds of CPU that the machine and ansible-playbook took meanwhile."""

    def recap(self, host: str) -> dict[str, int]:
        """{"ok": 12, "changed": 0, ...}; nothing for a host that was not tried."""
        line = re.search(rf"^{host} +: (.*)$", self.output, re.MULTILINE)
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line[1])} if line else {}


@dataclass(frozen=True)
class Fleet:
    """A machine called first, a host called second that is not there, and a control machine's directory."""

    first: Machine
    directory: Path

    def play(self, playbook: str, *options: str, **variables: object) -> Run:
        """Run a playbook of the collection on all hosts; with --limit among the options, on fewer."""
        began, busy = time.monotonic(), self.busy()
        command = [ANSIBLE / "ansible-playbook", "-i", "inventory.json", f"lxcfs_py.fleet.{playbook}"]
        command += ["-e", json.dumps(variables), *options]
        ended = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        print(ended.stdout)
        return Run(ended.returncode, ended.stdout, time.monotonic() - began, self.busy() - busy)

    def busy(self) -> float:
        """Seconds of CPU that the machine, and all that this process has waited for, have taken so far."""
        machine, children = psutil.Process(self.first._qemu.pid).cpu_times(), os.times()
        return machine.user + machine.system + children.children_user + children.children_system

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(self.directory / "collections"),
            "ANSIBLE_HOME": str(self.directory / "home"),
            "ANSIBLE_HOST_KEY_CHECKING": "False",
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory),
            "ANSIBLE_TIMEOUT": "60",
            "LC_ALL": "C.UTF-8",
            "PWD": str(self.directory),  # as a shell has it
        }

    def version(self) -> str:
        query = "dpkg-query --show --showformat='${db:Status-Status} ${Version}' lxcfs-py"
        return self.first.run(query, check=False).stdout

    def config(self) -> str:
        return self.first.run("cat /etc/lxcfs.toml", check=False).stdout


def version_of(deb: Path) -> str:
    return f"installed {deb.name.split('_')[1]}"


def from_file(deb: Path) -> Mapping[str, Any]:
    return {"lxcfs_py_source": "file", "lxcfs_py_package_file": str(deb)}


@pytest.fixture(scope="module")
def fleet(boot: Callable[..., Machine]) -> Iterator[Fleet]:
    # Not pytest's own directory: the path of ssh's control socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="lxcfs-py-fleet-"))
    try:
        machine = boot("bookworm", packages=PACKAGES)
        machine.run("cat > /root/reader.py <<'END'\n" + READER_PROGRAM + "END")
        fleet = Fleet(machine, directory)
        hosts = {"first": {"ansible_port": machine._port}, "second": {"ansible_port": free_port()}}
        variables = {
            "ansible_host": "127.0.0.1",
            "ansible_user": "root",
            "ansible_become": False,
            "ansible_ssh_private_key_file": str(machine.image.key),
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        (directory / "inventory.json").write_text(json.dumps({"lxcfs_py": {"hosts": hosts, "vars": variables}}))
        subprocess.run(
            [ANSIBLE / "ansible-galaxy", "collection", "install", "-p", directory / "collections", "./ansible/"],
            cwd=debian.ROOT,
            env=fleet.environment(),
            check=True,
            timeout=60,
        )
        yield fleet
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def bad(debs: debian.Debs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A still newer package, with a view that is wrong."""
    directory = tmp_path_factory.mktemp("bad")
    subprocess.run(["dpkg-deb", "--raw-extract", debs.new, directory / "root"], check=True, timeout=60)
    control = directory / "root/DEBIAN/control"
    (version,) = re.findall(r"^Version: (.+)$", control.read_text(), re.MULTILINE)
    control.write_text(control.read_text().replace(f"Version: {version}", f"Version: {version}.bad"))
    (view,) = (directory / "root").rglob("views/meminfo.py")
    view.write_text(view.read_text() + BAD_VIEW)
    deb = directory / f"lxcfs-py_{version}.bad_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", directory / "root", deb], check=True, timeout=60)
    return deb


def test_check_mode_on_a_fresh_host_says_what_would_come_and_brings_nothing(fleet, debs):
    run = fleet.play("rollout", "--check", "--diff", "--limit", "first", **from_file(debs.old))
    assert run.code == 0
    assert run.recap("first")["changed"] > 0
    assert "+# The Ansible role lxcfs_py writes this file" in run.output
    assert fleet.version() == ""
    assert fleet.first.run("ls -d /etc/lxcfs.toml /var/cache/lxcfs-py", check=False).stdout == ""


def test_a_fresh_rollout_installs_configures_and_serves(fleet, debs):
    run = fleet.play("rollout", "--limit", "first", **from_file(debs.old))
    assert run.code == 0
    assert fleet.version() == version_of(debs.old)
    assert fleet.first.run("systemctl is-active lxcfs-py; systemctl is-enabled lxcfs-py").stdout == "active\nenabled\n"
    assert fleet.first.run("lxcfs-py check /dev/null").stdout == fleet.first.run("lxcfs-py check").stdout
    fleet.first.run(READER)


def test_a_second_run_changes_nothing_and_is_quick(fleet, debs):
    run = fleet.play("rollout", "--limit", "first", **from_file(debs.old))
    assert run.code == 0
    assert run.recap("first")["changed"] == 0
    print(run.seconds, run.busy)
    # Not the time it took, which says as much about what else is running here.
    assert run.busy < SECOND_RUN_WITHIN


def test_check_mode_shows_a_changed_configuration_and_leaves_it(fleet, debs):
    before = fleet.config()
    config = {"memory": {"swap": False}}
    run = fleet.play("rollout", "--check", "--diff", "--limit", "first", **from_file(debs.old), lxcfs_py_config=config)
    assert run.code == 0
    assert run.recap("first")["changed"] > 0
    assert "+swap = false\n" in run.output
    assert fleet.config() == before


def test_a_changed_configuration_is_reloaded_by_the_same_process(fleet, debs):
    process, mount = debian.main_pid(fleet.first), debian.mount(fleet.first)
    config = {"memory": {"swap": False}, "loadavg": {"interval": 10}, "log": {"level": "debug"}}
    run = fleet.play("rollout", "--limit", "first", **from_file(debs.old), lxcfs_py_config=config)
    assert run.code == 0
    assert "swap = false\n" in fleet.config()
    assert "SwapTotal:             0 kB" in fleet.first.run("lxcfs-py try --memory 64M -- cat /proc/meminfo").stdout
    assert (debian.main_pid(fleet.first), debian.mount(fleet.first)) == (process, mount)


def test_a_bad_value_stops_at_the_first_host_before_anything_has_changed(fleet, debs):
    before = fleet.config()
    config = {"cpu": {"mode": "quotas"}}
    run = fleet.play("rollout", **from_file(debs.old), lxcfs_py_config=config)
    assert run.code == 2
    assert 'cpu.mode is \\"quotas\\"; allowed: \\"quota\\", \\"cpuset\\"' in run.output
    assert "Nothing was changed." in run.output
    assert run.recap("first")["changed"] == 0
    assert run.recap("second") == {}
    assert fleet.config() == before
    assert fleet.version() == version_of(debs.old)


def test_a_moved_mountpoint_is_refused_while_containers_use_it(fleet, debs):
    run = fleet.play("rollout", **from_file(debs.old), lxcfs_py_config={"mountpoint": "/run/views"})
    assert run.code == 2
    reader = fleet.first.run("systemctl show --value --property=MainPID reader").stdout.strip()
    assert f"those of the processes {reader}" in run.output
    assert run.recap("second") == {}


def test_an_upgrade_changes_the_version_and_leaves_the_mount(fleet, debs):
    mount = debian.mount(fleet.first)
    run = fleet.play("rollout", "--limit", "first", **from_file(debs.new))
    assert run.code == 0
    assert fleet.version() == version_of(debs.new)
    assert debian.mount(fleet.first) == mount


def test_a_host_that_fails_its_verification_is_rolled_back_and_ends_the_rollout(fleet, debs, bad):
    before = fleet.config()
    run = fleet.play("rollout", **from_file(bad), lxcfs_py_config={"cpu": {"mode": "cpuset"}})
    assert run.code == 2
    assert "A sandbox of 64 MiB should read MemTotal: 65536 kB, and reads MemTotal:          65535 kB" in run.output
    assert f"The host was rolled back to {version_of(debs.new).split()[1]}." in run.output
    assert run.recap("second") == {}
    assert fleet.version() == version_of(debs.new)
    assert fleet.config() == before


def test_a_downgrade_goes_back(fleet, debs):
    mount = debian.mount(fleet.first)
    run = fleet.play("rollout", "--limit", "first", **from_file(debs.old))
    assert run.code == 0
    assert fleet.version() == version_of(debs.old)
    assert debian.mount(fleet.first) == mount


def test_the_report_has_every_host_as_text_and_as_json(fleet, debs):
    run = fleet.play("report", **from_file(debs.new))
    assert run.code == 0
    reports = fleet.directory / "lxcfs-py-report"
    first, second = json.loads((reports / "report.json").read_text())
    assert first["version"] == version_of(debs.old).split()[1]
    assert int(first["mounted_seconds"]) > 0
    assert (first["containers_served"], first["containers_unserved"]) == (1, 0)
    assert first["drift"] == ["version"]
    assert second == {"host": "second", "error": "unreachable"}
    lines = (reports / "report.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["HOST", "first", "second"]
    assert all(line in run.output for line in lines)


def test_removal_is_refused_while_a_container_reads_none_of_whose_reads_has_failed(fleet):
    run = fleet.play("remove")
    assert run.code == 2
    assert "Removal takes the views from containers that run" in run.output
    assert run.recap("second") == {}
    assert fleet.version().startswith("installed ")

    fleet.first.run("systemctl stop reader")
    seen = json.loads(fleet.first.run("journalctl --unit=reader --output=cat | grep '^{' | tail -n1").stdout)
    print(seen)
    assert seen["failed"] == [], seen
    assert seen["reads"] > 1000


def test_removal_leaves_nothing(fleet):
    run = fleet.play("remove", "--limit", "first")
    assert run.code == 0
    assert fleet.version() in ("", "not-installed ")
    assert debian.mount(fleet.first) == ""
    assert fleet.first.run("find /etc /usr /run /var/lib /var/cache -xdev -iname '*lxcfs*'").stdout == ""
    assert fleet.play("remove", "--limit", "first").recap("first")["changed"] == 0
