"""What happens to a machine, and to the service with it: eight readers in a container see no error."""

from __future__ import annotations

import pytest

from tests.vm.debian import configure, main_pid, mount, under_load
from tests.vm.machine import Machine

SUITES = ("trixie",)

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
