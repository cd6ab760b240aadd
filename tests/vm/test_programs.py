"""The table of tests/programs in Podman on a Debian 14: other versions, cgroup v2, the agent by a seccomp profile."""

from __future__ import annotations

import pytest

from tests.programs import observed
from tests.programs.judged import judge
from tests.programs.observed import Engine, Way
from tests.programs.table import rows

SUITE = "forky"
ROWS = list(rows(SUITE))
DEPENDENCIES = ("apparmor", "crun", "podman", "python3-psutil", "python3-sdnotify")
PACKAGES = tuple(sorted({*DEPENDENCIES, *(package for row in ROWS for package in row.packages(SUITE))}))

# None is to start with the machine: an emulated CPU has enough to do.
SERVICES = (
    *("atop", "atopacct", "etcd", "exim4", "haproxy", "monit", "munge", "munin-node", "named", "nginx", "redis-server"),
    *(
        "prometheus-node-exporter",
        "rabbitmq-server",
        "slurmd",
        "snmpd",
        "sysstat",
        "tuptime",
        "uptimed",
        "zabbix-agent",
    ),
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
OPTIONS = "-e SLOW=5 -v /usr:/usr:ro -v /etc:/etc:O -v /var/lib/exim4:/var/lib/exim4:O $(lxcfs-py mounts podman)"


@pytest.fixture(scope="module")
def said(boot, debs, tmp_path_factory):
    masked = tuple(f"systemd.mask={service}.service" for service in SERVICES)
    machine = boot(SUITE, packages=PACKAGES, memory=4096, cpus=3, kernel_args=("psi=1", *masked))
    machine.put(debs.old, "/root/lxcfs-py.deb")
    machine.run(PREPARE, timeout=600)
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
    )
    return observed.observe(engine, SUITE, ROWS, ASKING)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_program_says_what_the_table_has(row, said):
    judge(row, SUITE, said)
