"""Podman and Docker on a Debian 13: the confined service attaches to new containers; the OCI hook; CDI; Incus beside.

One machine for all, since booting it takes longer than the tests.
"""

from __future__ import annotations

import json

import pytest

from lxcfs_py import files
from lxcfs_py.files import NAMES
from tests.vm.debian import HERE
from tests.vm.machine import MachineError

SUITE = "trixie"
ENGINES = ("apparmor", "crun", "docker-cli", "docker-compose", "docker.io", "incus-base", "lxc", "podman")
DEPENDENCIES = ("python3-fusepy", "python3-psutil", "python3-sdnotify")
PACKAGES = (*ENGINES, *DEPENDENCIES)

FLAGS = "--memory 256m --cpus 1 --network none --volume /usr:/usr:ro"
SEEN = "grep MemTotal /proc/meminfo; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online"
LIMITED = f"MemTotal: {256 * 1024:14} kB\n1\n0\n"
FILES = "grep -c fuse.lxcfs /proc/self/mountinfo"

MOUNTED_BY_RUNC = sum(known.runc_mounts for known in files.FILES.values())

# All programs of a container are the machine's own.
PREPARE = """
set -e
apt-get install --yes /root/lxcfs-py.deb >/root/installed 2>&1
mkdir -p /root/image && cd /root/image
mkdir -p usr etc tmp proc sys dev var run
for link in bin sbin lib lib64; do ln -s usr/$link $link; done
tar -c . | docker import - box >/dev/null
tar -c . | podman import - box >/dev/null 2>&1
"""


@pytest.fixture(scope="module")
def machine(boot, debs):
    machine = boot(SUITE, packages=PACKAGES, memory=2048)
    machine.put(debs.old, "/root/lxcfs-py.deb")
    machine.run(PREPARE, timeout=300)
    return machine


@pytest.fixture(scope="module")
def host(machine):
    """What SEEN prints on the machine."""
    return machine.run(SEEN).stdout


@pytest.fixture
def automatic(machine):
    """The service attaches to new containers while the test lasts."""
    machine.run("sed --in-place 's/^auto = .*/auto = true/' /etc/lxcfs.toml && systemctl reload lxcfs-py")
    yield
    machine.run("sed --in-place 's/^auto = .*/auto = false/' /etc/lxcfs.toml && systemctl reload lxcfs-py")


def run(machine, engine, options="", command=SEEN):
    """What a shell command prints in a new container."""
    return machine.run(f"{engine} run --rm {FLAGS} {options} box sh -c '{command}'").stdout


def test_the_package_takes_lxcfs_place_and_incus_stays(machine):
    said = machine.run("cat /root/installed").stdout
    assert "lxcfs" in said
    assert machine.run("dpkg-query --show --showformat='${db:Status-Status}' incus-base").stdout == "installed"
    assert machine.run("dpkg-query --show --showformat='${db:Status-Status}' lxcfs", check=False).stdout != "installed"


# Mounts in the definition


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_podmans_flags_give_a_container_its_own_limits(machine, runtime):
    assert run(machine, f"podman --runtime {runtime}", "$(lxcfs-py mounts podman)") == LIMITED


QUADLET = """
[Container]
Image=localhost/box
Exec=grep MemTotal /proc/meminfo
Network=none
PodmanArgs=--memory 256m
Volume=/usr:/usr:ro
Volume=/var/lib/lxcfs/proc/meminfo:/proc/meminfo:rw
[Service]
Type=oneshot
"""


def test_a_quadlets_volume_gives_it_its_own_limits(machine):
    file = "/etc/containers/systemd/web.container"
    machine.run(f"mkdir -p /etc/containers/systemd && cat >{file} <<'EOF'\n{QUADLET}EOF\nsystemctl daemon-reload")
    try:
        machine.run("systemctl start web")
        assert LIMITED.splitlines()[0] in machine.run("journalctl --unit web --output cat").stdout
    finally:
        machine.run(f"rm {file}; systemctl daemon-reload")


