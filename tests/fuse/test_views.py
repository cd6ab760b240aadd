"""What a sandbox sees through a real mount, with each engine."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import psutil
import pytest

from lxcfs_py.runtimes.sandbox import Sandbox, SandboxError
from lxcfs_py.views import VIEWS
from tests.conftest import Daemon

MIB = 1 << 20
FILES = [name for name in VIEWS if Path("/", name).exists()]

MakeSandbox = Callable[..., Sandbox]


def fields(text: str) -> dict[str, int]:
    """The fields of a /proc/meminfo."""
    return {line.split()[0][:-1]: int(line.split()[1]) for line in text.splitlines()}


def shape(text: str) -> str:
    """A text without its figures, which change from one read to the next."""
    return re.sub(r" *\d+(\.\d+)?", " 0", text)


def read(box: Sandbox, path: str) -> str:
    return box.run(["cat", path]).stdout


def test_a_container_sees_its_memory_limit(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(memory=256 * MIB, swap=0, views=daemon.mountpoint)
    words = box.run(["free", "-b"]).stdout.split("Mem:")[1].split()
    assert int(words[0]) == 256 * MIB
    meminfo = fields(read(box, "/proc/meminfo"))
    assert 0 <= meminfo["MemFree"] <= meminfo["MemAvailable"] <= meminfo["MemTotal"]
    assert meminfo["SwapTotal"] == 0


@pytest.mark.parametrize("limit", [None, 1024 * MIB])
def test_programs_of_all_kinds_see_the_same_memory_in_use(daemon: Daemon, sandbox: MakeSandbox, limit: int) -> None:
    box = sandbox(memory=limit, views=daemon.mountpoint)
    script = """
        import sys
        kept = bytearray(300 << 20)
        kept[::4096] = b"x" * len(kept[::4096])
        with open(sys.argv[1], "wb+") as file:
            for _ in range(200):
                file.write(bytes(1 << 20))
            print(open("/proc/meminfo").read(), end="")
    """
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        command = [sys.executable, "-c", textwrap.dedent(script), file.name]
        now = fields(box.run(command, check=True).stdout)
    with_available = now["MemTotal"] - now["MemAvailable"]
    without = now["MemTotal"] - now["MemFree"] - now["Buffers"] - now["Cached"] - now["SReclaimable"]
    least = now["AnonPages"]
    assert least >= 300 * 1024
    assert abs(with_available - without) <= now["MemTotal"] * 0.02
    if limit:
        assert least <= with_available <= least + now["MemTotal"] * 0.02
    else:
        host = fields(Path("/proc/meminfo").read_text())
        assert now["MemAvailable"] <= host["MemTotal"] - least


def test_limits_changed_while_it_runs_are_seen_at_the_next_read(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)
    for memory, cpus in ((256, 1), (128, 2), (512, 1)):
        box.limit(memory=memory * MIB, cpus=cpus)
        assert fields(read(box, "/proc/meminfo"))["MemTotal"] == memory * 1024
        assert read(box, "/proc/cpuinfo").count("processor\t:") == cpus
        assert read(box, "/proc/stat").count("cpu") == cpus + 1
        assert len(box.run(["sh", "-c", "ls -d /sys/devices/system/cpu/cpu[0-9]*"]).stdout.split()) == cpus
    box.limit(memory=None)
    host = fields(Path("/proc/meminfo").read_text())
    assert fields(read(box, "/proc/meminfo"))["MemTotal"] == host["MemTotal"]


def test_a_container_with_a_parent_limit_sees_the_smaller_one(daemon: Daemon, sandbox: MakeSandbox) -> None:
    parent = sandbox(memory=128 * MIB, cpus=1)
    box = sandbox(memory=512 * MIB, views=daemon.mountpoint, parent=parent)
    assert fields(read(box, "/proc/meminfo"))["MemTotal"] == 128 * 1024
    assert read(box, "/proc/cpuinfo").count("processor\t:") == 1
    parent.limit(memory=1024 * MIB)
    assert fields(read(box, "/proc/meminfo"))["MemTotal"] == 512 * 1024


def test_a_container_sees_its_own_age_load_and_cpu_time(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(cpus=1, views=daemon.mountpoint)
    burn = "end=$(($(date +%s) + 2)); while [ $(date +%s) -lt $end ]; do :; done"
    box.run(["sh", "-c", burn])
    age, idle = map(float, read(box, "/proc/uptime").split())
    assert 1 < age < 30
    total, *cpus = [line.split() for line in read(box, "/proc/stat").splitlines() if line.startswith("cpu")]
    assert len(cpus) == 1
    assert total[1:] == cpus[0][1:]
    used = (int(total[1]) + int(total[3])) / os.sysconf("SC_CLK_TCK")
    cgroup = sum(_cpu_time(box))
    assert used == pytest.approx(cgroup, rel=0.05, abs=0.1)
    assert idle <= age - used + 0.2
    assert _line(read(box, "/proc/stat"), "btime") == _line(Path("/proc/stat").read_text(), "btime")
    assert read(box, "/proc/loadavg").startswith("0.")


@pytest.mark.slow
def test_a_container_that_uses_all_of_its_quota_is_busy_all_of_the_time(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(cpus=0.2, views=daemon.mountpoint)
    script = textwrap.dedent("""
        import time
        def times():
            user, nice, system, idle = map(int, open("/proc/stat").readline().split()[1:5])
            return user + nice + system, idle
        before, end = times(), time.monotonic() + 2
        while time.monotonic() < end:
            pass
        busy, idle = (now - then for now, then in zip(times(), before))
        print(busy / (busy + idle))
    """)
    assert float(box.run([sys.executable, "-c", script]).stdout) > 0.85
    time.sleep(1)
    script = script.replace("while time.monotonic() < end:\n    pass", "time.sleep(2)")
    assert float(box.run([sys.executable, "-c", script]).stdout) < 0.2


@pytest.fixture
def two_cpus(require: Callable[[object, str], None]) -> None:
    require(Path("/sys/devices/system/cpu/cpu1").exists(), "two CPUs")


@pytest.mark.usefixtures("two_cpus")
def test_a_container_that_is_pinned_to_a_cpu_sees_that_cpu_and_no_other(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(cpuset="1", cpus=0.5, views=daemon.mountpoint)
    assert re.findall(r"^processor\t: (\d+)", read(box, "/proc/cpuinfo"), re.MULTILINE) == ["1"]
    assert re.findall(r"^cpu(\d+)", read(box, "/proc/stat"), re.MULTILINE) == ["1"]
    assert read(box, "/sys/devices/system/cpu/online") == "1\n"
    assert box.run(["sh", "-c", "taskset -c $(cat /sys/devices/system/cpu/online) nproc"]).stdout == "1\n"


@pytest.fixture
def on_disk(require: Callable[[object, str], None]) -> Iterator[Path]:
    """A directory on a disk; /tmp is in memory since Debian 13."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="lxcfs-py-") as name:
        require(os.major(os.stat(name).st_dev), "/var/tmp on a disk")
        yield Path(name)


