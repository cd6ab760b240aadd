"""The Ansible collection, as an operator runs it: ansible-playbook over ssh, while containers read all the time.

The fleet is a Debian 12 and, after it in the inventory, a Debian 13. The tests are its life in order, each goes on
where the one before has left it. Emulated machines are slow: one run of a playbook proves one thing on one host and
another on the other, where it can.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from tests.vm import debian, machine
from tests.vm.machine import Machine

ANSIBLE = Path(sys.executable).parent
FIRST, SECOND = "bookworm", "trixie"

# Not one host after the other, where it makes no difference to what is tested.
AT_ONCE = {"lxcfs_py_serial": ["100%"]}

# A container reads in a twentieth of a CPU, so that the rest is for what is tested.
READS = "--cpus 0.05"

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

    def recap(self, host: str) -> dict[str, int]:
        """{"ok": 12, "changed": 0, ...}; nothing for a host that was not tried."""
        line = re.search(rf"^{host} +: (.*)$", self.output, re.MULTILINE)
        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line[1])} if line else {}

    def changed(self) -> dict[str, int]:
        return {host: self.recap(host)["changed"] for host in (FIRST, SECOND)}


@dataclass(frozen=True)
class Fleet:
    """The machines by their name in the inventory, and the control machine's directory."""

    machines: dict[str, Machine]
    directory: Path

    def play(self, playbook: str, *options: str, **variables: object) -> Run:
        """Run a playbook of the collection."""
        began = time.monotonic()
        command = [str(ANSIBLE / "ansible-playbook"), "-i", "inventory.json", f"lxcfs_py.fleet.{playbook}"]
        command += ["-e", json.dumps(variables), *options]
        ended = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1800,
        )
        seconds = time.monotonic() - began
        print(ended.stdout, f"{playbook}: {seconds:.1f} s\n", sep="\n")
        return Run(ended.returncode, ended.stdout, seconds)

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

    def each(self, function: Callable[[Machine], Any]) -> dict[str, Any]:
        """Call function(machine) for both at once; the results by host."""
        with ThreadPoolExecutor() as pool:
            return debian.concurrently(pool, function, self.machines)

    def say(self, command: str) -> dict[str, str]:
        """What a command prints, by host; it may fail."""
        return self.each(lambda machine: machine.run(command, check=False).stdout)

    def versions(self) -> dict[str, str]:
        return self.say("dpkg-query --show --showformat='${db:Status-Status} ${Version}' lxcfs-py")

    def configs(self) -> dict[str, str]:
        return self.say("cat /etc/lxcfs.toml")


def both(value: Any) -> dict[str, Any]:
    return {FIRST: value, SECOND: value}


def version(deb: Path) -> str:
    return deb.name.split("_")[1]


def installed(first: Path, second: Path) -> dict[str, str]:
    """What Fleet.versions() is with these packages."""
    return {FIRST: f"installed {version(first)}", SECOND: f"installed {version(second)}"}


def by_host(variable: str, first: Any, second: Any) -> dict[str, Any]:
    """A variable that is not the same for both."""
    values = f"{variable}_by_host"
    return {values: {FIRST: first, SECOND: second}, variable: f"{{{{ {values}[inventory_hostname] }}}}"}


def from_files(debs: debian.Debs) -> dict[str, Any]:
    """The older package for the first host, the newer for the second."""
    return {"lxcfs_py_source": "file", **by_host("lxcfs_py_package_file", str(debs.old), str(debs.new))}


@pytest.fixture(scope="module")
def fleet(require: Callable[[object, str], None]) -> Iterator[Fleet]:
    require(not machine.missing(), ", ".join(machine.missing()))
    # Not pytest's own directory: the path of ssh's control socket must be short.
    directory = Path(tempfile.mkdtemp(prefix="lxcfs-py-fleet-"))
    try:
        # A machine ends with the thread that started it: these threads last as long as the machines are wanted.
        with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
            boot = functools.partial(debian.boot, stack)
            machines = debian.concurrently(pool, boot, {suite: suite for suite in (FIRST, SECOND)})
            hosts = {
                name: {"ansible_port": host.port, "ansible_ssh_private_key_file": str(host.image.key)}
                for name, host in machines.items()
            }
            variables = {
                "ansible_host": "127.0.0.1",
                "ansible_user": "root",
                "ansible_become": False,
                "ansible_python_interpreter": "/usr/bin/python3",
            }
            (directory / "inventory.json").write_text(json.dumps({"lxcfs_py": {"hosts": hosts, "vars": variables}}))
            fleet = Fleet(machines, directory)
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
    newer = f"{version(debs.new)}.bad"
    control.write_text(re.sub("(?m)^Version: .+$", f"Version: {newer}", control.read_text()))
    (view,) = (directory / "root").rglob("views/meminfo.py")
    view.write_text(view.read_text() + BAD_VIEW)
    deb = directory / f"lxcfs-py_{newer}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", directory / "root", deb], check=True, timeout=60)
    return deb


