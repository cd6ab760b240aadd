"""A machine boots."""

from __future__ import annotations

from tests.vm.debian import container

SUITES = ("bookworm", "trixie")


def test_after_a_reboot_containers_that_docker_starts_see_their_figures(machine):
    with container(machine, options="--restart always") as within:
        machine.reboot()
        machine.run(
            "until [ $(docker inspect --format '{{.State.Running}}' box) = true ]; do sleep 0.5; done", timeout=60
        )
        assert machine.run(f"{within} free --mebi").stdout.splitlines()[1].split()[1] == "256"
        assert machine.run(f"{within} grep --count ^processor /proc/cpuinfo").stdout == "1\n"
        ready = machine.run("systemctl show --property ActiveEnterTimestampMonotonic --value lxcfs-py").stdout
        for unit in ("docker", "containerd", "lxc"):
            begun = machine.run(f"systemctl show --property ExecMainStartTimestampMonotonic --value {unit}").stdout
            assert 0 < int(ready) < int(begun), unit
