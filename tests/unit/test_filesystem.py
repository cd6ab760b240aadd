"""The mounted tree, and what its files say: the operations as an engine calls them, without any mount."""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lxcfs_py.config import Config, Cpu, Files, Loadavg
from lxcfs_py.daemon import filesystem as fs
from lxcfs_py.daemon.filesystem import Filesystem, TextsInMemory
from lxcfs_py.files import NAMES
from lxcfs_py.views import VIEWS, sys_cpu

SYS_CPU = f"/{sys_cpu.DIRECTORY}"
READER, STRANGER = 4711, 1  # a process in the container, and one of the host


class Containers:
    """The container of the one reader; forgetting it finds it again as `again` says."""

    def __init__(self, container, again=None) -> None:
        self.container = container
        self.again = again or (lambda: container)
        self.forgotten = 0

    def of(self, pid):
        return self.container if pid == READER else None

    def forget(self, pid):
        self.forgotten += 1
        self.container = self.again()


@pytest.fixture
def mounted(recorded):
    """mounted(name) is what a container on that recorded machine has mounted; `caller` is who asks."""

    def mount(name="v1-2cpu", config=Config(), **options):  # noqa: B008 - it is immutable
        machine = recorded(name)
        callers = [READER]
        filesystem = Filesystem(machine.host, Containers(machine.container), config, lambda: callers[0], **options)
        filesystem.machine = machine
        filesystem.call_as = lambda pid: callers.__setitem__(0, pid)
        return filesystem

    return mount


def read(filesystem: Filesystem, path: str) -> bytes:
    handle = filesystem.open(path, os.O_RDONLY)
    try:
        return filesystem.read(path, 1 << 20, 0, handle)
    finally:
        filesystem.release(path, handle)


# Reading


def test_a_container_reads_its_own_text_and_the_host_the_machines(mounted):
    filesystem = mounted()
    for name in filter(filesystem.machine.has, VIEWS):
        filesystem.call_as(READER)
        assert b"262144 kB" in read(filesystem, "/proc/meminfo")
        filesystem.call_as(STRANGER)
        machines = filesystem.machine.own(name)
        if name == "proc/slabinfo":  # which the kernel shows to root alone
            machines = b"".join(machines.splitlines(keepends=True)[:2])
        assert read(filesystem, f"/{name}") == machines
    assert read(filesystem, f"{SYS_CPU}/online") == b"0-1\n"


def test_what_the_kernel_shows_to_root_alone_cannot_be_opened(mounted, monkeypatch):
    filesystem = mounted()
    monkeypatch.setattr(type(filesystem.machine.host), "cpu_mode", lambda _self, _path: stat.S_IFREG | 0o400)
    with pytest.raises(PermissionError):
        filesystem.open(f"{SYS_CPU}/online", os.O_RDONLY)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND])
@pytest.mark.parametrize("path", ["/proc/meminfo", f"{SYS_CPU}/online"])
def test_opening_for_writing_is_denied(mounted, path, flags):
    filesystem = mounted()
    with pytest.raises(PermissionError) as denied:
        filesystem.open(path, flags)
    assert denied.value.errno == errno.EACCES
    with pytest.raises(PermissionError):
        filesystem.access(path, os.W_OK)
    assert filesystem.access(path, os.R_OK) == 0


def test_small_reads_at_any_offsets_get_parts_of_one_text(mounted):
    filesystem = mounted()
    handle = filesystem.open("/proc/stat", os.O_RDONLY)
    text = filesystem.read("/proc/stat", 1, 0, handle)
    filesystem.machine.host.clock += 3_600_000_000_000  # an hour passes, which another reader sees
    other = read(filesystem, "/proc/stat")
    while part := filesystem.read("/proc/stat", 7, len(text), handle):
        text += part
    assert text != other
    assert len(text) == len(other) or text.count(b"\n") == other.count(b"\n")
    assert filesystem.read("/proc/stat", 50, 20, handle) == text[20:70]
    assert filesystem.read("/proc/stat", 50, len(text) + 1000, handle) == b""
    assert filesystem.read("/proc/stat", 1 << 20, 0, handle) == other  # a rewind renders afresh


def test_two_open_files_do_not_mix_up_their_texts(mounted):
    filesystem = mounted()
    paths = ["/proc/meminfo", "/proc/stat", "/proc/meminfo", "/proc/cpuinfo"]
    handles = [filesystem.open(path, os.O_RDONLY) for path in paths]
    assert len(set(handles)) == len(handles)
    whole = [read(filesystem, path) for path in paths]
    parts = [b""] * len(paths)
    while any(len(part) < len(text) for part, text in zip(parts, whole)):
        for n, (path, handle) in enumerate(zip(paths, handles)):
            parts[n] += filesystem.read(path, 100, len(parts[n]), handle)
    assert parts == whole