def test_a_container_sees_its_own_disk_io(daemon: Daemon, sandbox: MakeSandbox, on_disk: Path) -> None:
    box = sandbox(views=daemon.mountpoint)
    have_io_counted(box, on_disk)
    target = on_disk / "file"
    box.run(["dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=8", "oflag=direct"], check=True)
    lines = [line.split() for line in read(box, "/proc/diskstats").splitlines()]
    host = [line.split()[:3] for line in Path("/proc/diskstats").read_text().splitlines()]
    assert [line[:3] for line in lines] == host
    assert sum(int(line[9]) for line in lines) * 512 == pytest.approx(8 * MIB, rel=0.05)


def test_nothing_of_another_container_is_seen(daemon: Daemon, sandbox: MakeSandbox) -> None:
    boxes = [sandbox(memory=size * MIB, views=daemon.mountpoint) for size in (64, 96, 160)]
    with ThreadPoolExecutor() as pool:
        for _ in range(5):
            texts = list(pool.map(lambda box: read(box, "/proc/meminfo"), boxes))
            assert [fields(text)["MemTotal"] for text in texts] == [64 * 1024, 96 * 1024, 160 * 1024]


def test_reading_from_the_host_shows_the_host(daemon: Daemon) -> None:
    def names(text: str) -> list[str]:
        return [line.split()[0] for line in text.splitlines()]

    for name in FILES:
        assert len((daemon.mountpoint / name).read_text()) > 0
    host, seen = (Path(root, "proc/meminfo").read_text() for root in ("/", daemon.mountpoint))
    assert fields(seen)["MemTotal"] == fields(host)["MemTotal"]
    assert names(seen) == names(host)
    up, seen_up = (float(Path(root, "proc/uptime").read_text().split()[0]) for root in ("/", daemon.mountpoint))
    assert abs(up - seen_up) < 5


