"""LXC containers, made with lxc-create on Debian's own configuration, with systemd in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.vm.debian import main_pid

SUITES = ("bookworm", "trixie")


CONFIGURATION = """
lxc.include = /usr/share/lxc/config/common.conf
lxc.apparmor.profile = generated
lxc.apparmor.allow_nesting = 1
lxc.net.0.type = empty
lxc.cgroup2.memory.max = 256M
lxc.cgroup2.cpu.max = 100000 100000
lxc.init.cmd = /sbin/init --unit=basic.target
"""

UNPRIVILEGED = """
lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
"""

HOSTILE = Path(__file__).parent.parent / "hostile"

SECONDS = 10


def starts(machine, name, configuration, command):
    """Start a container with a program in place of its init, whose output goes to /root/NAME.said."""
    own = configuration.replace("/sbin/init --unit=basic.target", command)
    machine.run(f"rm -f /root/{name}.said")
    machine.run(f"cat >/root/{name}.conf <<'EOF'\n{own}\nlxc.console.logfile = /root/{name}.said\nEOF")
    machine.run(f"lxc-create --name {name} --config /root/{name}.conf --template tree", timeout=120)
    machine.run(f"lxc-start --name {name} --logfile /root/{name}.log --logpriority INFO")


@pytest.mark.parametrize(
    ("attack", "must"),
    [
        ("children 30000", ["child"]),
        ("spread 20", ["mount a hierarchy"]),
        ("moves", ["move", "controllers", "limit"]),
    ],
)
def test_what_an_unprivileged_container_does_with_cgroups_of_its_own_is_nothing_to_another(machine, attack, must):
    machine.put(HOSTILE, "/usr/local/")  # which the containers have, too
    program, *arguments = attack.split()
    server = main_pid(machine)
    command = f"/usr/bin/python3 -B /usr/local/hostile/attacks/{program}.py {' '.join(arguments)}"
    starts(machine, "attacker", CONFIGURATION + UNPRIVILEGED, command)
    starts(machine, "victim", CONFIGURATION, "/bin/sleep infinity")
    machine.run("until grep --quiet '^{' /root/attacker.said; do sleep 1; done", timeout=600)
    outcomes = json.loads(machine.run("grep '^{' /root/attacker.said").stdout)
    victim = f"lxc-attach --name victim -- python3 -B /usr/local/hostile/victim.py {SECONDS} 256"
    noticed = json.loads(machine.run(victim, timeout=120).stdout)
    print(attack, outcomes, noticed)
    assert (noticed["failed"], noticed["odd"]) == (0, 0), noticed["first"]
    assert noticed["reads"] > 7
    assert main_pid(machine) == server
    assert all(outcomes.get(f"{what}: done") for what in must), "it could not even be tried"


def sees_its_limits(machine, name, configuration):
    machine.run(f"cat >/root/{name}.conf <<'EOF'\n{configuration}\nEOF")
    machine.run(f"lxc-create --name {name} --config /root/{name}.conf --template tree", timeout=120)
    machine.run(f"lxc-start --name {name} --logfile /root/{name}.log --logpriority INFO")
    within = f"lxc-attach --name {name} --"
    machine.run(f"until {within} systemctl is-active basic.target; do sleep 0.5; done", timeout=120)
    assert machine.run(f"{within} cat /proc/1/comm").stdout == "systemd\n"
    assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
    assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "1\n"
    assert machine.run(f"{within} cat /sys/devices/system/cpu/online").stdout == "0\n"
    assert float(machine.run(f"{within} cat /proc/uptime").stdout.split()[0]) < 120
    return machine.run(f"{within} cat /proc/self/uid_map").stdout.split()


def test_a_privileged_container_with_systemd_sees_its_limits(machine):
    assert sees_its_limits(machine, "privileged", CONFIGURATION)[1] == "0"


def test_an_unprivileged_container_with_systemd_sees_its_limits(machine):
    assert sees_its_limits(machine, "unprivileged", CONFIGURATION + UNPRIVILEGED)[1] == "100000"


def test_the_kernels_answers_are_the_containers_also_after_restarts_of_the_service(machine):
    asking = CONFIGURATION.replace("/sbin/init --unit=basic.target", "/bin/sleep infinity")
    machine.run(f"cat >/root/asking.conf <<'EOF'\n{asking}\nEOF")
    machine.run("lxcfs-py mounts lxc --syscalls | grep ^lxc.seccomp >>/root/asking.conf")
    machine.run("lxc-create --name asking --config /root/asking.conf --template tree", timeout=120)
    machine.run("lxc-start --name asking --logfile /root/asking.log --logpriority INFO")
    calls = "lxc-attach --name asking -- sh -c 'nproc; getconf _PHYS_PAGES'"
    assert machine.run(calls).stdout == f"1\n{(256 << 20) // 4096}\n"
    for how in ("restart", "kill --signal KILL"):
        machine.run(f"systemctl {how} lxcfs-py")
        assert machine.run(calls).stdout == f"1\n{(256 << 20) // 4096}\n"


def test_a_container_starts_on_the_machines_figures_where_the_service_is_stopped(machine):
    machine.run("systemctl stop lxcfs-py")
    plain = CONFIGURATION.replace("/sbin/init --unit=basic.target", "/bin/sleep infinity")
    machine.run(f"cat >/root/plain.conf <<'EOF'\n{plain}\nEOF")
    machine.run("lxc-create --name plain --config /root/plain.conf --template tree", timeout=120)
    machine.run("lxc-start --name plain")
    within = machine.run("lxc-attach --name plain -- grep MemTotal /proc/meminfo").stdout
    assert within == machine.run("grep MemTotal /proc/meminfo").stdout
