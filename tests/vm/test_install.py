"""`apt install`, and what a container then sees."""

from __future__ import annotations

import json
import re

import pytest

from lxcfs_py.files import NAMES
from tests.vm.debian import FUSEPY, ROOT, container

MIB = 1 << 20


def test_after_apt_install_the_service_runs_and_is_enabled(machine):
    assert machine.run("cat /root/active").stdout == "active\n", machine.run("cat /root/installed").stdout
    assert machine.run("systemctl is-enabled lxcfs-py").stdout == "enabled\n"
    assert machine.run("systemctl show --property Id --value lxcfs").stdout == "lxcfs-py.service\n"
    assert f"Serving {len(NAMES)} files at /var/lib/lxcfs" in machine.run("systemctl status lxcfs-py").stdout


def test_the_test_that_the_package_brings_for_autopkgtest_passes(machine):
    machine.put(ROOT / "packaging/deb/tests/smoke", "/root/smoke")
    lines = machine.run("sh /root/smoke").stdout.splitlines()
    assert lines[0] == "active"
    assert lines[1].startswith("MemTotal:")


def test_a_container_sees_its_memory_and_its_one_cpu(machine):
    assert machine.run("stat --file-system --format %T /sys/fs/cgroup").stdout == "cgroup2fs\n"
    assert machine.run("grep --count ^processor /proc/cpuinfo").stdout == "2\n"
    with container(machine) as within:
        free = machine.run(f"{within} free --bytes").stdout.splitlines()[1].split()
        assert int(free[1]) == 256 * MIB
        assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "1\n"
        assert machine.run(f"{within} grep --count '^cpu[0-9]' /proc/stat").stdout == "1\n"
        assert machine.run(f"{within} cat /sys/devices/system/cpu/online").stdout == "0\n"
        assert float(machine.run(f"{within} cat /proc/uptime").stdout.split()[0]) < 60


def test_the_memory_that_a_container_uses_is_what_docker_says(machine):
    holding = 'import time; held = b"x" * (64 << 20); time.sleep(1000)'
    with container(machine, f"python3 -c '{holding}'") as within:
        machine.run(f"until {within} free --mebi | awk '/Mem/ {{ exit $3 < 64 }}'; do sleep 0.5; done", timeout=30)
        free = int(machine.run(f"{within} free --bytes").stdout.splitlines()[1].split()[2])
        docker = machine.run("docker stats --no-stream --format '{{.MemUsage}}' box").stdout
        used, total = re.fullmatch(r"([0-9.]+)MiB / ([0-9.]+)MiB\n", docker).groups()
        assert float(total) == 256
        assert free == pytest.approx(float(used) * MIB, rel=0.05)


def test_what_a_container_burns_and_writes_is_counted_and_nothing_of_the_hosts(machine):
    machine.run("mkdir --parents /root/output")
    with container(machine, options="--volume /root/output:/output") as within:
        busy = "while :; do dd if=/dev/zero of=/root/beside bs=1M count=16 oflag=direct; done"
        machine.run(f"systemd-run --unit beside sh -c '{busy}'")
        try:
            seen = json.loads(machine.run(f"{within} python3 /root/tests/burner.py").stdout)
        finally:
            machine.run("systemctl stop beside; rm /root/beside /root/output/written")
    print(seen)
    assert seen["stat"] == pytest.approx(seen["burned"], rel=0.05)
    assert seen["stat"] == pytest.approx(seen["cgroup"], rel=0.05)
    assert seen["diskstats"] == pytest.approx(seen["written"], rel=0.05)


def test_the_service_is_confined_as_far_as_a_mount_for_all_allows(machine):
    said = machine.run("systemd-analyze security --no-pager lxcfs-py").stdout
    print(said)
    assert float(re.search(r"Overall exposure level for lxcfs-py.service: ([0-9.]+)", said)[1]) <= 4.4
    pid = machine.run("systemctl show --property MainPID --value lxcfs-py").stdout.strip()
    assert machine.run(f"readlink /proc/{pid}/ns/mnt").stdout == machine.run("readlink /proc/1/ns/mnt").stdout
    machine.run("lxcfs-py try --memory 64M getconf _PHYS_PAGES")  # which has a process write the answer
    filters = "awk '/^Seccomp_filters/ {{ print $2 }}' /proc/{}/status"
    (writer, *_) = machine.run("pgrep -f lxcfs_py.syscalls.writers").stdout.split()
    assert int(machine.run(filters.format(writer)).stdout) == int(machine.run(filters.format(pid)).stdout) + 1


def test_a_service_with_a_mount_namespace_of_its_own_serves_what_there_is_and_mounts_nothing(machine):
    drop_in = "/etc/systemd/system/lxcfs-py.service.d"
    machine.run(f"mkdir {drop_in} && printf '[Service]\\nProtectHome=yes\\n' >{drop_in}/own.conf")
    with container(machine) as within:
        machine.run("systemctl daemon-reload && systemctl restart lxcfs-py")
        assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
        assert "ProtectSystem=" in machine.run("lxcfs-py status", check=False).stdout
    machine.run("systemctl stop lxcfs-py")
    assert machine.run("systemctl start lxcfs-py", check=False).returncode
    said = machine.run("journalctl --unit lxcfs-py --lines 50 --output cat").stdout
    assert "a mount namespace of its own, and nobody else sees what is mounted there" in said


def test_the_other_engine_serves_within_the_services_confines_or_says_what_to_install(machine, suite):
    machine.run("sed --in-place 's/^engine = .*/engine = \"fusepy\"/' /etc/lxcfs.toml")
    try:
        started = machine.run("systemctl stop lxcfs-py && systemctl start lxcfs-py", check=suite in FUSEPY)
        if suite not in FUSEPY:
            assert started.returncode != 0
            said = machine.run("journalctl --unit lxcfs-py --lines 50 --output cat").stdout
            assert "install python3-fusepy, or, where there is no libfuse 2, libfuse 3 and the Python" in said
            return
        assert "engine fusepy" in machine.run("systemctl status --full lxcfs-py").stdout
        with container(machine) as within:
            assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
    finally:
        machine.run("cp /root/lxcfs.toml /etc/ && systemctl stop lxcfs-py && systemctl start lxcfs-py")


def test_bash_completes_commands_and_options(machine):
    complete = (
        "source /usr/share/bash-completion/completions/lxcfs-py; COMP_WORDS=({words}); COMP_CWORD={at}; _lxcfs_py"
    )
    commands = machine.run(complete.format(words="lxcfs-py rel", at=1) + "; echo ${COMPREPLY[*]}").stdout
    assert commands == "reload\n"
    options = machine.run(complete.format(words="lxcfs-py show --pi", at=2) + "; echo ${COMPREPLY[*]}").stdout
    assert options == "--pid\n"