def test_64_readers_at_once_get_whole_consistent_files(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)
    script = textwrap.dedent("""
        import sys, concurrent.futures
        def check(number):
            for _ in range(20):
                memory = open("/proc/meminfo").read()
                assert memory.startswith("MemTotal:         262144 kB\\n") and memory.endswith("\\n"), memory
                stat = [line.split() for line in open("/proc/stat").read().splitlines()]
                assert stat[0][1:] == stat[1][1:] and stat[-1][0] == "softirq", stat
                assert open("/proc/cpuinfo").read().count("processor") == 1
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            list(pool.map(check, range(64)))
        print("whole")
    """)
    answer = box.run([sys.executable, "-c", script])
    assert answer.stdout == "whole\n", answer.stderr


@pytest.mark.parametrize("name", FILES)
def test_small_reads_at_odd_offsets_get_one_consistent_text(daemon: Daemon, sandbox: MakeSandbox, name: str) -> None:
    box = sandbox(memory=256 * MIB, cpus=1, views=daemon.mountpoint)
    by_bytes = box.run(["sh", "-c", f"dd if=/{name} bs=1 2>/dev/null"]).stdout
    at_once = read(box, f"/{name}")
    assert shape(by_bytes) == shape(at_once)
    assert by_bytes.endswith("\n")


def test_a_rewind_renders_afresh_and_a_read_past_the_end_is_empty(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(views=daemon.mountpoint)
    script = textwrap.dedent("""
        import os, time
        fd = os.open("/proc/uptime", os.O_RDONLY)
        first = os.pread(fd, 100, 0)
        assert os.pread(fd, 100, len(first)) == b"" and os.pread(fd, 100, 5000) == b""
        assert os.pread(fd, 100, 2) == first[2:]
        time.sleep(0.05)
        again = os.pread(fd, 100, 0)
        assert float(again.split()[0]) > float(first.split()[0]), (first, again)
        assert os.pread(fd, 3, 1) == again[1:4]
        print("afresh")
    """)
    answer = box.run([sys.executable, "-c", script])
    assert answer.stdout == "afresh\n", answer.stderr


def test_opening_for_writing_is_refused(daemon: Daemon) -> None:
    for flags in (os.O_WRONLY, os.O_RDWR):
        with pytest.raises(PermissionError) as refused:
            os.open(daemon.mountpoint / "proc/meminfo", flags)
        assert refused.value.errno == errno.EACCES


_CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "chown": (lambda views: os.chown(views / "proc/meminfo", 0, 0), errno.EROFS),
    "chmod": (lambda views: os.chmod(views / "proc/pressure/cpu", 0o600), errno.EROFS),
    "utime": (lambda views: os.utime(views / "proc/pressure/cpu", (1, 1)), errno.EROFS),
    "truncate": (lambda views: os.truncate(views / "proc/meminfo", 0), errno.EACCES),
    "create": (lambda views: (views / "proc/new").write_text(""), errno.EACCES),
    "unlink": (lambda views: (views / "proc/meminfo").unlink(), errno.EOVERFLOW),
}
"""What is tried, and what is said to it: some of that by the kernel alone, as nobody has the files' user."""


@pytest.mark.parametrize(("change", "number"), _CHANGES.values(), ids=_CHANGES)
def test_changes_are_refused_alike_by_both_engines(
    daemon: Daemon, change: Callable[[Path], object], number: int
) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as refused:
        change(daemon.mountpoint)
    assert refused.value.errno == number


def test_a_file_takes_as_many_blocks_as_its_size(daemon: Daemon) -> None:
    for name in ("meminfo", "stat", "cpuinfo"):
        status = (daemon.mountpoint / "proc" / name).stat()
        assert status.st_blocks * 512 == status.st_size > 0