def test_a_handle_of_a_server_before_gets_a_text_at_any_offset(mounted):
    """Unknown here, it is a file with no text yet: its reader goes on in a fresh one."""
    filesystem = mounted()
    text = read(filesystem, "/proc/meminfo")
    assert filesystem.read("/proc/meminfo", 100, 50, 99) == text[50:150]
    assert filesystem.release("/proc/meminfo", 12345) == 0


def test_a_text_is_dropped_when_its_file_is_closed(mounted):
    texts = TextsInMemory()
    filesystem = mounted(texts=texts)
    handle = filesystem.open("/proc/stat", os.O_RDONLY)
    assert filesystem.read("/proc/stat", 5, 0, handle) == b"cpu  "
    assert texts.get(handle).startswith(b"cpu  ")
    filesystem.release("/proc/stat", handle)
    assert texts.get(handle) is None


def test_many_threads_read_whole_files(mounted):
    filesystem = mounted("v2-64cpu")
    expected = {f"/{name}": read(filesystem, f"/{name}") for name in VIEWS}
    wrong = []

    def reader(paths):
        for path in paths:
            handle = filesystem.open(path, os.O_RDONLY)
            text = b""
            while part := filesystem.read(path, 333, len(text), handle):
                text += part
            filesystem.release(path, handle)
            if text != expected[path]:
                wrong.append(path)

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
    handle = filesystem.open("/proc/stat", os.O_RDONLY)
    for offset in range(0, 300, 10):
        filesystem.read("/proc/stat", 10, offset, handle)
    assert filesystem.reads == {"proc/meminfo": 3, "proc/stat": 2, sys_cpu.DIRECTORY: 2}
    assert filesystem.failures == 0


def test_a_file_that_is_not_enabled_shows_the_machines_text_and_is_not_listed(mounted):
    config = Config(files=Files(enabled=("proc/stat", "proc/pressure/io")))
    filesystem = mounted(config=config)
    assert read(filesystem, "/proc/meminfo") == filesystem.machine.own("proc/meminfo")
    assert read(filesystem, "/proc/stat") != filesystem.machine.own("proc/stat")
    assert filesystem.readdir("/", 0) == [".", "..", "proc"]
    assert filesystem.readdir("/proc", 0) == [".", "..", "pressure", "stat"]
    assert filesystem.readdir("/proc/pressure", 0) == [".", "..", "io"]
    assert not filesystem.visible("/proc/meminfo")
    assert filesystem.visible("/proc/stat")
    assert filesystem.visible("/proc")
    # Those who have it mounted go on using it.
    assert stat.S_ISREG(filesystem.getattr("/proc/meminfo")["st_mode"])
    filesystem.config = Config()
    assert b"262144 kB" in read(filesystem, "/proc/meminfo")


def test_sys_devices_system_cpu_that_is_not_enabled_is_the_machines(mounted):
    filesystem = mounted("v2-64cpu", Config(files=Files(enabled=("proc/stat",))))
    assert read(filesystem, f"{SYS_CPU}/online") == b"0-63\n"
    assert not filesystem.visible(SYS_CPU)
    assert filesystem.visible(f"{SYS_CPU}/online"), "who has the directory mounted goes on"
    assert filesystem.visible(f"{SYS_CPU}/cpu63")


# The tree


def walk(filesystem, path="/"):
    for name in filesystem.readdir(path, 0)[2:]:
        child = f"{path.rstrip('/')}/{name}"
        yield child
        if stat.S_ISDIR(filesystem.getattr(child)["st_mode"]):
            yield from walk(filesystem, child)


@pytest.mark.parametrize("name", ["v1-2cpu", "v2-64cpu"])
def test_all_that_is_listed_is_there_and_can_be_read_but_not_written(mounted, name):
    filesystem = mounted(name)
    paths = list(walk(filesystem))
    assert {f"/{view}" for view in NAMES} <= set(paths)
    for path in paths:
        assert filesystem.visible(path)
        mode = filesystem.getattr(path)["st_mode"]
        assert not mode & 0o222
        if stat.S_ISREG(mode):
            assert read(filesystem, path) or path.endswith(("uevent", "isolated", "nohz_full", "enabled"))
        else:
            assert stat.S_ISDIR(mode)


def test_nothing_else_is_there(mounted):
    filesystem = mounted()
    for path in ("/nothing", "/proc/self", "/proc/meminfo2", "/pro", "/sys/devices/system/cpuid", f"{SYS_CPU}/nothing"):
        with pytest.raises(FileNotFoundError) as missing:
            filesystem.getattr(path)
        assert missing.value.errno == errno.ENOENT


