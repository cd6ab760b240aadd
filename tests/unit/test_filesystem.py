"""The mounted tree, and what its files say: the operations as an engine calls them, without any mount."""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lxcfs_py.cgroup import open_cgroup
from lxcfs_py.cgroup.layout import find
from lxcfs_py.config import Config, Cpu, Files, Loadavg
from lxcfs_py.daemon.call_figures import CallFigures
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.files import DIRECTORIES, NAMES
from lxcfs_py.linux import capabilities, personality
from lxcfs_py.linux.kernel_files import HeldDirectory, KernelDirectory
from lxcfs_py.views import VIEWS, sys_cpu

SYS_CPU = f"/{sys_cpu.TREE.name}"
READER, STRANGER = 4711, 1  # a process in the container, and one of the host


class Containers:
    """The container of the one reader; forgetting it finds it again as `again` says."""

    def __init__(self, container, again=None) -> None:
        self.container = container
        self.again = again or (lambda: container)
        self.forgotten = 0
        self.offset = 0

    def of(self, pid):
        return self.container if pid == READER else None

    def named(self, name, init):
        return self.container if (name, init) == (self.container.load.name, self.container.init) else None

    def boottime_offset(self, pid):
        return self.offset

    def forget(self, pid, error=None):
        self.forgotten += 1
        self.container = self.again()


@pytest.fixture
def mounted(recorded):
    """mounted(name) is what is mounted on that recorded machine."""

    def mount(name="v1-2cpu", config=Config()):  # noqa: B008 - it is immutable
        machine = recorded(name)
        filesystem = Filesystem(machine.host, Containers(machine.container), config)
        filesystem.machine = machine
        return filesystem

    return mount


def read(filesystem: Filesystem, path: str, caller: int = READER) -> bytes:
    filesystem.open(caller, path, os.O_RDONLY)
    return filesystem.render(caller, path)


def sees(filesystem: Filesystem, path: str, caller: int = READER) -> bool:
    try:
        filesystem.getattr(caller, path)
    except FileNotFoundError:
        return False
    return True


# Reading


def test_what_a_container_reads_is_about_as_long_as_the_machines_text(mounted):
    filesystem = mounted()
    lengths = filesystem.lengths()
    for name in filter(filesystem.machine.has, VIEWS):
        assert lengths[f"/{name}"] == len(read(filesystem, f"/{name}", STRANGER))


def test_a_container_reads_its_own_text_and_the_host_the_machines(mounted):
    filesystem = mounted()
    for name in filter(filesystem.machine.has, VIEWS):
        assert b"262144 kB" in read(filesystem, "/proc/meminfo")
        machines = filesystem.machine.own(name)
        if name == "proc/slabinfo":  # which the kernel shows to root alone
            machines = b"".join(machines.splitlines(keepends=True)[:2])
        assert read(filesystem, f"/{name}", STRANGER) == machines
    assert read(filesystem, f"{SYS_CPU}/online", STRANGER) == b"0-1\n"


def test_times_since_boot_are_those_of_the_readers_time_namespace(mounted):
    """As with `unshare --time --boottime 100000`, whatever namespace the container's init is in."""
    filesystem = mounted()
    filesystem._containers.offset = 100_000 * 10**9
    host = filesystem.machine.host
    assert f"\nbtime {host.btime - 100_000}\n" in read(filesystem, "/proc/stat").decode()
    assert float(read(filesystem, "/proc/uptime").split()[0]) == round(host.clock / 1e9, 2) + 100_000
    assert CallFigures(filesystem).sysinfo(READER).uptime == host.clock / 1e9 + 100_000


