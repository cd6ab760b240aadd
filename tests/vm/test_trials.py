"""What happens to a machine, and to the service with it: eight readers in a container see no error."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Callable

import pytest

from tests.vm import debian
from tests.vm.debian import configure, main_pid, mount, under_load
from tests.vm.machine import Machine

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

OUT_OF_MEMORY = f"""
systemctl set-property --runtime lxcfs-py MemoryMax=6M
sleep 20
grep --quiet '^oom_kill [1-9]' /sys/fs/cgroup/system.slice/memory.events
systemctl set-property --runtime lxcfs-py MemoryMax=infinity
{SERVES}
"""

CLOCK_SET = f"""
date --set '+1 day'; {KILL}; sleep 1
{SERVES}
date --set '-3 days'; {KILL}; sleep 1
{SERVES}
date --set '+2 days'
"""

FROZEN = f"""
systemctl freeze lxcfs-py && sleep 30
systemctl thaw lxcfs-py; sleep 1
{SERVES}
{KILL}; sleep 1
{SERVES}
"""

NO_PROGRAM = f"""
mv /usr/bin/lxcfs-py /usr/bin/away
{KILL}; sleep 15
mv /usr/bin/away /usr/bin/lxcfs-py
{SERVES}
"""

SIGNALS = f"""
server=$(systemctl show --property MainPID --value lxcfs-py)
for _ in $(seq 300); do
    for name in HUP USR1 PIPE TSTP ALRM QUIT; do kill -$name $server; done
done
systemctl daemon-reload
systemctl daemon-reexec
systemctl restart lxcfs-py
{KILL}; sleep 1
{SERVES}
"""

TAKEN_AWAY = f"""
{KILL}; umount --lazy /var/lib/lxcfs; ! mountpoint --quiet /var/lib/lxcfs || exit 1
{SERVES}
until mountpoint --quiet /var/lib/lxcfs; do sleep 0.1; done
{KILL}; mount -t tmpfs none /var/lib/lxcfs
until test -e /var/lib/lxcfs/proc/uptime; do sleep 0.1; done
{SERVES}
"""

KILLED_AT = """
mkdir /etc/systemd/system/lxcfs-py.service.d
cat >/etc/systemd/system/lxcfs-py.service.d/test.conf <<EOF
[Service]
ExecStart=
ExecStart=/usr/bin/python3 /root/tests/killed_at.py /run/at-call /usr/bin/lxcfs-py run
SystemCallFilter=
EOF
systemctl daemon-reload
systemctl restart lxcfs-py
"""

AT_CALL = f"""
rm --force /run/at-call.made
echo %d >/run/at-call
{KILL}
until test -s /run/at-call.made; do sleep 0.1; done
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


TRIALS = {
    "no-packages-for-30-s": NO_PACKAGES,
    "run-read-only": READ_ONLY_RUN,
    "disks-full": FULL_DISKS,
    "out-of-memory": OUT_OF_MEMORY,
    "clock-set": CLOCK_SET,
    "frozen": FROZEN,
    "no-program": NO_PROGRAM,
    "signals": SIGNALS,
}


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS)
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
    machine: Machine, suite: str, require: Callable[[object, str], None], tmp_path: Path
) -> None:
    if suite not in debian.FUSEPY:
        pytest.skip("version 0.1.0 cannot be installed there: its package depends on python3-fusepy")
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


def test_a_mount_that_was_taken_away_while_no_process_served_is_put_back(machine: Machine) -> None:
    device = mount(machine).split()[2]
    with under_load(machine, reads=100, readers=8):
        machine.run(TAKEN_AWAY, timeout=600)
    assert mount(machine).split()[2] == device


def test_no_read_fails_whichever_system_call_of_a_start_is_the_last(machine: Machine) -> None:
    machine.put(debian.ROOT / "tests/fuse/killed_at.py", "/root/tests/")
    machine.run(KILLED_AT, timeout=300)
    mounted = mount(machine)
    with under_load(machine, reads=100, readers=8):
        for number in range(2000, 4400, 100):
            machine.run(AT_CALL % number, timeout=300)
    assert mount(machine) == mounted
