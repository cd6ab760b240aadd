"""What sysinfo(2) and sched_getaffinity(2) say is what the files say."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

from lxcfs_py.linux import seccomp
from lxcfs_py.linux.seccomp import Notification
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.syscalls import answers

BASE = Path(__file__).parent.parent.parent / "packaging/seccomp/containers.json"

TEXTS = {
    "/proc/meminfo": b"MemTotal:  262144 kB\nMemFree:  1000 kB\nBuffers: 0 kB\nShmem: 8 kB\n"
    b"SwapTotal: 65536 kB\nSwapFree: 65000 kB\n",
    "/proc/loadavg": b"0.50 1.25 0.00 2/7 99\n",
    "/proc/uptime": b"100.25 3.00\n",
    "/sys/devices/system/cpu/online": b"1,3\n",
}


def render(pid: int, path: str) -> bytes:
    return TEXTS[path]


def call(arch: int, *arguments: int) -> Notification:
    return Notification(1, os.getpid(), 0, arch, (*arguments, *[0] * (6 - len(arguments))))


def test_sysinfo_is_what_the_files_say():
    answer = answers.sysinfo(call(seccomp.X86_64, 0x1000), render)
    assert answer
    assert (answer.address, answer.value, len(answer.memory)) == (0x1000, 0, 112)
    uptime, *loads = struct.unpack_from("=q3Q", answer.memory)
    assert (uptime, loads) == (101, [32768, 81920, 0])  # the kernel rounds the time up
    kib = [size >> 10 for size in struct.unpack_from("=6Q", answer.memory, 32)]
    assert kib == [262144, 1000, 8, 0, 65536, 65000]
    assert struct.unpack_from("=H", answer.memory, 80) == (7,)
    assert struct.unpack_from("=2QI", answer.memory, 88) == (0, 0, 1)


def test_a_32_bit_sysinfo_has_the_same_in_the_smaller_structure():
    answer = answers.sysinfo(call(seccomp.I386, 0x1000), render)
    assert answer
    assert len(answer.memory) == 64
    assert struct.unpack_from("=i3I6IH", answer.memory)[4:] == (
        262144 << 10,
        1000 << 10,
        8192,
        0,
        1 << 26,
        65000 << 10,
        7,
    )
    assert struct.unpack_from("=I", answer.memory, 52) == (1,)


def test_a_32_bit_sysinfo_counts_in_pages_what_would_not_fit(monkeypatch):
    monkeypatch.setitem(TEXTS, "/proc/meminfo", b"MemTotal: 8388608 kB\nMemFree: 4096 kB\n")
    answer = answers.sysinfo(call(seccomp.ARM, 0x1000), render)
    assert answer
    total, free = struct.unpack_from("=2I", answer.memory, 16)
    (unit,) = struct.unpack_from("=I", answer.memory, 52)
    assert (total * unit, free * unit) == (8 << 30, 4 << 20)


def affinity(monkeypatch, allowed: set[int], visible: bytes) -> set[int]:
    """The answer where the kernel says that a thread may run on these CPUs, and the container sees those."""
    mask = sum(1 << cpu for cpu in allowed).to_bytes(8, "little")
    monkeypatch.setattr(answers, "_affinity", lambda thread, size: mask)
    monkeypatch.setitem(TEXTS, "/sys/devices/system/cpu/online", visible)
    answer = answers.sched_getaffinity(call(seccomp.X86_64, 0, 8, 0x1000), render)
    assert answer
    assert (answer.address, answer.value, len(answer.memory)) == (0x1000, 8, 8)
    found = int.from_bytes(answer.memory, "little")
    return {cpu for cpu in range(64) if found >> cpu & 1}


@pytest.mark.parametrize(
    ("allowed", "visible", "answered"),
    [
        ({0, 1, 2, 3}, b"0-1\n", {0, 1}),
        ({1, 3}, b"1\n", {1}),
        ({1}, b"0-1\n", {1}),  # a thread that has bound itself
        ({2, 3}, b"0\n", {2}),  # one that has bound itself to what the container does not see
        ({0, 1}, b"0-3\n", {0, 1}),
    ],
)
def test_an_affinity_is_the_threads_own_cut_to_what_the_container_sees(monkeypatch, allowed, visible, answered):
    assert affinity(monkeypatch, allowed, visible) == answered


def test_a_threads_own_number_is_itself_and_what_does_not_exist_is_left_to_the_kernel():
    first = answers.sched_getaffinity(call(seccomp.X86_64, 0, 128, 0x1000), render)
    assert first == answers.sched_getaffinity(call(seccomp.X86_64, os.getpid(), 128, 0x1000), render)
    assert answers.sched_getaffinity(call(seccomp.X86_64, 0x7FFFFFF0, 128, 0x1000), render) is None


def test_a_mask_that_is_too_short_is_left_to_the_kernel():
    assert answers.sched_getaffinity(call(seccomp.X86_64, 0, 1, 0x1000), render) is None


# The profile


def test_a_profile_hands_two_calls_to_the_daemon_and_leaves_all_others_as_they_were():
    base = json.loads(BASE.read_text())
    made = json.loads(seccomp_profile.profile(BASE))
    assert made["listenerPath"] == "/run/lxcfs-py/seccomp.sock"
    assert made["syscalls"][-1] == {"names": ["sched_getaffinity", "sysinfo"], "action": "SCMP_ACT_NOTIFY", "args": []}

    def rules(profile):
        return {
            (name, json.dumps({**rule, "names": None}, sort_keys=True))
            for rule in profile["syscalls"]
            for name in rule["names"]
            if name not in seccomp_profile.CALLS
        }

    assert rules({**made, "syscalls": made["syscalls"][:-1]}) == rules(base)
    assert {key: value for key, value in made.items() if key not in ("syscalls", "listenerPath")} == {
        key: value for key, value in base.items() if key != "syscalls"
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory; --base names the profile to start from"),
        ("{", "is not JSON; allowed: a seccomp profile as Docker and Podman take it"),
        ("[]", 'has no list "syscalls"; allowed: a seccomp profile as Docker and Podman take it'),
        ('{"syscalls": [3]}', 'has no list "syscalls"; allowed: a seccomp profile as Docker and Podman take it'),
    ],
)
def test_a_base_that_is_no_profile_is_refused_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "base.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(seccomp_profile.ProfileError) as caught:
        seccomp_profile.profile(path)
    assert str(caught.value) == f"{path} {said}"