@pytest.mark.usefixtures("two_cpus")
def test_the_cpu_directory_is_the_hosts_with_the_visible_cpus(daemon: Daemon, sandbox: MakeSandbox) -> None:
    host = Path("/sys/devices/system/cpu")
    box = sandbox(cpuset="0", views=daemon.mountpoint)
    names = box.run(["ls", "/sys/devices/system/cpu"]).stdout.split()
    assert sorted(names) == sorted(path.name for path in host.iterdir() if path.name != "cpu1")
    assert read(box, "/sys/devices/system/cpu/online") == "0\n"
    assert read(box, "/sys/devices/system/cpu/cpu0/topology/core_id") == (host / "cpu0/topology/core_id").read_text()
    assert "No such file" in box.run(["cat", "/sys/devices/system/cpu/cpu1/topology/core_id"]).stderr
    assert box.run(["getconf", "_NPROCESSORS_ONLN"]).stdout == "1\n"


LOOKS = """
import errno, os, sys
directory, file = sys.argv[1:]
for path, *looks in (directory, os.listdir, os.chdir), (file,):
    for look in (os.stat, os.lstat, lambda path: os.open(path, os.O_RDONLY), *looks):
        try:
            look(path)
        except OSError as error:
            assert error.errno == errno.ENOENT, (look, path, error)
        else:
            raise AssertionError((look, path))
    assert not os.access(path, os.F_OK)
"""


@pytest.mark.usefixtures("two_cpus")
def test_what_a_container_has_mounted_below_a_cpu_stays_when_another_looks_for_that_cpu_in_vain(
    start_daemon: Callable[..., Daemon], sandbox: MakeSandbox, tmp_path: Path
) -> None:
    """For a name that is not there any more, the kernel unmounts what is below it, in every mount namespace."""
    views = start_daemon("kernel").mountpoint
    first, second = (sandbox(cpuset=cpu, views=views) for cpu in "01")
    (tmp_path / "masked").write_text("masked")
    core = "/sys/devices/system/cpu/cpu0/topology/core_id"
    first.run(["mount", "--bind", str(tmp_path / "masked"), core], check=True)
    assert read(first, core) == "masked"
    looks = second.run([sys.executable, "-c", LOOKS, "/sys/devices/system/cpu/cpu0", core])
    assert not looks.returncode, looks.stderr
    assert "cpu0" not in second.run(["ls", "/sys/devices/system/cpu"]).stdout.split()
    assert read(first, core) == "masked"


@pytest.mark.slow
def test_10000_short_lived_containers_leave_nothing_behind(daemon: Daemon, sandbox: MakeSandbox) -> None:
    server = psutil.Process(daemon.process.pid)
    script = textwrap.dedent("""
        import os, sys
        from lxcfs_py.linux import syscalls
        path, count = sys.argv[1], int(sys.argv[2])
        for number in range(count):
            worker = os.fork()
            if not worker:
                syscalls.unshare(syscalls.CLONE_NEWPID)
                init = os.fork()
                if not init:
                    fd = os.open(path, os.O_RDONLY)
                    os._exit(0 if os.read(fd, 65536) and not os.read(fd, 65536) else 1)
                os._exit(os.waitpid(init, 0)[1] >> 8)
            if os.waitpid(worker, 0)[1]:
                sys.exit(f"container {number} could not read")
    """)

    def containers(count: int) -> None:
        arguments = [sys.executable, "-c", script, str(daemon.mountpoint / "proc/uptime"), str(count)]
        subprocess.run(arguments, check=True, timeout=300)

    def settled() -> int:
        """The server's descriptors, once it has dropped the containers that have ended."""
        deadline, fds = time.monotonic() + 10, -1
        while fds != server.num_fds() and time.monotonic() < deadline:
            fds = server.num_fds()
            time.sleep(0.5)
        return fds

    containers(5_000)  # what is kept for a while, of so many readers at the most, has come to be as much as it can
    before = settled(), server.num_threads(), server.memory_info().rss
    containers(10_000)
    after = settled(), server.num_threads(), server.memory_info().rss
    print("descriptors, threads, bytes:", before, after)
    assert after[0] <= before[0] + 10
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] + 2 * MIB