# System calls

ASKING = "--security-opt seccomp=/usr/share/lxcfs-py/seccomp.json"
CALLS = "nproc; getconf _PHYS_PAGES"


@pytest.mark.parametrize("engine", ["podman --runtime crun", "podman --runtime runc", "docker"])
def test_the_kernels_answers_are_the_containers_with_the_profile_and_the_machines_without(machine, engine):
    for user in ("0", "65534"):  # whose memory root without CAP_DAC_OVERRIDE cannot write to
        assert run(machine, engine, f"{ASKING} --user {user}", CALLS) == f"1\n{(256 << 20) // 4096}\n"
    assert run(machine, engine, "", CALLS) == machine.run(CALLS).stdout


CALLING = """
import os
while not os.path.exists("/tmp/enough"):
    assert os.sysconf("SC_PHYS_PAGES") == 65536
    assert len(os.sched_getaffinity(0)) == 1
print("agreed")
"""


def test_no_call_fails_while_the_service_is_killed_and_restarted(machine):
    machine.run("rm -rf /root/calling && mkdir /root/calling")
    machine.run(f"cat >/root/calling/calling.py <<'EOF'\n{CALLING}EOF")
    machine.run(
        f"podman run --detach --name calling {FLAGS} {ASKING} --volume /root/calling:/tmp box python3 /tmp/calling.py"
    )
    try:
        for _ in range(5):
            machine.run("systemctl kill --signal KILL lxcfs-py; sleep 2; systemctl restart lxcfs-py")
        machine.run("touch /root/calling/enough; podman wait calling")
        assert machine.run("podman logs calling").stdout == "agreed\n"
    finally:
        machine.run("podman rm --force calling", check=False)


def test_containers_with_the_profile_start_while_the_service_restarts_and_after(machine):
    answers = f"1\n{(256 << 20) // 4096}\n"
    for _ in range(3):
        machine.run("systemctl restart --no-block lxcfs-py")
        assert run(machine, "podman", ASKING, CALLS) == answers
        machine.run("systemctl kill --signal KILL lxcfs-py")
        assert run(machine, "docker", ASKING, CALLS) == answers
    machine.run("systemctl restart lxcfs-py")
    assert run(machine, "podman", ASKING, CALLS) == answers


def test_all_containers_can_be_made_to_have_the_profile(machine):
    machine.run("mkdir -p /etc/containers/containers.conf.d")
    file = "/etc/containers/containers.conf.d/lxcfs-py-syscalls.conf"
    profile = 'seccomp_profile = "/usr/share/lxcfs-py/seccomp.json"'
    machine.run(f"printf '[containers]\\n{profile}\\n' >{file}")
    try:
        assert run(machine, "podman", "", CALLS) == f"1\n{(256 << 20) // 4096}\n"
    finally:
        machine.run(f"rm {file}")


# The hook


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_hook_gives_a_container_that_asks_for_it_its_own_limits(machine, runtime):
    engine = f"podman --runtime {runtime}"
    seen = run(machine, engine, "--annotation lxcfs.py/views=true", f"{SEEN}; {FILES}")
    assert seen == f"{LIMITED}{len(NAMES)}\n"


def test_a_container_that_does_not_ask_for_it_sees_the_machine(machine, host):
    assert run(machine, "podman") == run(machine, "podman", "--annotation lxcfs.py/views=false") == host


def test_all_containers_can_be_made_to_ask_for_it(machine):
    machine.run("mkdir -p /etc/containers/containers.conf.d")
    file = "/etc/containers/containers.conf.d/lxcfs-py.conf"
    machine.run(f"""printf '[containers]\\nannotations = ["lxcfs.py/views=true"]\\n' >{file}""")
    try:
        assert run(machine, "podman") == LIMITED
    finally:
        machine.run(f"rm {file}")


