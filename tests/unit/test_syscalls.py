"""What sysinfo(2) and sched_getaffinity(2) say is what the files say."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from pathlib import Path
from typing import Optional
from unittest.mock import Mock

import pytest

from lxcfs_py.linux import seccomp
from lxcfs_py.linux.seccomp import Notification
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.syscalls import answers
from lxcfs_py.syscalls.answers import Sysinfo

BASE = Path(__file__).parent.parent.parent / "packaging/seccomp/containers.json"

KIB, GIB = 1 << 10, 1 << 30
SAID = Sysinfo(100.25, (0.5, 1.25, 0.0), 262144 * KIB, 1000 * KIB + 5, 8 * KIB, 0, 65536 * KIB, 65000 * KIB, 7)


class Figures:
    """What a container's files say."""

    def __init__(self, said: Optional[Sysinfo] = SAID, cpus: tuple[int, ...] = (1, 3)) -> None:
        self.said, self.visible = said, cpus

    def sysinfo(self, pid: int) -> Optional[Sysinfo]:
        return self.said

    def cpus(self, pid: int) -> tuple[int, ...]:
        return self.visible


# A container in which no thread may run anywhere that it does not see is answered by the kernel.
ONE_CPU = Figures(cpus=(0,))


def call(arch: int, *arguments: int) -> Notification:
    return Notification(1, os.getpid(), 0, arch, (*arguments, *[0] * (6 - len(arguments))))


def test_sysinfo_is_what_the_files_say():
    answer = answers.sysinfo(call(seccomp.X86_64, 0x1000), Figures())
    assert answer
    assert (answer.address, answer.value, len(answer.memory)) == (0x1000, 0, 112)
    uptime, *loads = struct.unpack_from("=q3Q", answer.memory)
    assert (uptime, loads) == (101, [32768, 81920, 0])  # the kernel rounds the time up
    kib = [size >> 10 for size in struct.unpack_from("=6Q", answer.memory, 32)]
    assert kib == [262144, 1000, 8, 0, 65536, 65000]
    assert struct.unpack_from("=H", answer.memory, 80) == (7,)
    assert struct.unpack_from("=2QI", answer.memory, 88) == (0, 0, 1)


def test_a_32_bit_sysinfo_has_the_same_in_the_smaller_structure():
    answer = answers.sysinfo(call(seccomp.I386, 0x5000_0000_1000), Figures())  # by `int 0x80` in a 64-bit program
    assert answer
    assert (answer.address, len(answer.memory)) == (0x1000, 64)
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


def test_a_32_bit_sysinfo_counts_in_pages_what_would_not_fit():
    large = SAID._replace(total=8 * GIB, free=4096 * KIB)
    answer = answers.sysinfo(call(seccomp.ARM, 0x1000), Figures(large))
    assert answer
    total, free = struct.unpack_from("=2I", answer.memory, 16)
    (unit,) = struct.unpack_from("=I", answer.memory, 52)
    assert (total * unit, free * unit) == (8 << 30, 4 << 20)


def test_what_is_the_machines_is_left_to_the_kernel():
    assert answers.sysinfo(call(seccomp.X86_64, 0x1000), Figures(None)) is None
    assert answers.sched_getaffinity(call(seccomp.X86_64, 0, 128, 0x1000), Figures(cpus=())) is None


@pytest.mark.parametrize(
    ("allowed", "visible", "answered"),
    [
        ({0, 1, 2, 3}, (0, 1), {0, 1}),
        ({1, 3}, (1,), {1}),
        ({1}, (0, 1), None),  # a thread that has bound itself
        ({2, 3}, (0,), {2}),  # one that has bound itself to what the container does not see
        ({1, 2}, (0, 1), None),  # one that has bound itself to as many as the quota pays for
        ({1, 2, 3}, (0, 1), {1, 2}),
        ({0, 1}, (0, 1, 2, 3), None),
    ],
)
def test_an_affinity_is_the_threads_own_cut_to_as_many_as_the_container_sees(monkeypatch, allowed, visible, answered):
    mask = sum(1 << cpu for cpu in allowed).to_bytes(8, "little")
    monkeypatch.setattr(answers, "_affinity", lambda thread, size, is_32_bit: mask)
    answer = answers.sched_getaffinity(call(seccomp.X86_64, 0, 8, 0x1000), Figures(cpus=visible))
    if answered is None:  # as the kernel has it
        assert answer is None
    else:
        assert answer
        assert (answer.address, answer.value, len(answer.memory)) == (0x1000, 8, 8)
        found = int.from_bytes(answer.memory, "little")
        assert {cpu for cpu in range(64) if found >> cpu & 1} == answered