def have_io_counted(box: Sandbox, directory: Path) -> None:
    """Have cgroup v1 count the I/O of a directory's disk: it does so once some cgroup has had a limit there.

    The limit ends with the sandbox's cgroup.
    """
    with contextlib.suppress(SandboxError, FileNotFoundError):  # v2 always counts
        limits = box.cgroup("blkio") / "blkio.throttle.write_iops_device"
        device = directory.stat().st_dev
        limits.write_text(f"{os.major(device)}:{os.minor(device)} 1000000")


def _cpu_time(box: Sandbox) -> tuple[float, float]:
    """User and system seconds, as the cgroup's own files say."""
    usage = box.cgroup("cpuacct") / "cpuacct.usage_all"
    with contextlib.suppress(OSError):
        numbers = [line.split() for line in usage.read_text().splitlines()[1:]]
        return sum(int(user) for _, user, _ in numbers) / 1e9, sum(int(system) for _, _, system in numbers) / 1e9
    stat = dict(line.split() for line in (box.cgroup("cpu") / "cpu.stat").read_text().splitlines())
    return int(stat["user_usec"]) / 1e6, int(stat["system_usec"]) / 1e6


def _line(text: str, name: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith(name))


# Trees of the machine's sysfs


@pytest.mark.usefixtures("two_cpus")
def test_programs_that_ask_for_cpus_and_nodes_tell_one_story(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(cpuset="1", cpus=0.5, memory=300 * MIB, views=daemon.mountpoint)

    def says(*command: str) -> str:
        return box.run(command, check=True, env={**os.environ, "LC_ALL": "C"}).stdout

    listed = dict(line.split(":", 1) for line in says("lscpu").splitlines() if ":" in line)
    assert (
        listed["CPU(s)"].strip() == listed["NUMA node0 CPU(s)"].strip() == listed["Thread(s) per core"].strip() == "1"
    )
    assert [line.split()[0] for line in says("lscpu", "-e").splitlines()[1:]] == ["1"]
    assert says("getconf", "_NPROCESSORS_ONLN") == "1\n"
    assert says("taskset", "-cp", "1").split(":")[1].strip() == "1"
    node = Path("/sys/devices/system/node/node0")
    assert read(box, f"{node}/cpulist") == "1\n"
    assert read(box, f"{node}/meminfo").startswith(f"Node 0 MemTotal:       {300 * 1024:8} kB\n")


def test_lsmem_counts_blocks_of_memory_that_hold_the_limit(daemon: Daemon, sandbox: MakeSandbox, require: Any) -> None:
    require(shutil.which("lsmem"), "lsmem")
    box = sandbox(memory=300 * MIB, views=daemon.mountpoint)
    told = box.run(["lsmem"], check=True, env={**os.environ, "LC_ALL": "C"}).stdout
    assert re.search(r"^Total online memory: +384M$", told, re.MULTILINE)


def test_disks_say_the_same_by_every_way_and_all_else_is_the_machines(
    daemon: Daemon, sandbox: MakeSandbox, on_disk: Path
) -> None:
    box, idle = (sandbox(views=daemon.mountpoint) for _ in range(2))
    have_io_counted(box, on_disk)
    box.run(["dd", "if=/dev/zero", f"of={on_disk / 'file'}", "bs=1M", "count=8", "oflag=direct"], check=True)

    def rows() -> list[list[str]]:
        return [line.split() for line in read(box, "/proc/diskstats").splitlines()]

    def figures_of(disk: str) -> list[str]:
        (figures,) = (figures for _, _, name, *figures in rows() if name == disk)
        return figures

    disks = [row for row in rows() if Path("/sys/block", row[2]).exists()]
    for major, minor, name, *figures in disks:
        for way in (f"block/{name}", f"class/block/{name}", f"dev/block/{major}:{minor}"):
            shown = read(box, f"/sys/{way}/stat").split()
            after = figures_of(name)  # cat may have been read from the disk itself
            assert len(figures) == len(shown) == len(after)
            assert all(int(low) <= int(seen) <= int(high) for low, seen, high in zip(figures, shown, after))
            assert set(read(idle, f"/sys/{way}/stat").split()) == {"0"}
            for file in ("size", "removable", "queue/rotational", "dev"):
                assert read(box, f"/sys/{way}/{file}") == Path("/sys", way, file).read_text()
    assert sum(int(figures[6]) for _, _, _, *figures in disks) * 512 == pytest.approx(8 * MIB, rel=0.01)
    columns = ["lsblk", "-o", "NAME,MAJ:MIN,RM,SIZE,RO,TYPE,ROTA,MODEL"]  # SCHED is nonsense where a disk has none
    assert box.run(columns, check=True).stdout == subprocess.run(columns, text=True, capture_output=True).stdout


def test_modes_of_the_trees_are_the_machines_without_leave_to_write(daemon: Daemon, sandbox: MakeSandbox) -> None:
    box = sandbox(views=daemon.mountpoint)
    script = "find -P /sys/devices/system/cpu/ /sys/devices/system/node/ -printf '%p %y%m\\n'"
    seen = dict(line.rsplit(" ", 1) for line in box.run(["sh", "-c", script]).stdout.splitlines())
    assert len(seen) > 50
    for path, mode in seen.items():
        own = os.lstat(path).st_mode
        permissions = stat.S_IMODE(own) if stat.S_ISLNK(own) else stat.S_IMODE(own) & ~0o222
        if path.rstrip("/") not in ("/sys/devices/system/cpu", "/sys/devices/system/node"):
            assert mode[1:] == f"{permissions:o}", path


def test_iostat_shows_what_a_container_writes_and_nothing_in_an_idle_one(
    daemon: Daemon, sandbox: MakeSandbox, on_disk: Path, require: Callable[[object, str], None]
) -> None:
    require(shutil.which("iostat"), "iostat, of the package sysstat")
    boxes = busy, also_busy, idle = [sandbox(views=daemon.mountpoint) for _ in range(3)]
    have_io_counted(busy, on_disk)
    sizes = {busy: 24, also_busy: 8, idle: 0}
    before = _written(Path("/proc/diskstats").read_text())
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, "LC_ALL": "C"}}
    reports = {box: box.popen(["iostat", "-x", "-k", "-y", "4", "1"], **options) for box in boxes}
    time.sleep(1)
    for box, size in sizes.items():
        if size:
            file = on_disk / str(size)
            box.run(["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={size}", "oflag=direct"], check=True)
    shown = {}
    for box, report in reports.items():
        rows = [line.split() for line in report.communicate()[0].splitlines()]
        header = next(row for row in rows if row[:1] == ["Device"])
        shown[box] = sum(float(row[header.index("wkB/s")]) for row in rows[rows.index(header) + 1 :] if row) * 4 / 1024
    after = _written(Path("/proc/diskstats").read_text())
    for box, size in sizes.items():
        assert shown[box] == pytest.approx(size, rel=0.05)  # the four seconds may be some hundredths longer
    assert sum(shown.values()) <= (after - before) / MIB * 1.01


