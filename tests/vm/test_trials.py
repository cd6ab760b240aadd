"""What happens to a machine, and to the service with it: eight readers in a container see no error."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Callable

import pytest

from tests.vm import debian
from tests.vm.debian import configure, main_pid, mount, under_load
from tests.vm.machine import Machine

SUITES = ("trixie",)

FIRST_STAGE = "599362d"
"""The commit whose package is version 0.1.0, with which the service has other descriptors and no growing pauses."""

KILL = "kill -KILL $(systemctl show --property MainPID --value lxcfs-py)"

SERVES = "until timeout 10 lxcfs-py status --probe >/dev/null 2>&1; do sleep 0.2; done"

BY_ITS_ALIAS = f"""
systemctl restart lxcfs
systemctl restart lxcfs-py
{KILL}; sleep 1
{SERVES}
"""

READ_ONLY_RUN = f"""
mount -o remount,ro /run
{KILL}; sleep 15
mount -o remount,rw /run
{SERVES}
"""

FULL_DISKS = f"""
for place in / /run; do
    fallocate --length $(df --output=avail --block-size=1 $place | tail --lines 1) $place/full
    dd if=/dev/zero of=$place/rest bs=64k 2>/dev/null
    ! echo more 2>/dev/null >$place/more
done
{KILL}; sleep 1
{SERVES}
systemctl restart lxcfs-py
rm --force /full /rest /more /run/full /run/rest /run/more
"""

NO_PACKAGES = f"""
mv /usr/lib/python3/dist-packages /usr/lib/python3/away
{KILL}; sleep 30
mv /usr/lib/python3/away /usr/lib/python3/dist-packages
{SERVES}
"""

NO_CONFIGURATION = f"""
rm /run/lxcfs-py/*.toml
{KILL}; sleep 1
{SERVES}
"""


def test_no_read_fails_where_the_service_was_started_by_its_alias(machine: Machine) -> None:
    machine.run("systemctl stop lxcfs-py && systemctl daemon-reload && systemctl start lxcfs")
    mounted = mount(machine)
    with under_load(machine, reads=100, readers=8):
        machine.run(BY_ITS_ALIAS, timeout=600)
    assert mount(machine) == mounted


@pytest.mark.parametrize(
    "trial", [NO_PACKAGES, READ_ONLY_RUN, FULL_DISKS], ids=["no-packages-for-30-s", "run-read-only", "disks-full"]
)
def test_no_read_fails(machine: Machine, trial: str) -> None:
    process, mounted = main_pid(machine), mount(machine)
    with under_load(machine, reads=100, readers=8):
        machine.run(trial, timeout=600)
        assert main_pid(machine) not in (process, "0")
    assert mount(machine) == mounted


def test_no_read_fails_without_a_configuration_that_can_be_taken(machine: Machine) -> None:
    mounted = mount(machine)
    with under_load(machine, reads=100, readers=8):
        configure(machine, ('mode = "quota"', "mode = 3"))
        machine.run(NO_CONFIGURATION, timeout=600)
        status = machine.run("systemctl show --property StatusText lxcfs-py").stdout
    assert "serving with the defaults" in status
    assert mount(machine) == mounted


def test_no_read_fails_when_version_0_1_0_is_installed_and_this_one_again(
    machine: Machine, require: Callable[[object, str], None], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--shared", "--no-checkout", debian.ROOT, source], check=True)
    found = subprocess.run(["git", "-C", source, "checkout", "--quiet", FIRST_STAGE], check=False)
    require(not found.returncode, f"the history of this repository, with commit {FIRST_STAGE}")
    subprocess.run([source / "packaging/deb/build", tmp_path], check=True, capture_output=True, timeout=300)
    machine.put(next(tmp_path.glob("*.deb")), "/root/first.deb")
    mounted = mount(machine)
    with under_load(machine, reads=100, readers=8):
        machine.run("apt-get install --quiet --yes --allow-downgrades /root/first.deb", timeout=600)
        assert machine.run("lxcfs-py --version").stdout.split()[-1] == "0.1.0"
        machine.run(f"{KILL}; sleep 1; until systemctl is-active --quiet lxcfs-py; do sleep 0.2; done", timeout=600)
        machine.run("apt-get install --quiet --yes /root/lxcfs-py.deb", timeout=600)
        machine.run(SERVES, timeout=600)
    assert mount(machine) == mounted
