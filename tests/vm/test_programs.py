"""The table of tests/programs in Podman on a Debian 14: other versions, cgroup v2, the agent by a seccomp profile."""

from __future__ import annotations

import pytest

from tests.programs import observed
from tests.programs.judged import judge
from tests.programs.observed import Engine, Way
from tests.programs.table import rows

pytestmark = pytest.mark.timeout(3600)  # the first one's, in which all programs run

SUITE = "forky"
ROWS = list(rows(SUITE))
DEPENDENCIES = ("apparmor", "crun", "podman", "python3-psutil", "python3-sdnotify")
PACKAGES = tuple(sorted({*DEPENDENCIES, *(package for row in ROWS for package in row.packages(SUITE))}))

# None is to start with the machine: an emulated CPU has enough to do.
SERVICES = (
    *("atop", "atopacct", "etcd", "exim4", "haproxy", "monit", "munge", "munin-node", "named", "nginx"),
    *("prometheus-node-exporter", "rabbitmq-server", "redis-server", "slurmd", "snmpd", "sysstat", "tuptime"),
    *("uptimed", "zabbix-agent"),
)
ASKING = Way("--security-opt seccomp=/usr/share/lxcfs-py/seccomp.json")

# All programs of a container are the machine's own.
PREPARE = """
set -e
apt-get install --yes /root/lxcfs-py.deb >/root/installed 2>&1
mkdir -p /root/image /root/disk && cd /root/image
mkdir -p usr etc tmp proc sys dev var/lib run root disk host programs
for link in bin sbin lib lib64; do ln -s usr/$link $link; done
tar -c . | podman import - box >/dev/null 2>&1
"""
OPTIONS = (
    "-e SLOW=5 -v /usr:/usr:ro -v /etc:/etc:O -v /var/lib/exim4:/var/lib/exim4:O -v /var/spool:/var/spool:O"
    " $(lxcfs-py mounts podman)"
)


@pytest.fixture(scope="module")
def machine(boot, debs):
    masked = tuple(f"systemd.mask={service}.service" for service in SERVICES)
    machine = boot(SUITE, packages=PACKAGES, memory=4096, cpus=3, kernel_args=("psi=1", *masked))
    machine.put(debs.old, "/root/lxcfs-py.deb")
    machine.run(PREPARE, timeout=600)
    return machine


@pytest.fixture(scope="module")
def said(machine, tmp_path_factory):
    directory = tmp_path_factory.mktemp("programs")
    observed.write_scripts(directory, ROWS)
    machine.put(directory, "/root/programs")
    engine = Engine(
        "podman",
        lambda command: machine.run(command, timeout=3000).stdout,
        OPTIONS,
        "box",
        "/root/programs",
        "/root/disk",
        "lxcfs-py attach --pid",
    )
    return observed.observe(engine, SUITE, ROWS, ASKING)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_program_says_what_the_table_has(row, said):
    judge(row, SUITE, said)


# Mebibytes that iostat has seen within so many seconds.
WATCH = """iostat -d -k -y $1 1 | awk '$1 ~ /^[a-z]/ {n += $7} END {print n / 1024}'"""
WATCHED = f"""
cd /root/disk
for size in 24 8 0; do
    podman run --detach --name w$size --network none -v /root/disk:/disk {OPTIONS} box sleep infinity
    podman exec w$size sh /disk/watch 60 >seen.$size &
done >/dev/null
sh watch 90 >seen.host &
sleep 20
for size in 24 8; do podman exec w$size dd if=/dev/zero of=/disk/$size bs=1M count=$size oflag=direct status=none; done
wait
podman rm --force w24 w8 w0 >/dev/null
cat seen.24 seen.8 seen.0 seen.host
"""


def test_iostat_shows_what_a_container_writes_while_it_watches(machine):
    machine.run(f"cat >/root/disk/watch <<'END'\n{WATCH}\nEND")
    busy, also_busy, idle, host = map(float, machine.run(WATCHED, timeout=600).stdout.split())
    assert (busy, also_busy, idle) == (pytest.approx(24, rel=0.01), pytest.approx(8, rel=0.01), 0)
    assert host >= busy + also_busy


ZOMBIE = 'import subprocess, time; subprocess.Popen(["true"]); time.sleep(1000)'


def test_atop_records_in_a_container_with_a_zombie(machine):
    machine.run(f"podman run --detach --name z --network none {OPTIONS} box python3 -c '{ZOMBIE}'")
    try:
        machine.run("until podman exec z grep --silent '^State:.Z' /proc/2/status; do sleep 1; done")
        recorded = machine.run("podman exec z atop -w /tmp/raw 2 2", timeout=300)
        assert "#threads" not in recorded.stdout + recorded.stderr
        assert "\nCPU " in machine.run("podman exec z atop -r /tmp/raw -P CPU", timeout=300).stdout
    finally:
        machine.run("podman rm --force --time 0 z")
