"""What programs say in a container, and whom they ask: the one table that tests prove and docs/programs.md shows.

A row has a command, how its figure is found in what it prints, and the right figure as a function of the container.
Whom it asks decides what it says: the figure of a file is the container's, that of a system call the machine's where
there is no agent.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class By(enum.Enum):
    """Whom a program asks."""

    FILE = "files below /proc"
    SYSFS = "/sys"
    CGROUP = "its cgroup"
    SYSINFO = "sysinfo(2)"
    AFFINITY = "sched_getaffinity(2)"
    CLOCK = "the clock since boot"

    @property
    def is_a_call(self) -> bool:
        return self in (By.SYSINFO, By.AFFINITY)


@dataclass(frozen=True)
class Seen:
    """A container at a moment, as it should look from inside, or the machine: bytes, CPUs, seconds."""

    memory: int
    cpus: int
    age: float
    load: float
    written: int = 0
    """Bytes to disks."""


@dataclass(frozen=True)
class Row:
    """One figure of one program."""

    program: str
    package: str
    """Of Debian 12; several with spaces between."""

    figure: str
    by: By
    command: str
    """For bash, as root."""

    find: str
    """A regular expression with the figure in its first group, and in a second one its unit if it varies: K, M, G."""

    right: Callable[[Seen], float]
    cure: str = ""
    """What gives the right figure without the agent."""

    within: float = 0.02
    """What rounding may add or take, as a share of the right figure."""

    slack: float = 0
    """The same as a number."""

    forky: Optional[By] = None
    """Whom it asks in Debian 14, where that is another."""

    forky_package: str = ""
    only: str = ""
    """The suite that has it, where not both do."""

    @property
    def name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.program} {self.figure}".lower()).strip("-")

    @property
    def tells_time(self) -> bool:
        """Whether a time namespace makes a difference to it."""
        return self.figure == "age" and self.by in (By.CLOCK, By.SYSINFO)

    def asks(self, suite: str) -> By:
        return self.forky if suite == "forky" and self.forky else self.by

    def packages(self, suite: str) -> list[str]:
        return (self.forky_package if suite == "forky" and self.forky_package else self.package).split()

    def value(self, printed: str) -> float:
        """The figure. ValueError when there is none."""
        match = re.search(self.find, printed, re.MULTILINE)
        if match is None:
            raise ValueError(f"{self.program} says no such thing as {self.find!r}: {printed[-2000:]!r}")
        unit = match[2] if match.re.groups > 1 else ""
        if self.figure == "age":
            return seconds(match[1])
        return float(match[1].replace(",", "")) * float(1024 ** " KMG".index((unit or " ")[0].upper()))

    def agrees(self, value: float, *moments: Seen) -> bool:
        """Whether the figure is right at one of these moments, or between them."""
        right = [self.right(moment) for moment in moments]
        return (
            min(right) * (1 - self.within) - self.slack - 1e-6
            <= value
            <= max(right) * (1 + self.within) + self.slack + 1e-6
        )


def block() -> int:
    """Bytes of a block of memory, as /sys has them: a container's limit is rounded up to whole ones."""
    return int(Path("/sys/devices/system/memory/block_size_bytes").read_text(), 16)


def seconds(text: str) -> float:
    """A time as programs write it: "75", "1m 15s", "1 min", "0:01:15", "1 day, 2:03"."""
    if re.fullmatch(r"[\d.]+", text):
        return float(text)
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1}
    total = sum(int(count) * units[unit] for count, unit in re.findall(r"(\d+) ?([dhms])", text))
    clock = re.search(r"(\d+):(\d\d)(?::(\d\d))?", text)
    return total + sum(int(part or 0) * unit for part, unit in zip(clock.groups(), (3600, 60, 1))) if clock else total


def memory(
    program: str, package: str, by: By, command: str, find: str, unit: int = 1, share: float = 1, **more: object
) -> Row:
    """A size of memory in units of so many bytes; where the program takes a share of it for itself, that share."""
    return Row(program, package, "memory", by, command, find, lambda seen: seen.memory * share / unit, **more)  # type: ignore[arg-type]


def cpus(program: str, package: str, by: By, command: str, find: str = r"^(\d+)$", **more: object) -> Row:
    return Row(program, package, "CPUs", by, command, find, lambda seen: seen.cpus, within=0, **more)  # type: ignore[arg-type]


