"""Directories of the machine's sysfs as containers see them: what is hidden, computed and passed through."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.config import Config, Cpu, Files
from lxcfs_py.container import visible_cpus
from lxcfs_py.daemon.filesystem import Filesystem
from lxcfs_py.linux import cpu_list
from lxcfs_py.linux.host import Host
from lxcfs_py.linux.kernel_files import HeldDirectory

CPU = "/sys/devices/system/cpu"
READER, STRANGER = 4711, 1  # a process in the container, and one of the host
CPUSET = Config(cpu=Cpu(mode="cpuset"))
QUOTA = Config(cpu=Cpu(mode="quota"))

# What trees/README.md says of the limits: the CPUs of the smaller quota rounded up, the cpuset.
CPUS = {
    "v1-2cpu": (2, [0, 1]),
    "v1-2cpu-swap": (2, [0, 1]),
    "hybrid": (2, [0, 1]),
    "v2-2cpu-noswap-nopsi": (1, [1]),
    "v2-64cpu": (3, [2, 3, 4, 5, 6, 7, 8, 9]),
}


class Seen:
    """A machine's mount, as a process in the container finds it."""

    def __init__(self, host, container, config=Config()) -> None:  # noqa: B008 - it is immutable
        containers: Any = SimpleNamespace(of=lambda pid: container if pid == READER else None, forget=lambda pid: None)
        self.filesystem = Filesystem(host, containers, config)

    def read(self, path: str, caller: int = READER) -> bytes:
        if not self.has(path, caller):
            raise FileNotFoundError(path)
        self.filesystem.open(caller, path, os.O_RDONLY)
        return self.filesystem.render(caller, path)

    def names(self, path: str, caller: int = READER) -> list[str]:
        return self.filesystem.readdir(caller, path)[2:]

    def has(self, path: str, caller: int = READER) -> bool:
        if not self.filesystem.visible(caller, path):
            return False
        try:
            self.filesystem.getattr(caller, path)
        except FileNotFoundError:
            return False
        return True


@pytest.fixture
def wired(made, cgroup, container_in):
    """wired(cpus, memory=None) is the mount of a machine of 8 CPUs for a container on these.

    The machine has 2 nodes, each a package with 2 cores of 2 threads.
    """

    def make(cpus: str, config=CPUSET, **controllers):
        tree = {"proc/cpuinfo": "processor\t: 0\n\n", f"{CPU[1:]}/offline": "8-15\n", f"{CPU[1:]}/possible": "0-15\n"}
        tree |= {f"{CPU[1:]}/{name}": "0-7\n" for name in ("online", "present", "enabled")}
        tree |= {f"{CPU[1:]}/isolated": "3,6\n", f"{CPU[1:]}/nohz_full": "(null)\n", f"{CPU[1:]}/kernel_max": "63\n"}
        for cpu in range(8):
            first, core = cpu // 4 * 4, cpu // 2 * 2
            around = {"core": core, "thread": core, "package": first, "die": first, "cluster": core}
            for name, start in around.items():
                last = start + (3 if start == first and name in ("package", "die") else 1)
                mask = sum(1 << sibling for sibling in range(start, last + 1))
                topology = f"{CPU[1:]}/cpu{cpu}/topology/{name}"
                kind = "siblings" if name == "thread" else "cpus"
                tree[f"{topology}_{kind}_list"] = f"{start}-{last}\n"
                tree[f"{topology}_{kind}"] = f"00000000,{mask:08x}\n"
            tree[f"{CPU[1:]}/cpu{cpu}/topology/core_id"] = f"{core // 2 % 2}\n"
            tree[f"{CPU[1:]}/cpu{cpu}/cache/index3/shared_cpu_list"] = f"{first}-{first + 3}\n"
            tree[f"{CPU[1:]}/cpu{cpu}/cache/index3/shared_cpu_map"] = f"{15 << first:04x}\n"
            tree[f"{CPU[1:]}/cpufreq/policy{core}/related_cpus"] = f"{core} {core + 1}\n"
        root = made(tree)
        controllers.setdefault("cpuset", SimpleNamespace(cpus=lambda: f"{cpus}\n".encode()))
        return Seen(Host(str(root)), container_in(cgroup(**controllers)), config)

    return make


# sys/devices/system/cpu


@pytest.mark.parametrize("name", ["online", "possible", "present"])
def test_the_lists_of_cpus_name_those_that_are_visible(machine, name):
    count, cpuset = CPUS[machine.name]
    for config, numbers in ((QUOTA, cpuset[:count]), (CPUSET, cpuset)):
        seen = Seen(machine.host, machine.container, config)
        assert seen.read(f"{CPU}/{name}") == cpu_list.render(tuple(numbers))
        assert seen.read(f"{CPU}/{name}", STRANGER) == machine.own(f"{CPU[1:]}/{name}")


def test_a_container_sees_the_directories_of_its_cpus_alone(machine):
    count, cpuset = CPUS[machine.name]
    for config, numbers in ((QUOTA, cpuset[:count]), (CPUSET, cpuset)):
        seen = Seen(machine.host, machine.container, config)
        names = seen.names(CPU)
        assert sorted(name for name in names if name[3:].isdigit()) == sorted(f"cpu{number}" for number in numbers)
        assert {"online", "possible", "present", "uevent"} <= set(names)
        for number in (0, 9):
            path = f"{CPU}/cpu{number}"
            there = (Path(machine.root) / path[1:]).exists()
            assert seen.has(path) == (number in numbers and there)
            assert seen.has(path, STRANGER) == there


