"""The package goes, or takes the place of the C program's."""

from __future__ import annotations

from lxcfs_py.files import NAMES
from tests.vm.debian import container, mount

SUITES = ("bookworm", "trixie")

LEFT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /root -o -path '/var/log/*' -o -path '/var/cache/apt/*' \
    -o -path '/var/lib/docker/*' \) -prune -o -iname '*lxcfs*' -print
find /run -xdev -iname '*lxcfs*'
systemctl list-unit-files --no-legend '*lxcfs*'
systemctl list-units --all --no-legend --plain '*lxcfs*' | grep --invert-match not-found
grep lxcfs /proc/mounts
pgrep --list-full --full '[l]xcfs'
"""

C_PROGRAM = """
dpkg --purge lxcfs-py
apt-get install --quiet --yes lxcfs
systemctl start lxcfs
"""


def test_a_purge_leaves_nothing(machine):
    said = machine.run("apt-get purge --quiet --yes lxcfs-py").stdout
    assert "Transport endpoint" not in said, "nobody used the files"
    assert machine.run(LEFT, check=False).stdout == ""


def test_a_removal_says_who_still_uses_the_files(machine):
    with container(machine):
        init = machine.run("docker inspect --format '{{.State.Pid}}' box").stdout.strip()
        said = machine.run("apt-get remove --quiet --yes lxcfs-py").stdout
        assert "Transport endpoint is not connected" in said
        assert f"{init}\tsleep\t" in said
        assert not mount(machine)


def test_the_c_program_serves_its_containers_until_the_operator_restarts_the_service(machine):
    machine.run(C_PROGRAM)
    bound = "--volume /var/lib/lxcfs/proc/meminfo:/proc/meminfo:rw"
    limits = "--memory 256m --network none --volume /usr:/usr:ro"
    machine.run(f"docker run --detach --name old {limits} {bound} box sleep infinity")
    init = machine.run("docker inspect --format '{{.State.Pid}}' old").stdout.strip()

    said = machine.run("apt-get install --quiet --yes /root/lxcfs-py.deb").stdout
    assert "the C program lxcfs goes on serving" in said
    assert f"{init}\tsleep\t" in said
    assert machine.run("docker exec old free --mebi").stdout.splitlines()[1].split()[1] == "256"

    machine.run("systemctl restart lxcfs-py")
    assert f"Serving {len(NAMES)} files" in machine.run("systemctl status lxcfs-py").stdout
    with container(machine) as within:
        assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
    machine.run("docker restart --time 0 old")
    assert machine.run("docker exec old free --mebi").stdout.splitlines()[1].split()[1] == "256"


def test_a_c_program_that_nobody_uses_makes_way_at_once(machine):
    machine.run(C_PROGRAM)
    machine.run("apt-get install --quiet --yes /root/lxcfs-py.deb")
    assert f"Serving {len(NAMES)} files" in machine.run("systemctl status lxcfs-py").stdout
    assert machine.run("pgrep --exact lxcfs", check=False).stdout == ""


def test_the_c_program_takes_the_place_and_gives_it_back(machine):
    machine.run("apt-get install --quiet --yes lxcfs && systemctl start lxcfs")
    assert machine.run("systemctl show --property FragmentPath --value lxcfs").stdout.endswith("/lxcfs.service\n")
    assert machine.run("pgrep --exact lxcfs").stdout
    assert mount(machine)

    machine.run("apt-get install --quiet --yes /root/lxcfs-py.deb")
    assert machine.run("readlink /etc/systemd/system/lxcfs.service").stdout.endswith("/lxcfs-py.service\n")
    assert f"Serving {len(NAMES)} files" in machine.run("systemctl status lxcfs-py").stdout
    assert machine.run("pgrep --exact lxcfs", check=False).stdout == ""


def test_a_purge_leaves_the_c_program_its_directory_and_its_mount(machine):
    machine.run("apt-get install --quiet --yes lxcfs && systemctl start lxcfs")
    machine.run("dpkg --purge lxcfs-py")
    assert machine.run("cat /var/lib/lxcfs/proc/uptime").stdout
    machine.run("systemctl stop lxcfs && test -d /var/lib/lxcfs")
    machine.run("apt-get install --quiet --yes /root/lxcfs-py.deb")
    assert f"Serving {len(NAMES)} files" in machine.run("systemctl status lxcfs-py").stdout