def age(program: str, package: str, by: By, command: str, find: str, **more: object) -> Row:
    """Seconds since the start."""
    more.setdefault("slack", 2)
    return Row(program, package, "age", by, command, find, lambda seen: seen.age, **more)  # type: ignore[arg-type]


def load(program: str, package: str, by: By, command: str, find: str, **more: object) -> Row:
    """The load average of a minute."""
    more.setdefault("slack", 0.02)
    return Row(program, package, "load", by, command, find, lambda seen: seen.load, **more)  # type: ignore[arg-type]


GET = "python3 -c 'import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())'"
NODE_EXPORTER = f"prometheus-node-exporter >/dev/null 2>&1 & sleep 2; {GET} http://localhost:9100/metrics | grep ^node_"
SNMP = """
echo 'rocommunity public' >/tmp/snmpd.conf
snmpd -f -C -c /tmp/snmpd.conf -p /tmp/snmpd.pid -Lf /dev/null udp:127.0.0.1:1161 & sleep 2
snmpget -v2c -c public -On 127.0.0.1:1161 .1.3.6.1.2.1.25.2.2.0"""
COLLECTD = """
cat >/tmp/collectd.conf <<E
BaseDir "/tmp/collectd"
Interval 1
Hostname "box"
FQDNLookup false
LoadPlugin csv
LoadPlugin %s
<Plugin csv>
  DataDir "/tmp/collectd/csv"
</Plugin>
E
rm -rf /tmp/collectd; mkdir -p /tmp/collectd
timeout 4 collectd -f -C /tmp/collectd.conf >/tmp/collectd/log 2>&1
tail -q -n 1 /tmp/collectd/csv/*/*/*"""
MONIT = """
cat >/tmp/monitrc <<E
set daemon 1
set idfile /tmp/monit.id
set statefile /tmp/monit.state
set pidfile /tmp/monit.pid
set httpd unixsocket /tmp/monit.sock
    allow user:pass
check system box
E
chmod 600 /tmp/monitrc; monit -I -c /tmp/monitrc >/dev/null 2>&1 & sleep 3; monit -c /tmp/monitrc status"""
REDIS = """
redis-server --save '' --port 0 --unixsocket /tmp/redis.sock >/dev/null & sleep 1
redis-cli -s /tmp/redis.sock info memory"""
CONKY = """
echo 'conky.config = {out_to_x = false, out_to_console = true, total_run_times = 1}' >/tmp/conkyrc
echo 'conky.text = [[$memmax ${loadavg 1} $uptime]]' >>/tmp/conkyrc
conky -c /tmp/conkyrc"""
BATCH = """
rm -f /tmp/ran; atd -d -l 2 -b 1 >/dev/null 2>&1 & sleep 1
echo 'touch /tmp/ran' | batch 2>/dev/null; sleep 3; test -e /tmp/ran && echo 1 || echo 0"""
NGINX = """
printf 'worker_processes auto;\\nerror_log stderr;\\npid /tmp/nginx.pid;\\nevents {}\\n' >/tmp/nginx.conf
nginx -c /tmp/nginx.conf -g 'daemon off;' & sleep 1; pgrep --count --full 'nginx: [w]orker'"""
BIND = """
printf 'options { directory "/tmp"; listen-on port 5353 { 127.0.0.1; }; listen-on-v6 { none; };\\n' >/tmp/named.conf
printf 'recursion yes; max-cache-size 90%%; pid-file none; }; controls { };\\n' >>/tmp/named.conf
timeout 3 named -g -c /tmp/named.conf"""
CMAKE = """
echo 'cmake_host_system_information(RESULT m QUERY TOTAL_PHYSICAL_MEMORY)' >/tmp/host.cmake
echo 'cmake_host_system_information(RESULT c QUERY NUMBER_OF_LOGICAL_CORES)' >>/tmp/host.cmake
echo 'message("memory: ${m} cores: ${c}")' >>/tmp/host.cmake
cmake -P /tmp/host.cmake"""
GIT = """
rm -rf /tmp/git; git init -q /tmp/git; cd /tmp/git; git config user.name n; git config user.email e
for i in 1 2 3; do seq 2000 >f; echo $i >>f; git add f; git commit -qm $i; done
git rev-list --objects --all | git pack-objects --progress /tmp/git/pack 2>&1 | tr '\\r' '\\n' >/tmp/git/said
sed -n 's/.*using up to \\([0-9]*\\) threads.*/\\1/p' /tmp/git/said | grep . || echo 1"""
PYTEST = """
echo 'def test(): pass' >/tmp/test_it.py
python3 -m pytest -p no:cacheprovider -n logical /tmp/test_it.py >/tmp/said
grep -oE 'gw[0-9]+|created: [0-9]+' /tmp/said | sort -u | tail -n 1 | grep -oE '[0-9]+$' >/tmp/last
grep -q created /tmp/said && cat /tmp/last || echo $(($(cat /tmp/last) + 1))"""
TASKSET = """taskset -cp $$ | sed 's/.*: //; s/,/\\n/g' | awk -F- '{n += NF > 1 ? $2 - $1 + 1 : 1} END {print n}'"""
ERLANG = "erl -noshell -eval 'io:format(\"~p~n\", [{}]), halt().'"
MEMSUP = (
    "element(2, {application:ensure_all_started(os_mon),"
    " proplists:get_value(system_total_memory, memsup:get_system_memory_data())})"
)
WATERMARK = "vm_memory_monitor:get_total_memory()"