@pytest.fixture
def two_cpus(require):
    require(len(os.sched_getaffinity(0)) > 1, "two CPUs")


@pytest.fixture(params=["this kernel", "before Linux 6.11"])
def kernel(request, monkeypatch):
    if request.param != "this kernel":
        monkeypatch.setattr(answers.fcntl, "ioctl", Mock(side_effect=OSError(errno.ENOTTY, "not known")))


@pytest.mark.usefixtures("two_cpus", "kernel")
def test_a_threads_own_number_is_itself_and_what_does_not_exist_is_left_to_the_kernel():
    first = answers.sched_getaffinity(call(seccomp.X86_64, 0, 128, 0x1000), ONE_CPU)
    assert first
    assert first == answers.sched_getaffinity(call(seccomp.X86_64, os.getpid(), 128, 0x1000), ONE_CPU)
    for number in (0x7FFFFFF0, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF):
        assert answers.sched_getaffinity(call(seccomp.X86_64, number, 128, 0x1000), ONE_CPU) is None


@pytest.mark.usefixtures("two_cpus", "kernel")
def test_the_number_of_another_thread_is_that_threads():
    bound, enough = threading.Event(), threading.Event()
    found: list[int] = []

    def bind() -> None:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        found.append(threading.get_native_id())
        bound.set()
        enough.wait()

    thread = threading.Thread(target=bind)
    thread.start()
    try:
        assert bound.wait(10)
        asked = call(seccomp.X86_64, found[0], 128, 0x1000)
        assert answers.sched_getaffinity(asked, ONE_CPU) is None, "it runs on one CPU: as the kernel says"
        assert answers.sched_getaffinity(call(seccomp.X86_64, 0, 128, 0x1000), ONE_CPU)
    finally:
        enough.set()
        thread.join()


@pytest.mark.usefixtures("kernel")
def test_who_names_itself_costs_no_look_at_its_other_threads(monkeypatch):
    monkeypatch.setattr(answers.os, "listdir", Mock(side_effect=AssertionError("all threads are looked at")))
    assert answers._thread(os.getpid(), os.getpid()) == os.getpid()


def test_a_number_that_is_nobodys_costs_no_look_at_the_callers_threads(monkeypatch):
    monkeypatch.setattr(answers.fcntl, "ioctl", Mock(side_effect=ProcessLookupError(errno.ESRCH, "none")))
    monkeypatch.setattr(answers.os, "listdir", Mock(side_effect=AssertionError("all threads are looked at")))
    assert answers._thread(os.getpid(), 0x7FFFFFF0) is None


def test_a_thread_that_ends_while_another_is_looked_for_hides_nobody(monkeypatch):
    monkeypatch.setattr(answers.fcntl, "ioctl", Mock(side_effect=OSError(errno.ENOTTY, "not known")))
    ended, listed = 0x7FFFFFF0, os.listdir
    monkeypatch.setattr(answers.os, "listdir", lambda path: [str(ended), *listed(path)])
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait)
    thread.start()
    try:
        assert thread.native_id
        assert answers._thread(os.getpid(), thread.native_id) == thread.native_id
    finally:
        enough.set()
        thread.join()


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize("size", [0, 1, 4, 7, 9, 12, 127])
def test_a_mask_of_an_odd_size_is_left_to_the_kernel(size):
    assert answers.sched_getaffinity(call(seccomp.X86_64, 0, size, 0x1000), ONE_CPU) is None