def test_a_trigger_is_for_the_cgroup_that_init_is_in_by_now_as_long_as_init_lives(mounted, monkeypatch):
    monkeypatch.setattr(capabilities, "has", lambda pid, capability: True)
    filesystem = mounted("v2-64cpu")
    container = filesystem.machine.container
    triggers = [
        filesystem.trigger(caller, "/proc/pressure/io", b"some 150000 1000000\0") for caller in (READER, STRANGER)
    ]
    assert [filesystem.renewed(trigger) for trigger in triggers] == triggers
    paths = {key: f"{path}/elsewhere" for key, path in container.paths.items()}
    container.cgroup = open_cgroup(find(str(filesystem.machine.root)), paths)
    assert filesystem.renewed(triggers[0]) == triggers[0].replace('", "io', '/elsewhere", "io')
    assert filesystem.renewed(triggers[1]) == triggers[1]
    container.init += 1
    assert filesystem.renewed(triggers[0]) == triggers[0]
    container.home = container.paths
    of_a_cgroup = filesystem.trigger(READER, "/proc/pressure/io", b"some 150000 1000000\0")
    assert filesystem.renewed(of_a_cgroup) == of_a_cgroup


def test_a_32_bit_personality_is_shown_the_cpus_of_such(mounted, monkeypatch):
    """As on arm64, where /proc/cpuinfo says what instructions a 32-bit program has."""
    filesystem = mounted()
    text = filesystem.machine.own("proc/cpuinfo")

    def read_records(_self, _name, _enough=0):
        own = int(Path("/proc/thread-self/personality").read_text(), 16)
        return text.replace(b"fpu ", b"thumb ") if own == 8 else text

    monkeypatch.setattr(KernelDirectory, "read_records", read_records)
    monkeypatch.setattr(personality, "is_32_bit", lambda pid: pid == READER)
    monkeypatch.setattr(personality, "SHOWS", True)
    other = Filesystem(filesystem.host, Containers(None), Config())
    for shown in (read(filesystem, "/proc/cpuinfo"), read(other, "/proc/cpuinfo")):
        assert b" thumb " in shown
        assert b" fpu " not in shown
    assert b" thumb " not in read(filesystem, "/proc/cpuinfo", STRANGER)
    assert int(Path("/proc/self/personality").read_text(), 16) == 0


def test_setarch_gives_the_personality_that_is_looked_for():
    with subprocess.Popen(["setarch", "linux32", "cat"], stdin=subprocess.PIPE) as program:
        try:
            while Path(f"/proc/{program.pid}/comm").read_text() != "cat\n":
                time.sleep(0.01)
            assert personality.is_32_bit(program.pid)
        finally:
            program.kill()
    assert not personality.is_32_bit(program.pid)
    assert not personality.is_32_bit("self")


def test_what_the_kernel_shows_to_root_alone_cannot_be_opened(mounted, monkeypatch):
    filesystem = mounted()
    monkeypatch.setattr(HeldDirectory, "mode", lambda _self, _path: stat.S_IFREG | 0o400)
    with pytest.raises(PermissionError):
        filesystem.open(READER, f"{SYS_CPU}/online", os.O_RDONLY)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND])
@pytest.mark.parametrize("path", ["/proc/meminfo", f"{SYS_CPU}/online"])
def test_opening_for_writing_is_denied(mounted, path, flags):
    filesystem = mounted()
    with pytest.raises(PermissionError) as denied:
        filesystem.open(READER, path, flags)
    assert denied.value.errno == errno.EACCES
    with pytest.raises(PermissionError):
        filesystem.access(READER, path, os.W_OK)
    filesystem.access(READER, path, os.R_OK)
    with pytest.raises(PermissionError):
        filesystem.access(READER, path, os.R_OK | os.X_OK)
    filesystem.access(READER, os.path.dirname(path), os.R_OK | os.X_OK)