def test_cpus_that_the_container_does_not_see_are_not_there_for_it(mounted):
    filesystem = mounted("v2-64cpu")
    listed = [name for name in filesystem.readdir(SYS_CPU, 0) if name[3:].isdigit()]
    assert listed == ["cpu0", "cpu1", "cpu2"]
    assert filesystem.visible(f"{SYS_CPU}/cpu2/topology/core_id")
    for hidden in ("cpu3", "cpu63/online"):
        assert not filesystem.visible(f"{SYS_CPU}/{hidden}")
        with pytest.raises(FileNotFoundError):
            filesystem.getattr(f"{SYS_CPU}/{hidden}")
    filesystem.call_as(STRANGER)
    assert filesystem.visible(f"{SYS_CPU}/cpu63/online")
    assert len(filesystem.readdir(SYS_CPU, 0)) > 64
    assert read(filesystem, f"{SYS_CPU}/cpu63/online") == b"1\n"


def test_links_of_the_machines_directory_are_read(copied, tmp_path):
    machine = copied("v1-2cpu", tmp_path)
    (machine.root / sys_cpu.DIRECTORY / "cpu1/driver").symlink_to("../../../bus/cpu/drivers/processor")
    filesystem = Filesystem(machine.host, Containers(machine.container), Config(), lambda: READER)
    assert stat.S_ISLNK(filesystem.getattr(f"{SYS_CPU}/cpu1/driver")["st_mode"])
    assert filesystem.readlink(f"{SYS_CPU}/cpu1/driver") == "../../../bus/cpu/drivers/processor"


def test_no_link_leads_a_reader_out_of_the_machines_directory(copied, tmp_path):
    machine = copied("v1-2cpu", tmp_path)
    (machine.root / sys_cpu.DIRECTORY / "secret").symlink_to("/etc/shadow")
    filesystem = Filesystem(machine.host, Containers(machine.container), Config(), lambda: READER)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read(filesystem, f"{SYS_CPU}/secret")


def test_operations_are_called_by_name_as_fusepy_does(mounted):
    filesystem = mounted()
    assert filesystem("getattr", "/proc", None)["st_nlink"] == 2
    assert filesystem("access", "/proc/stat", os.R_OK) == 0
    assert filesystem("opendir", "/proc") == filesystem("releasedir", "/proc", 0) == 0
    assert filesystem("statfs", "/")["f_bsize"] == 4096
    with pytest.raises(OSError, match="Function not implemented") as missing:
        filesystem("bmap", "/proc/stat", 1, 2)
    assert missing.value.errno == errno.ENOSYS


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
    assert (containers.forgotten, filesystem.failures) == (1, 0)


def test_a_cgroup_that_stays_away_shows_the_machines_text_and_is_logged(mounted, container_in, caplog):
    filesystem = mounted()
    filesystem._containers = Containers(container_in(Gone()))
    assert read(filesystem, "/proc/meminfo") == filesystem.machine.own("proc/meminfo")
    assert filesystem.failures == 1
    assert "proc/meminfo of process 4711 cannot be computed, it sees the host's: " in caplog.text
    assert "No such device" in caplog.text


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


@settings(deadline=None, max_examples=100)
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
            filesystem = Filesystem(machine.host, containers, config, lambda: READER)
            for name in VIEWS:
                text = read(filesystem, f"/{name}")
                assert text, name
            assert read(filesystem, f"{SYS_CPU}/online")
            assert filesystem.readdir(SYS_CPU, 0)
            assert filesystem.getattr(f"{SYS_CPU}/online")
            filesystem.visible(f"{SYS_CPU}/cpu1/online")
    finally:
        logging.disable(logging.NOTSET)
        path.write_bytes(before)


# The texts of open files


def test_texts_are_kept_till_their_file_is_closed():
    texts = TextsInMemory()
    texts.put(1, b"one")
    texts.put(2, b"two")
    texts.put(1, b"three")
    assert (texts.get(1), texts.get(2), texts.get(3)) == (b"three", b"two", None)
    texts.drop(1)
    texts.drop(1)
    assert texts.get(1) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 130) | st.none()), max_size=60))
def test_texts_take_no_more_room_than_they_may_and_the_latest_is_kept(steps):
    texts, room = TextsInMemory(), 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fs, "_MAX_TEXT_BYTES", room)
        for handle, size in steps:
            if size is None:
                texts.drop(handle)
            else:
                texts.put(handle, bytes(size))
            kept = [text for text in map(texts.get, range(10)) if text is not None]
            assert sum(map(len, kept)) <= room
            assert size is None or size > room or texts.get(handle) == bytes(size)


def test_a_container_that_opens_many_files_takes_bounded_room_and_still_reads(mounted, monkeypatch):
    monkeypatch.setattr(fs, "_MAX_TEXT_BYTES", 20_000)
    filesystem = mounted()
    first = filesystem.open("/proc/meminfo", os.O_RDONLY)
    text = filesystem.read("/proc/meminfo", 100, 0, first)
    for _ in range(50):
        filesystem.read("/proc/meminfo", 100, 0, filesystem.open("/proc/meminfo", os.O_RDONLY))
    assert text + filesystem.read("/proc/meminfo", 1 << 20, 100, first) == read(filesystem, "/proc/meminfo")