@pytest.mark.usefixtures("two_cpus")
@pytest.mark.parametrize(("arch", "number"), [(seccomp.I386, 242), (seccomp.ARM, 242)])
@pytest.mark.parametrize("size", [4, 12, 20, 128, 1024])
def test_32_bit_programs_may_give_masks_of_half_words(monkeypatch, arch, number, size):
    monkeypatch.setattr(answers, "_possible_cpus", lambda: 32)
    answer = answers.ANSWERS[arch, number](call(arch, 0, size, 0x1000), ONE_CPU)
    assert answer
    whole = len(answers.syscalls.sched_getaffinity(os.getpid(), 1024))
    assert (answer.value, len(answer.memory)) == (min(size, whole),) * 2
    monkeypatch.setattr(answers, "_possible_cpus", lambda: 33)
    too_short = answers.ANSWERS[arch, number](call(arch, 0, 4, 0x1000), ONE_CPU)
    assert too_short is None, "33 CPUs do not fit into 4 bytes: EINVAL"


def test_a_pointer_of_a_32_bit_program_is_32_bits():
    answer = answers.sched_getaffinity(call(seccomp.I386, 0, 128, 0xFFFFFFFF_00001000), ONE_CPU)
    assert answer is None or answer.address == 0x1000


NUMBERS = {
    # <asm/unistd_64.h>, <asm/unistd_32.h>, <asm-generic/unistd.h>, arch/arm/tools/syscall.tbl
    seccomp.X86_64: {"sysinfo": 99, "sched_getaffinity": 204},
    seccomp.I386: {"sysinfo": 116, "sched_getaffinity": 242},
    seccomp.AARCH64: {"sysinfo": 179, "sched_getaffinity": 123},
    seccomp.ARM: {"sysinfo": 116, "sched_getaffinity": 242},
}


@pytest.mark.parametrize(("arch", "numbers"), NUMBERS.items())
def test_calls_are_known_by_the_numbers_of_each_architecture(arch, numbers):
    assert {answer.__name__: number for (of, number), answer in answers.ANSWERS.items() if of == arch} == numbers


def test_a_filter_knows_the_same_numbers():
    known = {(arch, number) for archs in seccomp._HANDED_OVER.values() for arch, *both in archs for number in both}
    assert known == set(answers.ANSWERS)


@pytest.mark.parametrize("arch", [seccomp.X86_64, seccomp.AARCH64])
def test_64_bit_architectures_have_one_structure(arch):
    assert answers.ANSWERS[arch, NUMBERS[arch]["sysinfo"]](call(arch, 0x1000), Figures()) == answers.sysinfo(
        call(seccomp.X86_64, 0x1000), Figures()
    )


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


def test_in_the_form_of_oci_a_profile_is_for_containers_without_added_capabilities():
    made = json.loads(seccomp_profile.profile(BASE, oci=True))
    assert set(made) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls", "listenerPath"}
    assert made["architectures"] == [
        *("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")
    ]
    allowed = {name for rule in made["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert {"read", "arch_prctl", "modify_ldt", "arm_fadvise64_64", "chroot"} <= allowed
    assert not {"bpf", "init_module", "settimeofday"} & allowed
    assert not {"s390_pci_mmio_read", "sysinfo"} & allowed
    assert all({"names", "action", "args", "errnoRet"} >= set(rule) for rule in made["syscalls"])


def test_a_policy_of_lxcs_hands_them_on_for_all_architectures(tmp_path):
    policy = tmp_path / "policy"
    policy.write_text("2\nallowlist\n[x86_64]\nsysinfo\nsched_getaffinity errno 1\nread\n")
    assert seccomp_profile.profile(policy) == (
        "2\nallowlist\n[x86_64]\nread\n[all]\nsched_getaffinity notify\nsysinfo notify\n"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory; --base names the profile to start from"),
        (
            "{",
            "is not JSON; allowed: a seccomp profile as Docker and Podman take it, or a policy of LXC's of version 2",
        ),
        ("[]", 'has no list "syscalls"; allowed: a seccomp profile as Docker and Podman take it'),
        ('{"syscalls": 3}', 'has no list "syscalls"; allowed: a seccomp profile as Docker and Podman take it'),
        (
            "[" * 100_000,
            "is not JSON; allowed: a seccomp profile as Docker and Podman take it, or a policy of LXC's of version 2",
        ),
    ],
    ids=["no file", "cut off", "a list", "no rules", "nested too deeply"],
)
def test_a_base_that_is_no_profile_is_refused_in_one_sentence(tmp_path, text, said):
    path = tmp_path / "base.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(seccomp_profile.ProfileError) as caught:
        seccomp_profile.profile(path)
    assert str(caught.value) == f"{path} {said}"


READ = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"syscalls": [1, {"names": "x"}]}, "rule 1 of its syscalls is no JSON object"),
        ({"syscalls": [READ, {"names": None}]}, 'rule 2 of its syscalls has no list "names"'),
        ({"syscalls": [{"names": "read"}]}, '"names" in rule 1 of its syscalls is no list of names'),
        ({"syscalls": [{"names": [["read"]]}]}, '"names" in rule 1 of its syscalls is no list of names'),
        (
            {"syscalls": [{**READ, "includes": {"caps": [{}]}}]},
            '"includes" in rule 1 of its syscalls is no list of caps and arches',
        ),
        ({"syscalls": [], "archMap": "x"}, '"archMap" is no list of architectures, each with its subArchitectures'),
        ({"syscalls": [], "listenerPath": 3}, '"listenerPath" is no path'),
    ],
)
def test_what_a_base_has_in_a_shape_of_its_own_is_said(tmp_path, profile, said):
    path = tmp_path / "base.json"
    path.write_text(json.dumps(profile))
    with pytest.raises(seccomp_profile.ProfileError) as caught:
        seccomp_profile.profile(path, oci=True)
    assert str(caught.value) == f"{path}: {said}; allowed: a seccomp profile as Docker and Podman take it"