def test_many_threads_read_whole_files(mounted):
    filesystem = mounted("v2-64cpu")
    expected = {f"/{name}": read(filesystem, f"/{name}") for name in VIEWS}
    wrong = []

    def reader(paths):
        wrong.extend(path for path in paths if read(filesystem, path) != expected[path])

    paths = list(expected)
    threads = [threading.Thread(target=reader, args=((paths[n:] + paths[:n]) * 3,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_reads_are_counted_by_file(mounted):
    filesystem = mounted()
    for path, times in {"/proc/meminfo": 3, "/proc/stat": 1, f"{SYS_CPU}/online": 2}.items():
        for _ in range(times):
            read(filesystem, path)
    assert filesystem.reads == {"proc/meminfo": 3, "proc/stat": 1, sys_cpu.TREE.name: 2}
    assert not filesystem.failures


def test_a_file_that_is_not_enabled_shows_the_machines_text_and_is_not_listed(mounted):
    config = Config(files=Files(enabled=("proc/stat", "proc/pressure/io")))
    filesystem = mounted(config=config)
    assert read(filesystem, "/proc/meminfo") == filesystem.machine.own("proc/meminfo")
    assert read(filesystem, "/proc/stat") != filesystem.machine.own("proc/stat")
    assert filesystem.readdir(READER, "/") == [".", "..", "proc"]
    assert filesystem.readdir(READER, "/proc") == [".", "..", "pressure", "stat"]
    assert filesystem.readdir(READER, "/proc/pressure") == [".", "..", "io"]
    assert sees(filesystem, "/proc/meminfo"), "a container that has it in its definition could not start"
    assert sees(filesystem, "/proc/stat")
    assert sees(filesystem, "/proc")
    # Those who have it mounted go on using it.
    assert stat.S_ISREG(filesystem.getattr(READER, "/proc/meminfo")["st_mode"])
    filesystem.config = Config()
    assert b"262144 kB" in read(filesystem, "/proc/meminfo")


def test_sys_devices_system_cpu_that_is_not_enabled_is_the_machines(mounted):
    filesystem = mounted("v2-64cpu", Config(files=Files(enabled=("proc/stat",))))
    assert read(filesystem, f"{SYS_CPU}/online") == b"0-63\n"
    assert sees(filesystem, SYS_CPU)
    assert sees(filesystem, f"{SYS_CPU}/online"), "who has the directory mounted goes on"
    assert sees(filesystem, f"{SYS_CPU}/cpu63")


# The tree


def walk(filesystem, path="/"):
    for name in filesystem.readdir(READER, path)[2:]:
        child = f"{path.rstrip('/')}/{name}"
        yield child
        if stat.S_ISDIR(filesystem.getattr(READER, child)["st_mode"]):
            yield from walk(filesystem, child)


@pytest.mark.parametrize("name", ["v1-2cpu", "v2-64cpu"])
def test_all_that_is_listed_is_there_and_can_be_read_but_not_written(mounted, name):
    filesystem = mounted(name)
    paths = list(walk(filesystem))
    recorded = {name for name in NAMES if name not in DIRECTORIES or filesystem.machine.has(name)}
    assert {f"/{name}" for name in recorded} <= set(paths)
    for path in paths:
        assert sees(filesystem, path)
        mode = filesystem.getattr(READER, path)["st_mode"]
        assert mode & 0o222 == (0o222 if path.startswith("/proc/pressure/") else 0)
        if stat.S_ISREG(mode):
            assert read(filesystem, path) or path.endswith(("uevent", "isolated", "nohz_full", "enabled"))
        else:
            assert stat.S_ISDIR(mode)


def test_nothing_else_is_there(mounted):
    filesystem = mounted()
    for path in ("/nothing", "/proc/self", "/proc/meminfo2", "/pro", "/sys/devices/system/cpuid", f"{SYS_CPU}/nothing"):
        with pytest.raises(FileNotFoundError) as missing:
            filesystem.getattr(READER, path)
        assert missing.value.errno == errno.ENOENT


def test_cpus_that_the_container_does_not_see_are_not_there_for_it(mounted):
    filesystem = mounted("v2-64cpu")
    listed = [name for name in filesystem.readdir(READER, SYS_CPU) if name[3:].isdigit()]
    assert listed == ["cpu2", "cpu3", "cpu4"]
    assert sees(filesystem, f"{SYS_CPU}/cpu2/topology/core_id")
    for hidden in ("cpu0", "cpu5", "cpu63/online"):
        path = f"{SYS_CPU}/{hidden}"
        for refused in (
            lambda path=path: filesystem.getattr(READER, path),
            lambda path=path: filesystem.access(READER, path, os.F_OK),
            lambda path=path: filesystem.open(READER, path, os.O_RDONLY),
            lambda path=path: filesystem.open(READER, path, os.O_WRONLY),
            lambda path=path: filesystem.readdir(READER, path),
            lambda path=path: filesystem.readlink(READER, path),
        ):
            with pytest.raises(FileNotFoundError):
                refused()
        assert filesystem.attributes(path), "what the kernel is told of the name is the same for all"
    assert sees(filesystem, f"{SYS_CPU}/cpu63/online", STRANGER)
    assert len(filesystem.readdir(STRANGER, SYS_CPU)) > 64
    assert read(filesystem, f"{SYS_CPU}/cpu63/online", STRANGER) == b"1\n"


def test_paths_are_all_that_anybody_may_have(mounted):
    filesystem = mounted("v2-64cpu", Config(files=Files(enabled=("proc/stat",))))
    paths = set(filesystem.paths())
    assert {f"/{name}" for name in NAMES} <= paths
    assert {"/proc", "/proc/pressure", "/sys", "/sys/devices", f"{SYS_CPU}/cpu63", f"{SYS_CPU}/cpu63/online"} <= paths
    assert set(walk(filesystem)) <= paths


def test_a_large_directory_hides_no_other_one_from_who_looks_for_a_path(copied, tmp_path, monkeypatch):
    machine = copied("v2-64cpu", tmp_path)
    names = {"memory": [f"memory{n}" for n in range(9)], "node": ["node0", "node1"]}
    for tree, below in names.items():
        for name in below:
            (machine.root / "sys/devices/system" / tree / name).mkdir(parents=True)
    monkeypatch.setattr("lxcfs_py.daemon.filesystem._MAX_PATHS", 3)
    paths = list(Filesystem(type(machine.host)(machine.root), Containers(machine.container), Config()).paths())
    shown = [path for path in paths if path.startswith(tuple(f"/{name}/" for name in DIRECTORIES))]
    assert [path.split("/")[4] for path in shown] == ["cpu"] * 3 + ["node"] * 2 + ["memory"] * 3


def test_links_of_the_machines_directory_are_read(copied, tmp_path):
    machine = copied("v1-2cpu", tmp_path)
    (machine.root / sys_cpu.TREE.name / "cpu1/driver").symlink_to("../../../bus/cpu/drivers/processor")
    filesystem = Filesystem(machine.host, Containers(machine.container), Config())
    assert stat.S_ISLNK(filesystem.getattr(READER, f"{SYS_CPU}/cpu1/driver")["st_mode"])
    assert filesystem.readlink(READER, f"{SYS_CPU}/cpu1/driver") == "../../../bus/cpu/drivers/processor"


def test_how_hot_a_cpu_gets_no_container_sees(copied, tmp_path):
    """The directories are there, for engines that mask them: also those of CPUs that the container does not see."""
    machine = copied("v2-64cpu", tmp_path)
    filesystem = Filesystem(machine.host, Containers(machine.container), Config())
    for cpu in ("cpu2", "cpu0", "cpu12"):
        throttle = machine.root / sys_cpu.TREE.name / cpu / "thermal_throttle"
        throttle.mkdir()
        (throttle / "core_throttle_count").write_text("7\n")
        path = f"{SYS_CPU}/{cpu}/thermal_throttle"
        assert stat.S_ISDIR(filesystem.getattr(READER, path)["st_mode"])
        assert filesystem.readdir(READER, path) == [".", ".."]
        with pytest.raises(FileNotFoundError):
            read(filesystem, f"{path}/core_throttle_count")
        assert read(filesystem, f"{path}/core_throttle_count", STRANGER) == b"7\n"


def test_no_link_leads_a_reader_out_of_the_machines_directory(copied, tmp_path):
    machine = copied("v1-2cpu", tmp_path)
    (machine.root / sys_cpu.TREE.name / "secret").symlink_to("/etc/shadow")
    filesystem = Filesystem(machine.host, Containers(machine.container), Config())
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read(filesystem, f"{SYS_CPU}/secret")


def test_links_that_lead_around_in_a_circle_are_an_error(copied, tmp_path):
    machine = copied("v1-2cpu", tmp_path)
    for link, target in (("around", "back"), ("back", "around")):
        (machine.root / sys_cpu.TREE.name / link).symlink_to(target)
    filesystem = Filesystem(machine.host, Containers(machine.container), Config())
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        filesystem.follow(READER, f"{SYS_CPU}/around")


# When a cgroup cannot be read


class Gone:
    """A cgroup that was removed while it was looked at."""

    def __getattr__(self, name):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


def test_a_cgroup_that_went_away_is_looked_for_once_more(mounted, container_in):
    filesystem = mounted()
    containers = Containers(container_in(Gone()), again=lambda: filesystem.machine.container)
    filesystem._containers = containers
    assert b"262144 kB" in read(filesystem, "/proc/meminfo")
    assert (containers.forgotten, len(filesystem.failures)) == (1, 0)


def test_a_cgroup_that_stays_away_shows_the_machines_text_and_is_logged(mounted, container_in, caplog):
    filesystem = mounted()
    filesystem._containers = Containers(container_in(Gone()))
    for _ in range(3):
        assert read(filesystem, "/proc/meminfo") == filesystem.machine.own("proc/meminfo")
    assert sum(filesystem.failures.values()) == 3
    (said,) = caplog.messages  # a container cannot fill the log
    assert said.startswith("proc/meminfo of process 4711 cannot be computed, it sees the host's: ")
    assert "No such device" in said


# The files that views read of a cgroup and of those above it.
READ = [
    *("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    *("memory.stat", "memory.kmem.slabinfo", "memory.max", "memory.current", "memory.swap.max", "memory.swap.current"),
    *("cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuacct.usage_all", "cpu.max", "cpu.stat"),
    *("cpuset.effective_cpus", "cpuset.cpus", "cpuset.cpus.effective"),
    *("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive", "io.stat"),
    *("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.usage_in_bytes", "hugetlb.2MB.max", "hugetlb.2MB.current"),
    *("pids.current", "pids.peak", "cgroup.threads", "cpu.pressure", "io.pressure", "memory.pressure"),
]
# What is like a kernel's text, and yet is none.
NUMBERS = [b"", b"\n", b"0\n", b"-1\n", b"1\n", b"max\n", b"max 0\n", b"0 0\n", b"1 -5\n", b"12 x\n", b"900\n"]
NUMBERS += [b"0-99999999999999999999\n", b"9" * 30 + b"\n", b"9" * 400 + b"\n", b"9" * 400 + b" 100000\n", b"9" * 5000]
NUMBERS += [b"cpu user system\n0 1\n", b"254:0 rbytes=%s rios=1\n" % (b"9" * 30), b"7:0 Read " + b"9" * 400 + b"\n"]


@pytest.fixture(scope="module", params=["v1-2cpu-swap", "hybrid", "v2-64cpu"])
def changing(request, copied, tmp_path_factory):
    """A recorded machine whose files may be changed, and those of its container's cgroups that views read."""
    machine = copied(request.param, tmp_path_factory.mktemp("changing"))
    above = {path.parent for path in machine.root.glob("sys/fs/cgroup/**/*box/*")}
    directories = sorted(above | {path.parent for path in above if path.parent.name.endswith(("rec", "slice"))})
    files = [path / name for path in directories for name in READ if (path / name).is_file()]
    assert len(files) > 20
    return machine, files


@settings(max_examples=100)
@given(data=st.data(), content=st.none() | st.binary(max_size=40) | st.sampled_from(NUMBERS) | st.floats(0, 1))
def test_whatever_a_cgroup_file_holds_a_reader_gets_figures_or_the_machines_text(data, content, changing):
    machine, files = changing
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    try:
        if content is None:
            path.unlink()
        else:
            # A number is how much of the kernel's own text is left.
            path.write_bytes(before[: int(len(before) * content)] if isinstance(content, float) else content)
        logging.disable()  # thousands of warnings, as it should be
        for mode in ("quota", "cpuset"):
            config = Config(cpu=Cpu(mode=mode), loadavg=Loadavg(enabled=True))
            containers = Containers(machine.again(), machine.again)
            filesystem = Filesystem(machine.host, containers, config)
            for name in VIEWS:
                text = read(filesystem, f"/{name}")
                assert text, name
            assert read(filesystem, f"{SYS_CPU}/online")
            assert filesystem.readdir(READER, SYS_CPU)
            assert filesystem.getattr(READER, f"{SYS_CPU}/online")
            sees(filesystem, f"{SYS_CPU}/cpu1/online")
    finally:
        logging.disable(logging.NOTSET)
        path.write_bytes(before)