@pytest.fixture(scope="module")
def repository(require: Callable[[object, str], None], debs: debian.Debs, bad: Path) -> Iterator[dict[str, str]]:
    """What `make repo` makes, with all three packages, on a web server: the variables that name it."""
    for command, package in {"gpg": "gpg", "apt-ftparchive": "apt-utils", "createrepo_c": "createrepo-c"}.items():
        require(shutil.which(command), f"{command} (package {package})")
    # Not pytest's own directory: the path of the key agent's socket must be short.
    with tempfile.TemporaryDirectory(prefix="lxcfs-py-repo-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        dist, keys = directory / "dist", directory / "keys"
        dist.mkdir()
        keys.mkdir(mode=0o700)
        run = functools.partial(subprocess.run, check=True, timeout=300, stdin=subprocess.DEVNULL)
        environment = {**os.environ, "GNUPGHOME": str(keys), "PYTHON": sys.executable}
        stack.callback(run, ["gpgconf", "--kill", "all"], env=environment)
        key = "Tests <tests@tests.invalid>"
        generate = ["gpg", "--batch", "--passphrase", "", "--quick-generate-key", key, "rsa3072", "sign", "never"]
        run(generate, env=environment)
        for deb in (debs.old, debs.new, bad):
            shutil.copy(deb, dist)
        run([debian.ROOT / "packaging/rpm/build", dist], env=environment)
        run([debian.ROOT / "packaging/repo/build", dist, key], env=environment)

        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(dist / "repo"))
        server = stack.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        stack.callback(server.shutdown)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "lxcfs_py_source": "repository",
            "lxcfs_py_repository_url": f"http://10.0.2.2:{server.server_port}/",
            "lxcfs_py_repository_key": str(dist / "repo/deb/lxcfs-py.asc"),
        }


def test_check_mode_on_a_fresh_host_says_what_would_come_and_brings_nothing(fleet, debs):
    run = fleet.play("rollout", "--check", "--diff", "--limit", SECOND, **from_files(debs))
    assert run.code == 0
    assert run.recap(SECOND)["changed"] > 0
    assert f"lxcfs-py (none) is to become {version(debs.new)}." in run.output
    assert "+# The Ansible role lxcfs_py writes this file" in run.output
    assert fleet.versions() == both("")
    assert fleet.say("ls -d /etc/lxcfs.toml /var/cache/lxcfs-py") == both("")


def test_a_fresh_rollout_installs_configures_and_serves(fleet, debs):
    run = fleet.play("rollout", **from_files(debs), **AT_ONCE)
    assert run.code == 0
    assert fleet.versions() == installed(debs.old, debs.new)
    assert fleet.say("systemctl is-active lxcfs-py; systemctl is-enabled lxcfs-py") == both("active\nenabled\n")
    assert fleet.say("lxcfs-py check") == fleet.say("lxcfs-py check /dev/null") != both("")
    fleet.each(lambda machine: debian.start_container(machine, debian.READER, READS))


def test_a_second_run_changes_nothing(fleet, debs):
    run = fleet.play("rollout", **from_files(debs))
    assert run.code == 0
    assert run.changed() == both(0)


def test_check_mode_shows_a_configuration_that_is_to_change_and_leaves_it(fleet, debs):
    before = fleet.configs()
    config = by_host("lxcfs_py_config", {}, {"memory": {"swap": False}})
    run = fleet.play("rollout", "--check", "--diff", **from_files(debs), **AT_ONCE, **config)
    assert run.code == 0
    assert run.changed() == {FIRST: 0, SECOND: 2}  # the file, and the reload
    assert "+swap = false\n" in run.output
    assert fleet.configs() == before


def test_a_changed_configuration_is_reloaded_by_the_same_process(fleet, debs):
    before = fleet.each(debian.main_pid), fleet.each(debian.mount)
    config = {"memory": {"swap": False}, "loadavg": {"interval": 10}, "log": {"level": "debug"}}
    run = fleet.play("rollout", **from_files(debs), **AT_ONCE, lxcfs_py_config=config)
    assert run.code == 0
    swap = fleet.say("lxcfs-py try --memory 64M -- grep SwapTotal /proc/meminfo")
    assert swap == both("SwapTotal:             0 kB\n")
    assert (fleet.each(debian.main_pid), fleet.each(debian.mount)) == before


def test_a_bad_value_stops_at_the_first_host_before_anything_has_changed(fleet, debs):
    before = fleet.configs()
    run = fleet.play("rollout", **from_files(debs), lxcfs_py_config={"cpu": {"mode": "quotas"}})
    assert run.code == 2
    assert 'cpu.mode is \\"quotas\\"; allowed: \\"quota\\", \\"cpuset\\"' in run.output
    assert "Nothing was changed." in run.output
    assert run.recap(FIRST)["changed"] == 0
    assert run.recap(SECOND) == {}
    assert fleet.configs() == before