def _written(diskstats: str) -> int:
    """Bytes written to all disks."""
    rows = [line.split() for line in diskstats.splitlines()]
    return sum(int(row[9]) * 512 for row in rows if Path("/sys/block", row[2]).exists())


def test_vmstat_counts_what_a_container_reads_and_writes(daemon: Daemon, sandbox: MakeSandbox, on_disk: Path) -> None:
    box, idle = (sandbox(memory=256 * MIB, views=daemon.mountpoint) for _ in range(2))
    have_io_counted(box, on_disk)

    def paged(box: Sandbox) -> tuple[int, int]:
        figures = dict(line.split() for line in read(box, "/proc/vmstat").splitlines())
        return int(figures["pgpgin"]), int(figures["pgpgout"])

    before = paged(box)
    file = str(on_disk / "file")
    box.run(["dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=16", "oflag=direct"], check=True)
    box.run(["dd", f"if={file}", "of=/dev/null", "bs=1M", "count=8", "iflag=direct"], check=True)
    assert paged(box)[0] - before[0] == pytest.approx(8 * 1024, rel=0.01)
    assert paged(box)[1] - before[1] == pytest.approx(16 * 1024, rel=0.01)
    assert paged(idle)[1] == 0
    table = box.run(["vmstat", "-s"], check=True).stdout
    assert "K paged in" in table