GO = """
package main
import ("fmt"; "os")
func main() { text, err := os.ReadFile("/proc/meminfo"); fmt.Print(string(text), err) }
"""
JAVA = """
import java.nio.file.*;
class M { public static void main(String[] a) throws Exception {
    System.out.print(Files.readString(Path.of("/proc/meminfo")));
} }
"""
HEAP = r" MaxHeapSize += (\d+) "


def heap(seen: Seen) -> float:
    """What a JVM takes of the memory that it sees."""
    return max(seen.memory / 4, min(seen.memory / 2, 126 * MIB))


def written(program: str, package: str, by: By, command: str, find: str = r"^(\d+)$", unit: int = 1) -> Row:
    """What was written to disks."""
    return Row(program, package, "disks", by, command, find, lambda seen: seen.written / unit, slack=4 * MIB / unit)


def python(module: str, figure: str) -> str:
    return f"python3 -c 'import {module}; print({figure})'"


ROWS = (
    # disks, before other programs write
    written("iostat", "sysstat", By.SYSFS, "iostat -d -k | awk '/^[a-z]/ {n += $7} END {print n}'", unit=KIB),
    written(
        "vmstat -d", "procps", By.FILE, "vmstat -d -n | awk '/^[a-z]/ && NR > 2 {n += $8} END {print n}'", unit=512
    ),
    written("vmstat", "procps", By.FILE, "vmstat -s", r"(\d+) K paged out", unit=KIB),
    written("psutil", "python3-psutil", By.FILE, python("psutil", "psutil.disk_io_counters().write_bytes")),
    # procps
    memory("free", "procps", By.FILE, "free -b", r"^Mem: +(\d+)"),
    memory("top", "procps", By.FILE, "top -b -n 1 -E k", r"^KiB Mem : +([\d.]+) total", unit=KIB),
    memory("vmstat -s", "procps", By.FILE, "vmstat -s", r"^ +(\d+) K total memory", unit=KIB),
    load("uptime", "procps", By.FILE, "uptime", r"load average: ([\d.]+)"),
    load("w", "procps", By.FILE, "w", r"load average: ([\d.]+)"),
    age("uptime", "procps", By.FILE, 'echo $(($(date +%s) - $(date +%s -d "$(uptime -s)")))', r"^(-?\d+)$", slack=3),
    age("ps", "procps", By.CLOCK, "ps -o etimes= -p 1", r"^ *(\d+)$", forky=By.FILE, cure='`uptime.source = "host"`'),
    # util-linux, coreutils, libc
    cpus("lscpu", "util-linux", By.SYSFS, "lscpu", r"^CPU\(s\): +(\d+)$"),
    cpus("taskset", "util-linux", By.AFFINITY, TASKSET),
    cpus("nproc", "coreutils", By.AFFINITY, "nproc", forky=By.CGROUP, cure="`OMP_NUM_THREADS=N`"),
    cpus("nproc --all", "coreutils", By.AFFINITY, "nproc --all"),
    cpus("getconf", "libc-bin", By.SYSFS, "getconf _NPROCESSORS_ONLN"),
    memory("getconf", "libc-bin", By.SYSINFO, "getconf _PHYS_PAGES", r"^(\d+)$", unit=4096),
    cpus("rust-coreutils", "rust-coreutils", By.CGROUP, "coreutils nproc"),
    # busybox
    memory("busybox free", "busybox-static", By.SYSINFO, "busybox free", r"^Mem: +(\d+)", unit=KIB),
    cpus("busybox nproc", "busybox-static", By.AFFINITY, "busybox nproc"),
    age(
        "busybox uptime",
        "busybox-static",
        By.SYSINFO,
        "busybox uptime",
        r"up +(.*?), +(?:\d+ users?, +)?load",
        slack=60,
    ),
    load("busybox uptime", "busybox-static", By.SYSINFO, "busybox uptime", r"load average: ([\d.]+)"),
    memory(
        "busybox top",
        "busybox-static",
        By.FILE,
        "busybox top -b -n 1 | awk '/^Mem:/ {print $2 + $4}'",
        r"^(\d+)$",
        unit=KIB,
    ),
    # monitors
    cpus("sar", "sysstat", By.SYSFS, "sar -u 1 1", r"\((\d+) CPU\)"),
    load("sar -q", "sysstat", By.FILE, "sar -q 1 1", r"^Average: +\d+ +\d+ +([\d.]+)", slack=0.1),
    memory(
        "sar -r", "sysstat", By.FILE, "sar -r 1 1 | awk '/^Average/ {print $2 + $4}'", r"^(\d+)$", unit=KIB, within=0.1
    ),
    cpus("nmon", "nmon", By.FILE, "nmon -F /tmp/nmon -s 1 -c 1; sleep 1; cat /tmp/nmon", r"^AAA,cpus,(\d+)"),
    cpus("mpstat", "sysstat", By.SYSFS, "mpstat", r"\((\d+) CPU\)"),
    memory("atop", "atop", By.FILE, "atop -P MEM 1 1 | awk '/^MEM/ {print $7 * $8}'", r"^(\d+)$"),
    memory("collectl", "collectl", By.FILE, "collectl -sm -c 1 --verbose", r"^ +(\d+)K", unit=KIB),
    memory(
        "dstat",
        "dstat",
        By.FILE,
        "dstat --mem --noheaders 1 1",
        r"^ *[\d.]+[MkB]? +(\d+)M",
        unit=MIB,
        within=0.12,
        only="bookworm",
    ),
    memory(
        "node_exporter", "prometheus-node-exporter", By.FILE, NODE_EXPORTER, r"^node_memory_MemTotal_bytes ([\d.e+]+)"
    ),
    load("node_exporter", "prometheus-node-exporter", By.FILE, NODE_EXPORTER, r"^node_load1 ([\d.]+)", slack=0.1),
    memory("net-snmp", "snmpd snmp", By.FILE, SNMP, r"INTEGER: (\d+)", unit=KIB),
    memory(
        "Munin",
        "munin-plugins-core",
        By.FILE,
        "MUNIN_LIBDIR=/usr/share/munin /usr/share/munin/plugins/memory config",
        r"--upper-limit (\d+)",
    ),
    load("collectd", "collectd-core", By.SYSINFO, COLLECTD % "load", r"^[\d.]+,([\d.]+),", slack=0.1, only="bookworm"),
    load(
        "check_load",
        "monitoring-plugins-basic",
        By.FILE,
        "/usr/lib/nagios/plugins/check_load -w 99 -c 99",
        r"load1=([\d.]+)",
    ),
    memory("Zabbix agent", "zabbix-agent", By.SYSINFO, "zabbix_agentd -t vm.memory.size[total]", r"\|(\d+)"),
    age("Zabbix agent", "zabbix-agent", By.SYSINFO, "zabbix_agentd -t system.uptime", r"\|(\d+)"),
    load("Zabbix agent", "zabbix-agent", By.SYSINFO, "zabbix_agentd -t system.cpu.load", r"\|([\d.]+)"),
    cpus("Zabbix agent", "zabbix-agent", By.SYSFS, "zabbix_agentd -t system.cpu.num", r"\|(\d+)"),
    load("monit", "monit", By.SYSINFO, MONIT, r"load average +\[([\d.]+)"),
    age(
        "uptimed",
        "uptimed",
        By.CLOCK,
        "mkdir -p /var/spool/uptimed; uptimed -b; uptimed -f & sleep 1; uprecords -b",
        r"-> +\d +(\d+ days, [\d:]+)",
    ),
    age(
        "tuptime",
        "tuptime",
        By.CLOCK,
        "tuptime -s -f /tmp/tuptime.db; tuptime -s -f /tmp/tuptime.db",
        r"System life:\s+(\d+)",
    ),
    memory("conky", "conky-cli", By.FILE, CONKY, r"^([\d.]+)([KMG])iB", within=0.03),
    load("conky", "conky-cli", By.FILE, CONKY, r"iB ([\d.]+) "),
    age("conky", "conky-cli", By.FILE, CONKY, r"iB [\d.]+ (\d.*)", slack=3),
    load(
        "i3status",
        "i3status",
        By.SYSINFO,
        "printf 'order += load\\nload {\\n format = \"%%1min\"\\n}\\n' >/tmp/i3; timeout 2 i3status -c /tmp/i3",
        r"^([\d.]+)",
    ),
    memory("procinfo", "procinfo", By.FILE, "procinfo", r"RAM: +(\d+)", unit=KIB),
    memory("smem", "smem", By.FILE, "smem -w -t | tail -n 1", r"^ +(\d+)", unit=KIB),
    # what shows a machine
    cpus("lstopo", "hwloc-nox", By.SYSFS, "lstopo-no-graphics --only pu | wc -l"),
    memory("lstopo", "hwloc-nox", By.SYSFS, "lstopo-no-graphics", r"^Machine \(([\d.]+)([MG])B"),
    memory("numactl", "numactl", By.SYSFS, "numactl -H", r"node 0 size: (\d+) MB", unit=MIB),
    memory("numastat", "numactl", By.SYSFS, "numastat -m", r"^MemTotal +([\d.]+)", unit=MIB),
    Row(
        "lsmem",
        "util-linux",
        "memory",
        By.SYSFS,
        "lsmem -b",
        r"Total online memory: +(\d+)",
        lambda seen: -(-seen.memory // block()) * block(),
        forky_package="util-linux-extra",
    ),
    memory("lshw", "lshw", By.SYSINFO, "lshw -quiet -class memory", r"size: (\d+)([MG])iB", within=0.05),
    memory("inxi", "inxi", By.FILE, "inxi -c 0 -m -y 200", r"total: ([\d.]+) ([MG])iB", within=0.1, only="bookworm"),
    memory("neofetch", "neofetch", By.FILE, "neofetch --off --stdout memory", r"/ (\d+)MiB", unit=MIB, only="bookworm"),
    memory(
        "fastfetch", "fastfetch", By.FILE, "fastfetch --pipe -s memory -l none", r"/ ([\d.]+) ([MG])iB", only="forky"
    ),
    memory("screenfetch", "screenfetch", By.FILE, "screenfetch -n -N", r"/ (\d+)MiB", unit=MIB),
    memory("linuxinfo", "linuxinfo", By.FILE, "linuxinfo", r"(\d+)M RAM", unit=MIB),
    cpus("slurmd", "slurmd", By.SYSFS, "slurmd -C", r"CPUs=(\d+)"),
    memory(
        "slurmd", "slurmd", By.SYSINFO, "slurmd -C", r"RealMemory=(\d+)", unit=MIB, cure="`RealMemory=` in slurm.conf"
    ),
    age("slurmd", "slurmd", By.SYSINFO, "slurmd -C", r"UpTime=0-(\S+)"),
    cpus("stressapptest", "stressapptest", By.SYSFS, "stressapptest -s 1 -M 8", r"nodes, (\d+) cpus"),
    memory(
        "Ansible",
        "ansible-core",
        By.FILE,
        "ansible localhost -m setup -a filter=ansible_memtotal_mb",
        r'memtotal_mb": (\d+)',
        unit=MIB,
    ),
    # languages
    cpus("Python", "python3", By.SYSFS, python("os", "os.cpu_count()")),
    load(
        "Python",
        "python3",
        By.SYSINFO,
        python("os", "os.getloadavg()[0]"),
        r"^([\d.]+)$",
        cure="reading `/proc/loadavg`",
    ),
    memory("psutil", "python3-psutil", By.FILE, python("psutil", "psutil.virtual_memory().total"), r"^(\d+)$"),
    cpus("psutil", "python3-psutil", By.SYSFS, python("psutil", "psutil.cpu_count()")),
    load("psutil", "python3-psutil", By.SYSINFO, python("psutil", "psutil.getloadavg()[0]"), r"^([\d.]+)$"),
    cpus("pytest -n logical", "python3-pytest-xdist python3-psutil", By.SYSFS, PYTEST),
    memory("Node.js", "nodejs", By.FILE, "node -p 'os.totalmem()'", r"^(\d+)$", within=0),
    cpus("Node.js", "nodejs", By.FILE, "node -p 'os.cpus().length'"),
    age("Node.js", "nodejs", By.FILE, "node -p 'os.uptime()'", r"^([\d.]+)$"),
    load("Node.js", "nodejs", By.FILE, "node -p 'os.loadavg()[0]'", r"^([\d.]+)$"),
    cpus("Node.js, parallelism", "nodejs", By.AFFINITY, "node -p 'os.availableParallelism()'", forky=By.CGROUP),
    memory(
        "libuv",
        "lua-luv lua5.4",
        By.FILE,
        'lua5.4 -e \'print(string.format("%d", require("luv").get_total_memory()))\'',
        r"^(\d+)$",
    ),
    Row(
        "Java",
        "openjdk-17-jre-headless",
        "heap",
        By.CGROUP,
        "java -XX:+PrintFlagsFinal -version",
        HEAP,
        heap,
        forky_package="openjdk-25-jre-headless",
    ),
    cpus(
        "Java",
        "openjdk-17-jre-headless",
        By.CGROUP,
        "java -Xlog:os+container=trace -version",
        r"active_processor_count: (\d+)",
        forky_package="openjdk-25-jre-headless",
    ),
    Row(
        "Java without container support",
        "openjdk-17-jre-headless",
        "heap",
        By.SYSINFO,
        "java -XX:-UseContainerSupport -XX:+PrintFlagsFinal -version",
        HEAP,
        heap,
        forky_package="openjdk-25-jre-headless",
        cure="`-XX:MaxRAM=SIZE`, `-Xmx`",
    ),
    cpus(
        "Java without container support",
        "openjdk-17-jre-headless",
        By.AFFINITY,
        "java -XX:-UseContainerSupport -XX:+UseParallelGC -XX:+PrintFlagsFinal -version",
        r" ParallelGCThreads += (\d+) ",
        forky_package="openjdk-25-jre-headless",
        cure="`-XX:ActiveProcessorCount=N`",
    ),
    cpus(
        "Go",
        "etcd-server",
        By.AFFINITY,
        "timeout 3 etcd --data-dir /tmp/etcd",
        r'(?:CPUs to |max-cpu-set":)(\d+)',
        cure="`GOMAXPROCS=N`",
    ),
    memory(
        "Go's os.ReadFile",
        "golang-go",
        By.FILE,
        f"echo '{GO}' >/tmp/m.go && HOME=/tmp GOGC=50 go run /tmp/m.go",
        r"^MemTotal: +(\d+)",
        KIB,
        only="bookworm",  # later ones compile their library first, for minutes
    ),
    memory(
        "Java's Files.readString",
        "openjdk-17-jdk-headless",
        By.FILE,
        f"echo '{JAVA}' >/tmp/M.java && java /tmp/M.java",
        r"^MemTotal: +(\d+)",
        KIB,
        forky_package="openjdk-25-jdk-headless",
    ),
    cpus("Ruby", "ruby", By.AFFINITY, "ruby -retc -e 'p Etc.nprocessors'"),
    load(
        "PHP", "php-cli", By.SYSINFO, "php -r 'echo sys_getloadavg()[0];'", r"^([\d.]+)", cure="reading `/proc/loadavg`"
    ),
    cpus("Perl's Sys::CPU", "libsys-cpu-perl", By.SYSFS, "perl -MSys::CPU -e 'print Sys::CPU::cpu_count()'", r"^(\d+)"),
    cpus("Perl's MCE", "libmce-perl", By.FILE, "perl -MMCE::Util -e 'print MCE::Util::get_ncpu()'", r"^(\d+)"),
    memory(
        "Perl's Sys::MemInfo",
        "libsys-meminfo-perl",
        By.SYSINFO,
        "perl -MSys::MemInfo=totalmem -e 'print totalmem()'",
        r"^(\d+)",
    ),
    load(
        "Perl's Sys::CpuLoad",
        "libsys-cpuload-perl",
        By.SYSINFO,
        "perl -MSys::CpuLoad -e 'print((Sys::CpuLoad::load())[0])'",
        r"^([\d.]+)",
    ),
    cpus(
        "Mono",
        "mono-csharp-shell",
        By.AFFINITY,
        "csharp -e 'print(System.Environment.ProcessorCount);'",
        only="bookworm",
    ),
    cpus("Erlang", "erlang-base", By.FILE, ERLANG.format("erlang:system_info(logical_processors_online)")),
    memory("Erlang's memsup", "erlang-os-mon", By.FILE, ERLANG.format(MEMSUP), r"^(\d+)$"),
    memory(
        "RabbitMQ's watermark",
        "rabbitmq-server",
        By.FILE,
        "cd /usr/lib/rabbitmq/lib/*/plugins; ERL_LIBS=$PWD " + ERLANG.format(WATERMARK),
        r"^(\d+)$",
    ),
    cpus(
        "OpenMP",
        "libgomp1",
        By.AFFINITY,
        python("ctypes", 'ctypes.CDLL("libgomp.so.1").omp_get_max_threads()'),
        cure="`OMP_NUM_THREADS=N`",
    ),
    cpus(
        "OpenBLAS",
        "libopenblas0-pthread",
        By.SYSFS,
        python("ctypes", 'ctypes.CDLL("libopenblas.so.0").openblas_get_num_threads()'),
        cure="`OPENBLAS_NUM_THREADS=N`",
    ),
    cpus(
        "OpenMPI",
        "openmpi-bin",
        By.SYSFS,
        "mpirun --allow-run-as-root --display-allocation true",
        r"slots=(\d+)",
        cure="`--host localhost:N`",
    ),
    # servers
    cpus("nginx", "nginx-light", By.SYSFS, NGINX, r"^(\d+)$", forky_package="nginx", cure="`worker_processes N;`"),
    cpus(
        "uWSGI",
        "uwsgi-core",
        By.SYSFS,
        "timeout 2 uwsgi --socket /tmp/uwsgi.sock --die-on-term",
        r"detected number of CPU cores: (\d+)",
    ),
    cpus("BIND", "bind9", By.AFFINITY, BIND, r"found (\d+) CPU", cure="`-n N`"),
    memory(
        "BIND", "bind9", By.SYSINFO, BIND, r"setting to (\d+)MB", unit=MIB, share=0.9, cure="`max-cache-size 200M;`"
    ),
    cpus("HAProxy", "haproxy", By.AFFINITY, "haproxy -vv", r"default=(\d+)\)", cure="`nbthread N`"),
    cpus(
        "MariaDB",
        "mariadb-server-core",
        By.AFFINITY,
        "mariadbd --no-defaults --verbose --help",
        r"^thread-pool-size +(\d+)",
        cure="`thread_pool_size = N`",
    ),
    memory(
        "redis",
        "redis-server",
        By.SYSINFO,
        REDIS,
        r"total_system_memory:(\d+)",
        cure="`maxmemory`: it sizes nothing by this figure",
    ),
    load("Exim", "exim4-daemon-light", By.FILE, "exim4 -be '$load_average' | awk '{print $1 / 1000}'", r"^([\d.]+)$"),
    # builds
    load(
        "make -l",
        "make",
        By.SYSINFO,
        "printf 'all: a b\\na b:\\n\\t@sleep 1\\n' >/tmp/Makefile; make -f /tmp/Makefile -j 2 -l 99 --debug=j",
        r"actual = ([\d.]+)",
        slack=0.3,
        only="bookworm",
    ),
    Row(
        "ninja",
        "ninja-build",
        "jobs",
        By.CGROUP,
        "ninja -h",
        r"default=(\d+) on this",
        lambda seen: {1: 2, 2: 3}.get(seen.cpus, seen.cpus + 2),
        cure="`-j N`",
    ),
    cpus("GNU parallel", "parallel", By.FILE, "parallel --number-of-threads"),
    memory("cmake", "cmake", By.FILE, CMAKE, r"memory: (\d+)", unit=MIB),
    cpus("cmake", "cmake", By.FILE, CMAKE, r"cores: (\d+)"),
    cpus("git", "git", By.SYSFS, GIT, cure="`pack.threads`"),
    cpus("rpm", "rpm", By.AFFINITY, "rpm --eval '%{getncpus}'", cure="`RPM_BUILD_NCPUS=N`, for `%_smp_build_ncpus`"),
    Row(
        "gcc's collector",
        "cpp-12",
        "memory",
        By.SYSINFO,
        "$(ls /usr/lib*/gcc/x86_64-linux-gnu/*/cc1 | head -n 1) -E -version -quiet /dev/null",
        r"ggc-min-heapsize=(\d+)",
        lambda seen: min(seen.memory / 8, 128 * MIB) / KIB,
        forky_package="cpp-15",
        cure="`--param ggc-min-heapsize=KB`",
    ),
    # compression and pictures
    memory("xz", "xz-utils", By.SYSINFO, "xz --info-memory", r"RAM\): +.*\(([\d,]+) B\)", cure="`-M 100MiB`, `-T N`"),
    cpus(
        "zstd -T0",
        "zstd",
        By.FILE,
        "head -c 10000 /dev/zero | zstd -T0 --auto-threads=logical -vv -c 2>&1 >/dev/null",
        r"(\d+) logical core",
    ),
    cpus("pbzip2", "pbzip2", By.SYSFS, "pbzip2 -kvf -c /etc/passwd 2>&1 >/dev/null", r"# CPUs: (\d+)"),
    cpus("7-Zip", "7zip", By.SYSFS, "$(type -P 7zz 7z | head -n 1) i | head -n 5", r"Threads:(\d+)"),
    memory("lrzip", "lrzip", By.SYSINFO, "cp /etc/passwd /tmp/p; lrzip -vv -f /tmp/p", r"Detected (\d+) bytes ram"),
    cpus(
        "lrzip",
        "lrzip",
        By.SYSFS,
        "cp /etc/passwd /tmp/p; lrzip -vv -f /tmp/p",
        r"Number of CPUs detected: (\d+)",
        only="bookworm",
    ),
    cpus(
        "mksquashfs",
        "squashfs-tools",
        By.SYSFS,
        "mksquashfs /etc/default /tmp/s.squashfs -noappend -no-progress",
        r"Using (\d+) processor",
        cure="`-processors N`",
        forky=By.AFFINITY,
    ),
    cpus(
        "ImageMagick",
        "imagemagick",
        By.AFFINITY,
        "identify -list resource",
        r"Thread: (\d+)",
        cure="`MAGICK_THREAD_LIMIT=N`",
        only="bookworm",
    ),
    cpus(
        "GraphicsMagick",
        "graphicsmagick",
        By.AFFINITY,
        "gm convert -list resource",
        r"Threads: +(\d+)",
        cure="`OMP_NUM_THREADS=N`",
    ),
    memory(
        "GraphicsMagick",
        "graphicsmagick",
        By.SYSINFO,
        "gm convert -list resource",
        r"Memory: +([\d.]+)([MG])i",
        within=0.05,
        cure="`MAGICK_LIMIT_MEMORY=100MB`",
    ),
    cpus("PARI", "pari-gp", By.SYSFS, "echo 'print(default(nbthreads))' | gp -qf"),
    Row(
        "at's batch",
        "at",
        "runs, load < 2",
        By.SYSINFO,
        BATCH,
        r"^(\d)$",
        lambda seen: seen.load < 2,
        cure="`atd -l LOAD`",
    ),
    # load generators
    cpus("stress-ng", "stress-ng", By.SYSFS, "stress-ng --cpu 0 --cpu-ops 1", r"dispatching hogs: (\d+) cpu"),
)


def rows(suite: str) -> Iterator[Row]:
    """Yield those of a suite."""
    for row in ROWS:
        if row.only in ("", suite):
            yield row