def test_with_the_hook_a_container_starts_while_the_service_is_stopped(machine, host):
    machine.run("systemctl stop lxcfs-py")
    try:
        assert run(machine, "podman", "--annotation lxcfs.py/views=true") == host
    finally:
        machine.run("systemctl start lxcfs-py")


# CDI


@pytest.fixture(scope="module")
def cdi(machine):
    machine.run("lxcfs-py cdi")
    features = json.dumps({"features": {"cdi": True}})
    machine.run(f"echo '{features}' >/etc/docker/daemon.json && systemctl restart docker")


@pytest.mark.parametrize("engine", ["podman", "docker", "podman --runtime runc"])
def test_a_cdi_device_gives_a_container_its_own_limits(machine, cdi, engine):
    assert run(machine, engine, "--device lxcfs.py/views=all", f"{SEEN}; {FILES}") == f"{LIMITED}{MOUNTED_BY_RUNC}\n"


def test_a_cdi_device_may_be_a_single_file(machine, cdi):
    devices = "--device lxcfs.py/views=meminfo --device lxcfs.py/views=stat"
    seen = run(machine, "podman", devices, f"grep MemTotal /proc/meminfo; {FILES}")
    assert seen == f"{LIMITED.splitlines()[0]}\n2\n"


def test_a_container_with_the_device_does_not_start_while_the_service_is_stopped(machine, cdi):
    machine.run("systemctl stop lxcfs-py")
    try:
        with pytest.raises(MachineError, match="/var/lib/lxcfs/proc/"):
            run(machine, "podman", "--device lxcfs.py/views=all")
    finally:
        machine.run("systemctl start lxcfs-py")


# Containers that run


def test_attach_finds_a_container_by_podmans_name_for_it(machine, host):
    machine.run(f"podman run --detach --name box {FLAGS} box sleep infinity")
    try:
        assert machine.run(f"podman exec box sh -c '{SEEN}'").stdout == host
        said = machine.run("lxcfs-py attach --podman box").stdout
        assert said.endswith(f": {len(NAMES)} attached\n")
        assert machine.run(f"podman exec box sh -c '{SEEN}'").stdout == LIMITED
    finally:
        machine.run("podman rm --force --time 0 box")


NAMED = {
    "podman": ("podman", "box"),
    "podman --cgroup-manager cgroupfs": ("podman", "box"),
    "podman --runtime runc": ("podman", "box"),
    "docker": ("docker", "box"),
}


@pytest.mark.parametrize(("engine", "called"), NAMED.items(), ids=NAMED)
def test_a_container_has_the_name_that_its_engine_gave_it(machine, engine, called):
    machine.run(f"{engine} run --detach --name box {FLAGS} box sleep infinity")
    try:
        (told,) = json.loads(machine.run("lxcfs-py status --json").stdout)["containers"]
        assert (told["engine"], told["name"]) == called
        for which in ("--container box", f"--container {called[0]}:box", f"--{called[0]} box", f"--pid {told['pid']}"):
            assert "MemTotal: 256 MiB" in machine.run(f"lxcfs-py explain meminfo:MemTotal {which}").stdout
            assert machine.run(f"lxcfs-py show meminfo {which}").stdout.startswith(LIMITED.splitlines()[0])
        assert "box" in machine.run("lxcfs-py top --once").stdout
        assert machine.run("lxcfs-py attach --dry-run box").stdout.startswith(f"{told['pid']}: ")
        assert "box (process" in machine.run("lxcfs-py doctor", check=False).stdout
    finally:
        machine.run(f"{engine} rm --force box")


WAIT = f"until [ $({FILES}) = {len(NAMES)} ]; do sleep 0.1; done; {SEEN}"