def test_no_cpu_is_offline_in_a_container_and_other_files_are_the_machines(machine):
    seen = Seen(machine.host, machine.container)
    assert seen.read(f"{CPU}/offline") == b"\n"
    assert seen.read(f"{CPU}/kernel_max") == machine.own(f"{CPU[1:]}/kernel_max")


def test_lists_of_other_kinds_name_no_hidden_cpu_either(wired):
    seen = wired("1,3,6")
    lists = {name: seen.read(f"{CPU}/{name}") for name in seen.names(CPU) if not name.startswith("cpu")}
    assert lists == {
        **dict.fromkeys(("online", "present", "possible", "enabled"), b"1,3,6\n"),
        **{"offline": b"\n", "isolated": b"3,6\n", "nohz_full": b"(null)\n", "kernel_max": b"63\n"},
    }


def test_topology_and_caches_are_shared_with_visible_cpus_alone(wired):
    seen = wired("1,3,6")
    first, other = f"{CPU}/cpu1", f"{CPU}/cpu6"
    for name, words in {"core_cpus": (b"1", b"2"), "package_cpus": (b"1,3", b"a"), "die_cpus": (b"1,3", b"a")}.items():
        assert seen.read(f"{first}/topology/{name}_list") == words[0] + b"\n"
        assert seen.read(f"{first}/topology/{name}") == b"00000000,0000000" + words[1] + b"\n"
    assert seen.read(f"{other}/topology/thread_siblings_list") == b"6\n"
    assert seen.read(f"{other}/topology/thread_siblings") == b"00000000,00000040\n"
    assert seen.read(f"{first}/cache/index3/shared_cpu_list") == b"1,3\n"
    assert seen.read(f"{first}/cache/index3/shared_cpu_map") == b"000a\n"
    assert seen.read(f"{CPU}/cpufreq/policy2/related_cpus") == b"3\n"
    assert seen.read(f"{first}/topology/core_id") == b"0\n"


def test_the_host_and_a_container_with_all_cpus_see_the_machines_topology(wired):
    seen = wired("0-7")
    for cpu in range(8):
        for name in seen.names(f"{CPU}/cpu{cpu}/topology"):
            path = f"{CPU}/cpu{cpu}/topology/{name}"
            assert seen.read(path) == seen.read(path, STRANGER)


@given(st.sets(st.integers(0, 199)), st.sets(st.integers(0, 199)), st.integers(200, 300))
def test_a_mask_keeps_the_visible_cpus_and_its_width(shared, visible, width):
    def mask(cpus):
        text = f"{sum(1 << cpu for cpu in cpus):0{-(-width // 4)}x}"
        first = len(text) % 8 or 8
        return ",".join([text[:first], *(text[n : n + 8] for n in range(first, len(text), 8))]).encode() + b"\n"

    assert cpu_list.masked(mask(shared), visible) == mask(shared & visible)
    assert cpu_list.only(cpu_list.render(tuple(sorted(shared))), visible) == cpu_list.render(
        tuple(sorted(shared & visible))
    )


# What all trees have in common


def test_a_listing_asks_once_what_is_visible(wired, monkeypatch):
    seen, asked = wired("0-5"), []
    real = visible_cpus.visible
    monkeypatch.setattr(visible_cpus, "visible", lambda *words: asked.append(words) or real(*words))
    names = seen.names(CPU)
    assert {"cpu0", "cpu5"} <= set(names)
    assert all(seen.filesystem.attributes(f"{CPU}/{name}") for name in names)
    assert len(asked) == 1


def test_an_error_of_the_kernel_is_the_readers_and_no_failure(wired, monkeypatch):
    seen = wired("0-5")

    def text(self, path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(HeldDirectory, "text", text)
    for path in (f"{CPU}/online", f"{CPU}/cpu0/topology/core_id"):
        with pytest.raises(OSError, match="Input/output error"):
            seen.read(path)
    assert seen.filesystem.failures == 0


def test_what_root_alone_may_read_can_be_found_and_not_read(wired):
    seen = wired("0-5")
    secret = Path(seen.filesystem._host.root, CPU[1:], "cpu0/crash_notes")
    secret.write_text("1\n")
    secret.chmod(0o400)
    assert stat.S_IMODE(seen.filesystem.getattr(READER, f"{CPU}/cpu0/crash_notes")["st_mode"]) == 0o400
    with pytest.raises(PermissionError):
        seen.read(f"{CPU}/cpu0/crash_notes")


def test_a_tree_that_is_not_enabled_is_the_machines_to_who_has_it_mounted(wired):
    seen = wired("1", Config(files=Files(enabled=("proc/meminfo",))))
    assert not seen.filesystem.visible(READER, CPU)
    assert seen.names("/") == ["proc"]
    assert {"cpu0", "cpu7"} <= set(seen.names(CPU))
    assert seen.read(f"{CPU}/online") == b"0-7\n"


def test_a_kernel_without_such_a_directory_has_nothing_there(made):
    directory = HeldDirectory(str(made({"proc/x": ""}) / "sys/none"))
    for look in (directory.names, directory.mode, directory.text, directory.link):
        with pytest.raises(FileNotFoundError):
            look("")