def test_another_mountpoint_is_refused_while_containers_use_this_one(fleet, debs):
    init = fleet.machines[FIRST].run("docker inspect --format '{{.State.Pid}}' box").stdout.strip()
    run = fleet.play("rollout", **from_files(debs), lxcfs_py_config={"mountpoint": "/run/views"})
    assert run.code == 2
    assert f"those of the processes {init}, " in run.output
    assert run.recap(FIRST)["changed"] == 0
    assert run.recap(SECOND) == {}


def test_an_upgrade_and_a_downgrade_from_a_signed_repository_leave_the_mount(fleet, debs, repository):
    # These machines cannot reach Debian's, which apt would have to ask as well.
    fleet.say("rm --recursive /etc/apt/sources.list /etc/apt/sources.list.d/*")
    mounts = fleet.each(debian.mount)
    versions = by_host("lxcfs_py_version", version(debs.new), version(debs.old))
    run = fleet.play("rollout", **repository, **AT_ONCE, **versions)
    assert run.code == 0
    assert fleet.versions() == installed(debs.new, debs.old)
    assert fleet.each(debian.mount) == mounts


def test_a_host_that_fails_its_verification_is_rolled_back_and_ends_the_rollout(fleet, debs, bad):
    config, mounts = fleet.configs(), fleet.each(debian.mount)
    # The repository is one that the hosts know by now.
    run = fleet.play("rollout", lxcfs_py_version=version(bad), lxcfs_py_config={"loadavg": {"enabled": False}})
    assert run.code == 2
    assert "A sandbox of 64 MiB should read MemTotal: 65536 kB, and reads MemTotal:          65535 kB" in run.output
    assert f"The host was rolled back to {version(debs.new)}." in run.output
    assert run.recap(SECOND) == {}
    assert fleet.versions() == installed(debs.new, debs.old)
    assert fleet.configs() == config
    assert fleet.each(debian.mount) == mounts


def test_the_report_has_every_host_as_text_and_as_json(fleet, debs):
    run = fleet.play("report", lxcfs_py_version=version(debs.new))
    assert run.code == 0
    reports = fleet.directory / "lxcfs-py-report"
    first, second = json.loads((reports / "report.json").read_text())
    assert (first["host"], first["version"], first["drift"]) == (FIRST, version(debs.new), [])
    assert (second["host"], second["version"], second["drift"]) == (SECOND, version(debs.old), ["version"])
    for row in (first, second):
        assert row["mounted_seconds"] > 0
        assert (row["containers_served"], row["containers_unserved"]) == (1, 0)
    lines = (reports / "report.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["HOST", FIRST, SECOND]
    assert all(line in run.output for line in lines)


def test_removal_is_refused_while_a_container_uses_the_mount(fleet):
    run = fleet.play("remove")
    assert run.code == 2
    assert "Removal takes the views from containers that run" in run.output
    assert run.recap(FIRST)["changed"] == 0
    assert run.recap(SECOND) == {}


def test_another_mountpoint_and_another_engine_are_a_restart(fleet):
    first, second = fleet.machines.values()
    debian.stop_reader(first, reads=1000)
    pids, mount = fleet.each(debian.main_pid), debian.mount(second)
    config = by_host("lxcfs_py_config", {"mountpoint": "/run/views"}, {"fuse": {"engine": "kernel"}})
    run = fleet.play("rollout", **AT_ONCE, **config)
    assert run.code == 0
    assert all(pid != pids[host] for host, pid in fleet.each(debian.main_pid).items())
    assert debian.mount(first) == "" != debian.mount(first, "/run/views")
    assert debian.mount(second) == mount


def test_no_read_has_failed_in_all_that(fleet):
    # The other reader's were counted when it was stopped.
    debian.stop_reader(fleet.machines[SECOND], reads=1000)
    fleet.machines[SECOND].run("docker rm box")


def test_removal_takes_the_views_from_a_container_when_told(fleet):
    second = fleet.machines[SECOND]
    with debian.container(second) as within:
        run = fleet.play("remove", **AT_ONCE, lxcfs_py_break_containers=True)
        assert run.code == 0
        assert "not connected" in second.run(f"{within} cat /proc/meminfo 2>&1", check=False).stdout


def test_removal_leaves_nothing_and_there_is_nothing_to_do_for_another(fleet):
    assert set(fleet.versions().values()) <= {"", "not-installed "}
    assert fleet.say("grep lxcfs /proc/self/mounts; systemctl is-active lxcfs-py") == both("inactive\n")
    # What apt has downloaded is apt's to keep.
    left = "find /etc /usr /run /var/lib /var/cache -xdev -path /var/cache/apt -prune -or -iname '*lxcfs*' -print"
    assert fleet.say(left) == both("")
    assert fleet.play("remove", **AT_ONCE).changed() == both(0)