STARTS = {
    "docker": f"docker run --rm {FLAGS} box sh -c '{WAIT}'",
    "docker, as a user": f"docker run --rm --user 65534 {FLAGS} box sh -c '{WAIT}'",
    "podman": f"podman run --rm {FLAGS} box sh -c '{WAIT}'",
    "podman, cgroupfs": f"podman --cgroup-manager cgroupfs run --rm {FLAGS} box sh -c '{WAIT}'",
    "podman, in a pod": (
        "podman pod create --infra=false pod >/dev/null && "
        f"podman run --rm --pod pod {FLAGS} box sh -c '{WAIT}'; podman pod rm pod >/dev/null"
    ),
    "podman, as quadlets run it": (
        "systemd-run --wait --quiet --pipe --property Delegate=yes "
        f"podman run --rm --cgroups=split {FLAGS} box sh -c '{WAIT}'"
    ),
    "containerd": (
        "cp -r /root/image /root/rootfs && "
        "ctr run --rm --env PATH=/usr/bin --memory-limit 268435456 --cpus 1 "
        "--mount type=bind,src=/usr,dst=/usr,options=rbind "
        f"--rootfs /root/rootfs box /bin/sh -c '{WAIT}'"
    ),
    "podman, in a user namespace": (
        f"podman run --rm --uidmap 0:100000:65536 --gidmap 0:100000:65536 {FLAGS} box sh -c '{WAIT}'"
    ),
}


def test_the_service_attaches_to_a_users_container_that_ran_before(machine):
    machine.run(f"docker run --detach --name before --user 65534 {FLAGS} box sleep infinity")
    try:
        machine.run("sed --in-place 's/^auto = .*/auto = true/' /etc/lxcfs.toml && systemctl reload lxcfs-py")
        assert machine.run(f"docker exec before sh -c '{WAIT}'").stdout == LIMITED
    finally:
        machine.run("sed --in-place 's/^auto = .*/auto = false/' /etc/lxcfs.toml && systemctl reload lxcfs-py")
        machine.run("docker rm --force before")


@pytest.mark.parametrize("command", STARTS.values(), ids=STARTS)
def test_the_service_attaches_to_a_new_container_within_its_confines(machine, automatic, command):
    assert machine.run(command).stdout == LIMITED


LXC = """
lxc.include = /usr/share/lxc/config/common.conf
lxc.hook.mount =
lxc.apparmor.profile = unconfined
lxc.net.0.type = empty
lxc.cgroup2.memory.max = 256M
lxc.cgroup2.cpu.max = 100000 100000
lxc.init.cmd = /bin/sleep infinity
"""


def test_the_service_attaches_to_an_lxc_container_that_has_no_hook(machine, automatic):
    machine.put(HERE / "lxc-tree", "/usr/share/lxc/templates/lxc-tree")
    machine.run(f"chmod 755 /usr/share/lxc/templates/lxc-tree; cat >/root/lxc.conf <<'EOF'\n{LXC}EOF")
    machine.run("lxc-create --name box --config /root/lxc.conf --template tree", timeout=120)
    try:
        machine.run("lxc-start --name box")
        assert machine.run(f"lxc-attach --name box -- sh -c '{WAIT}'").stdout == LIMITED
    finally:
        machine.run("lxc-destroy --force --name box")


def test_the_service_is_still_confined(machine, automatic):
    pid = machine.run("systemctl show --property MainPID --value lxcfs-py").stdout.strip()
    (attacher,) = machine.run("pgrep -f lxcfs_py.attach.auto_attach").stdout.split()
    for process in (pid, attacher):
        status = machine.run(f"grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/{process}/status").stdout.split()
        sys_admin, sys_ptrace, sys_chroot, setuid, dac_override = (1 << number for number in (21, 19, 18, 7, 1))
        assert int(status[1], 16) == sys_admin | sys_ptrace | sys_chroot | setuid | dac_override
        assert (status[3], status[5]) == ("1", "2")


def test_when_the_service_is_killed_its_successor_attaches(machine, automatic):
    before = machine.run("pgrep -f lxcfs_py.attach.auto_attach").stdout.split()
    machine.run("systemctl kill --signal KILL --kill-whom main lxcfs-py")
    assert machine.run(STARTS["podman"]).stdout == LIMITED
    with pytest.raises(MachineError):
        machine.run(f"kill -0 {before[0]}")
