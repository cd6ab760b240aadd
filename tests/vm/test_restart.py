"""The service's process comes and goes; who reads never notices."""

from __future__ import annotations

from lxcfs_py.files import NAMES
from tests.vm.debian import configure, container, main_pid, mount, under_load

KILLS = """
for _ in $(seq 20); do
    killed=$(systemctl show --property MainPID --value lxcfs-py)
    kill -KILL $killed
    until now=$(systemctl show --property MainPID --value lxcfs-py) && [ $now != 0 ] && [ $now != $killed ] &&
        systemctl is-active --quiet lxcfs-py; do sleep 0.1; done
    echo $now
done
"""

SHORT_WATCHDOG = """
mkdir /etc/systemd/system/lxcfs-py.service.d
cat >/etc/systemd/system/lxcfs-py.service.d/test.conf <<EOF
[Service]
WatchdogSec=8
EOF
systemctl daemon-reload
systemctl restart lxcfs-py
"""

NEW_PROCESSES = """
for _ in $(seq 20); do
    systemctl restart lxcfs-py
    systemctl show --property MainPID --value lxcfs-py
done
"""


def test_no_read_fails_in_twenty_restarts(machine):
    mounted = mount(machine)
    with under_load(machine, reads=200):
        assert len(set(machine.run(NEW_PROCESSES, timeout=300).stdout.split())) == 20
    assert mount(machine) == mounted


def test_no_read_fails_when_the_service_is_killed_twenty_times(machine):
    mounted = mount(machine)
    with under_load(machine, reads=200):
        assert len(set(machine.run(KILLS, timeout=300).stdout.split())) == 20
    assert mount(machine) == mounted


def test_no_read_fails_when_a_newer_package_is_installed(machine):
    process, mounted = main_pid(machine), mount(machine)
    with under_load(machine, reads=100):
        machine.run("apt-get install --quiet --yes /root/newer.deb", timeout=300)
        assert "+1" in machine.run("dpkg-query --show lxcfs-py").stdout
        assert main_pid(machine) not in (process, "0")
    assert mount(machine) == mounted


def test_a_server_that_stands_still_is_replaced_and_its_readers_go_on(machine):
    machine.run(SHORT_WATCHDOG)
    process = main_pid(machine)
    with under_load(machine, reads=50):
        machine.run(f"kill -STOP {process}")
        machine.run(
            f"until [ $(systemctl show --property MainPID --value lxcfs-py) != {process} ] && "
            "systemctl is-active --quiet lxcfs-py; do sleep 0.2; done",
            timeout=60,
        )
    journal = machine.run("journalctl --no-pager _SYSTEMD_UNIT=lxcfs-py.service + UNIT=lxcfs-py.service").stdout
    assert "Watchdog timeout" in journal


def test_a_restart_with_a_broken_file_goes_on_with_the_configuration_of_before(machine):
    mounted = mount(machine)
    with container(machine) as within:
        configure(machine, ('mode = "quota"', "mode = 3"))
        machine.run("systemctl restart lxcfs-py")
        assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "1\n"
        status = machine.run("systemctl show --property StatusText lxcfs-py").stdout
        assert f"Serving {len(NAMES)} files" in status
        assert "cpu.mode" in status
    assert mount(machine) == mounted


def test_a_first_start_with_a_broken_file_fails_with_the_error(machine):
    machine.run("systemctl stop lxcfs-py")
    configure(machine, ('mode = "quota"', "mode = 3"))
    assert machine.run("systemctl start lxcfs-py", check=False).returncode != 0
    status = machine.run("systemctl status --no-pager lxcfs-py", check=False).stdout
    assert "Active: failed" in status
    assert "cpu.mode" in status


def test_a_changed_mountpoint_waits_until_the_service_is_stopped_and_started(machine):
    with container(machine) as within:
        configure(machine, ('mountpoint = "/var/lib/lxcfs"', 'mountpoint = "/run/views"'))
        machine.run("systemctl restart lxcfs-py")
        assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
        assert "stays the mountpoint" in machine.run("systemctl show --property StatusText lxcfs-py").stdout
    machine.run("cp /root/lxcfs.toml /etc/ && systemctl restart lxcfs-py")


def test_a_stop_ends_the_mount_and_names_who_loses_it(machine):
    with container(machine) as within:
        init = machine.run("docker inspect --format '{{.State.Pid}}' box").stdout.strip()
        assert machine.run("lxcfs-py users").stdout.split()[::3] == [init, "served"]
        machine.run("systemctl stop lxcfs-py")
        assert not mount(machine)
        read = machine.run(f"{within} timeout 10 cat /proc/meminfo", check=False)
        assert "Transport endpoint is not connected" in read.stderr
        assert f"process {init} (sleep)" in machine.run("journalctl --no-pager --unit lxcfs-py --lines 20").stdout
        machine.run("systemctl start lxcfs-py")
        assert machine.run("lxcfs-py users").stdout.split()[::3] == [init, "unserved"]
        machine.run("docker restart --time 0 box")
        assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