X86_64 = "SCMP_ARCH_X86_64"


@pytest.mark.parametrize(
    ("given", "architectures"),
    [
        ({"archMap": None}, None),
        ({"archMap": [{"architecture": X86_64}]}, [X86_64]),
        ({"archMap": [{"architecture": X86_64, "subArchitectures": None}]}, [X86_64]),
        ({"architectures": [X86_64, "SCMP_ARCH_X86"]}, [X86_64, "SCMP_ARCH_X86"]),
    ],
)
def test_the_form_of_oci_has_the_architectures_of_the_base_however_it_says_them(tmp_path, given, architectures):
    path = tmp_path / "base.json"
    null = {"name": "write", "names": None, "includes": None, "excludes": {"caps": None, "arches": None}}
    path.write_text(json.dumps({**given, "syscalls": [READ, null]}))
    made = json.loads(seccomp_profile.profile(path, oci=True))
    assert made.get("architectures") == architectures
    assert [rule["names"] for rule in made["syscalls"]] == [["read"], ["write"], ["sched_getaffinity", "sysinfo"]]


NOTIFY = {"names": ["mount", "sysinfo"], "action": "SCMP_ACT_NOTIFY"}


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"listenerPath": "/run/agent.sock", "syscalls": [READ]}, "has a listener of its own (/run/agent.sock)"),
        ({"syscalls": [READ, NOTIFY]}, "hands calls to an agent (SCMP_ACT_NOTIFY)"),
        ({"defaultAction": "SCMP_ACT_NOTIFY", "syscalls": [READ]}, "hands calls to an agent (SCMP_ACT_NOTIFY)"),
        ("2\nallowlist\nread\nmount notify\n", "hands calls to an agent (mount notify)"),
    ],
)
def test_a_base_that_has_another_agent_is_refused_as_that_one_would_not_be_asked_any_more(tmp_path, base, said):
    path = tmp_path / "base"
    path.write_text(base if isinstance(base, str) else json.dumps(base))
    with pytest.raises(seccomp_profile.ProfileError) as caught:
        seccomp_profile.profile(path)
    assert str(caught.value).startswith(f"{path} {said}: a container has one listener for all its calls")


@pytest.mark.parametrize("oci", [False, True])
def test_the_flags_of_a_base_are_kept(tmp_path, oci):
    flags = ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    path = tmp_path / "seccomp.json"
    path.write_text(json.dumps({**json.loads(BASE.read_text()), "flags": flags}))
    assert json.loads(seccomp_profile.profile(path, oci=oci))["flags"] == flags


def test_a_profile_of_its_own_may_be_the_base_again(tmp_path):
    path = tmp_path / "base.json"
    path.write_text(seccomp_profile.profile(BASE, seccomp_profile.socket_of("/srv/views")))
    assert seccomp_profile.profile(path) == seccomp_profile.profile(BASE)
    path.write_text(lxc := seccomp_profile.profile(BASE.parent / "lxc"))
    assert "sysinfo notify" in lxc
    seccomp_profile.profile(path)
