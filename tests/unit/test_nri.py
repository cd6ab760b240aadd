"""The NRI plugin, asked by a runtime that is a few lines: its messages as containerd sends them, over a socket pair."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lxcfs_py.attach import nri
from lxcfs_py.config import Config
from lxcfs_py.files import FILES, NAMES
from lxcfs_py.linux import address
from lxcfs_py.runtimes.nri import connection, plugin, wire
from lxcfs_py.runtimes.nri.connection import Connection, ConnectionLostError
from lxcfs_py.runtimes.nri.plugin import Attachment, Plugin
from lxcfs_py.runtimes.nri.policy import Container, Mount, Pod, Policy

ENABLED = Config().files.enabled
MOUNTED = {f"/{name}" for name in ENABLED if FILES[name].runc_mounts}
REFUSED = [name for name in ENABLED if not FILES[name].runc_mounts]
USUAL = (("/proc", "proc", "proc"), ("/sys", "sysfs", "sysfs"), ("/etc/hosts", "bind", "/var/lib/kubelet/x/etc-hosts"))


def pairs(number, values):
    return b"".join(wire.item(number, wire.field(1, key) + wire.field(2, value)) for key, value in values.items())


def pod(namespace="shop", handler="", annotations=None, labels=None, pod_id="p1"):
    return (
        wire.field(1, pod_id)
        + wire.field(2, "web-0")
        + wire.field(4, namespace)
        + pairs(5, labels or {})
        + pairs(6, annotations or {})
        + wire.field(7, handler)
    )


def container(mounts=(), namespaces=("pid", "ipc", "mount"), environment=(), cpu=(0, 0), state=1, pid=0, pod_id="p1"):
    listed = b"".join(
        wire.item(9, wire.field(1, destination) + wire.field(2, kind) + wire.field(3, source))
        for destination, kind, source in (*USUAL, *mounts)
    )
    quota, period = (wire.field(number, wire.field(1, value)) for number, value in zip((2, 3), cpu))
    linux = b"".join(wire.item(1, wire.field(1, kind)) for kind in namespaces) + wire.field(
        3, wire.field(2, quota + period)
    )
    return (
        wire.field(1, "c1")
        + wire.field(2, pod_id)
        + wire.field(3, "web")
        + wire.field(4, state)
        + b"".join(wire.item(8, variable) for variable in environment)
        + listed
        + wire.field(11, linux)
        + wire.field(12, pid)
    )


class Runtime:
    """A container runtime with one plugin, which answers at once."""

    def __init__(self, default="all", names=ENABLED):
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(5)
        theirs.settimeout(5)
        self.is_mounted = True
        policy = Policy("/var/lib/lxcfs", tuple(names), default)
        self.told = []
        self.plugin = Plugin(Connection(theirs), policy, lambda: self.is_mounted, self.told.append)
        self.registration = self.receive(2)
        self.attachments = []
        self._stream = 1

    def receive(self, number):
        """A message of a connection: stream, kind and content."""
        received = b""
        while len(received) < 10 or len(received) < 10 + struct.unpack_from(">I", received)[0]:
            conn, length = struct.unpack(">II", self.socket.recv(8, socket.MSG_WAITALL))
            assert conn == number
            assert length <= 4096, "the runtime refuses longer frames"
            received += self.socket.recv(length, socket.MSG_WAITALL)
        _, stream, kind, _ = struct.unpack_from(">IIBB", received)
        return stream, kind, wire.read(received[10:])

    def send(self, method, message, frame=4096):
        request = wire.field(1, "nri.pkg.api.v1alpha1.Plugin") + wire.field(2, method) + wire.field(3, message)
        content = struct.pack(">IIBB", len(request), self._stream, 1, 0) + request
        for start in range(0, len(content), frame):
            piece = content[start : start + frame]
            self.socket.sendall(struct.pack(">II", 1, len(piece)) + piece)
            self.attachments += self.plugin.attend()

    def ask(self, method, message=b"", frame=4096):
        """The answer to a call: its status' code, and its message."""
        self.send(method, message, frame)
        stream, kind, answer = self.receive(1)
        assert (stream, kind) == (self._stream, 2)
        self._stream += 2
        return wire.whole(wire.message(answer, 1), 1), wire.message(answer, 2)

    def create(self, of, described):
        """What a container gets: mounts as (destination, source) and environment."""
        code, answer = self.ask("CreateContainer", wire.field(1, of) + wire.field(2, described))
        assert code == connection.OK
        adjustment = wire.message(answer, 1)
        mounts = [wire.read(mount) for mount in wire.messages(adjustment, 3)]
        for mount in mounts:
            assert {"rbind", "ro"} <= set(wire.texts(mount, 4))
            assert {"rslave", "rshared"}.isdisjoint(wire.texts(mount, 4)), "refused where the mount is private"
        environment = {wire.text(pair, 1): wire.text(pair, 2) for pair in map(wire.read, wire.messages(adjustment, 4))}
        return {wire.text(mount, 1): wire.text(mount, 3) for mount in mounts}, environment


@pytest.fixture
def runtime():
    return Runtime()


def test_it_registers_and_asks_to_be_told_of_containers_that_are_created_and_started(runtime):
    _, kind, request = runtime.registration
    assert (kind, wire.text(request, 1), wire.text(request, 2)) == (1, "nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin")
    registration = wire.message(request, 3)
    assert (wire.text(registration, 1), wire.text(registration, 2)) == ("lxcfs-py", "50")
    assert not runtime.plugin.is_registered
    code, answer = runtime.ask("Configure", wire.field(2, "containerd") + wire.field(3, "2.1.9"))
    assert (code, wire.whole(answer, 2)) == (0, 0b101000)
    assert runtime.plugin.is_registered


def test_a_container_gets_the_files_that_runc_mounts(runtime):
    mounts, environment = runtime.create(pod(), container())
    assert mounts == {target: f"/var/lib/lxcfs{target}" for target in MOUNTED}
    assert environment == {}


def test_a_container_gets_no_mounts_of_what_is_not_there(runtime):
    runtime.is_mounted = False
    assert runtime.create(pod(), container()) == ({}, {})
    assert runtime.told == ["failed"]


@pytest.mark.parametrize(
    ("default", "of", "described"),
    [
        ("all", {"annotations": {"lxcfs.py/views": "none"}}, {}),
        ("all", {}, {"environment": ["LXCFS_PY_VIEWS=none"]}),
        ("all", {"namespace": "kube-system"}, {}),
        ("opt-in", {}, {}),
    ],
    ids=["opted out", "by a variable", "kube-system", "did not ask"],
)
def test_who_wants_no_files_fails_to_get_none_where_nothing_is_mounted(default, of, described):
    runtime = Runtime(default)
    runtime.is_mounted = False
    assert runtime.create(pod(**of), container(**described)) == ({}, {})
    assert runtime.told == ["left alone"]


def test_a_list_with_a_file_that_is_none_is_told_to_the_operator(runtime, caplog):
    runtime.create(pod(annotations={"lxcfs.py/views": "memfino"}), container())
    assert "lxcfs.py/views names 'memfino'" in caplog.text


GIVEN = tuple((target, "bind", f"/var/lib/lxcfs{target}") for target in sorted(MOUNTED))


def test_what_runc_refuses_is_attached_as_the_container_starts(runtime):
    assert REFUSED
    runtime.ask("StartContainer", wire.field(1, pod()) + wire.field(2, container(GIVEN, pid=4711)))
    runtime.ask("StateChange", wire.field(1, 6) + wire.field(2, pod()) + wire.field(3, container(GIVEN, pid=4712)))
    runtime.ask("StateChange", wire.field(1, 11) + wire.field(2, pod()) + wire.field(3, container(GIVEN, pid=4713)))
    assert [(each.pid, list(each.names)) for each in runtime.attachments] == [(4711, REFUSED), (4712, REFUSED)]


def test_one_that_was_created_without_the_files_gets_them_as_it_starts(runtime):
    runtime.ask("StartContainer", wire.field(1, pod()) + wire.field(2, container(pid=4711)))
    assert runtime.attachments == [Attachment(4711, ENABLED)]


@pytest.mark.parametrize("source", ["/var/lib/lxcfs", "/var/lib/lxcfs/", "/var/lib/lxcfs/.", "/var//lib"])
def test_who_has_all_of_the_mount_gets_nothing_however_its_source_is_written(runtime, source):
    runtime.ask("StartContainer", wire.field(1, pod()) + wire.field(2, container([("/views", "bind", source)], pid=1)))
    assert runtime.attachments == []


def test_no_container_is_to_mount_what_the_kernel_lacks(monkeypatch):
    lacks = {"proc/swaps", "sys/devices/system/memory"}
    monkeypatch.setattr(nri, "is_here", lambda name: name not in lacks)
    process = nri.Process(nri.Settings("/var/lib/lxcfs", ENABLED, "all", "info"))
    assert set(process._policy.names) == set(ENABLED) - lacks


@pytest.mark.parametrize(
    ("of", "described", "gets"),
    [
        ({"annotations": {"lxcfs.py/views": "none"}}, {}, set()),
        ({"labels": {"lxcfs.py/views": "none"}, "annotations": {"lxcfs.py/views": "all"}}, {}, set()),
        ({"annotations": {"lxcfs.py/views": "meminfo, /proc/stat"}}, {}, {"/proc/meminfo", "/proc/stat"}),
        ({"annotations": {"lxcfs.py/views": "memfino"}}, {}, set()),
        ({"namespace": "kube-system"}, {}, set()),
        ({"namespace": "kube-system", "annotations": {"lxcfs.py/views": "all"}}, {}, MOUNTED),
        ({"labels": {"app.kubernetes.io/name": "lxcfs-py"}}, {}, set()),
        ({"handler": "kata-qemu"}, {}, set()),
        ({"handler": "gvisor"}, {}, set()),
        ({"handler": "runc"}, {}, MOUNTED),
        ({}, {"namespaces": ("pid", "user")}, set()),
        ({}, {"namespaces": ("mount",)}, set()),
        ({}, {"mounts": [("/proc/meminfo", "bind", "/srv/meminfo")]}, MOUNTED - {"/proc/meminfo"}),
        ({}, {"mounts": [("/sys/devices", "bind", "/srv")]}, {m for m in MOUNTED if not m.startswith("/sys/devices")}),
        ({}, {"mounts": [("/host/lib", "bind", "/var/lib")]}, set()),
        ({}, {"environment": ["HOME=/", "LXCFS_PY_VIEWS=none"]}, set()),
        ({}, {"environment": ["HOME=none", "LXCFS_PY_VIEWS=None, "]}, set()),
        ({"annotations": {"lxcfs.py/views": "all"}}, {"environment": ["lxcfs.py/views=none"]}, set()),
        ({}, {"mounts": [("/", "bind", "/srv")]}, MOUNTED),
    ],
    ids=[
        *("opted out", "a label and an annotation", "a list", "a file that is none", "kube-system"),
        *(
            "kube-system opted in",
            "lxcfs-py's own",
            "kata",
            "gvisor",
            "runc",
            "user namespace",
            "the node's pids",
            "its own meminfo",
        ),
        *("something above", "the whole mount", "a variable", "another", "an annotation and a variable", "a root"),
    ],
)
def test_who_gets_what(runtime, of, described, gets):
    assert runtime.create(pod(**of), container(**described))[0].keys() == gets
    assert runtime.told == ["given" if gets else "left alone"]


@pytest.mark.parametrize(
    ("annotations", "gets"), [({}, set()), ({"lxcfs.py/views": "all"}, MOUNTED)], ids=["says nothing", "asks"]
)
def test_where_the_default_is_opt_in_a_pod_has_to_ask(annotations, gets):
    assert Runtime(default="opt-in").create(pod(annotations=annotations), container())[0].keys() == gets


def test_variables_that_a_pod_asks_for_say_how_many_cpus_it_may_use(runtime):
    of = pod(annotations={"lxcfs.py/environment": "GOMAXPROCS, OMP_NUM_THREADS,no good"})
    described = container(cpu=(150000, 100000), environment=["OMP_NUM_THREADS=7", "HOME=/"])
    assert runtime.create(of, described)[1] == {"GOMAXPROCS": "2"}
    assert runtime.create(of, container())[1] == {}, "without a quota, it may use all"


@pytest.mark.parametrize(
    ("word", "said"),
    [(" Requests", ""), ("quotas", 'lxcfs.py/cpu-mode is "quotas"; allowed: "quota", '), ("", 'is ""; allowed: ')],
)
def test_a_cpu_mode_that_there_is_not_is_told_to_the_operator(runtime, caplog, word, said):
    runtime.create(pod(annotations={"lxcfs.py/cpu-mode": word}), container())
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_pods_cpu_mode_is_noted_with_its_containers(runtime):
    of = pod(annotations={"lxcfs.py/cpu-mode": "requests", "other": "1"})
    _, answer = runtime.ask("CreateContainer", wire.field(1, of) + wire.field(2, container()))
    noted = map(wire.read, wire.messages(wire.message(answer, 1), 2))
    assert {wire.text(pair, 1): wire.text(pair, 2) for pair in noted} == {"lxcfs.py/cpu-mode": "requests"}


def test_containers_that_run_when_it_comes_are_attached_to_whatever_part_of_the_list_they_are_in(runtime):
    first = wire.item(1, pod()) + wire.item(1, pod(pod_id="p2", annotations={"lxcfs.py/views": "none"}))
    second = b"".join(
        wire.item(2, container(state=state, pid=pid, pod_id=of))
        for state, pid, of in ((3, 11, "p1"), (4, 12, "p1"), (3, 13, "p2"), (3, 14, "unknown"))
    )
    code, answer = runtime.ask("Synchronize", first + wire.field(3, 1))
    assert (code, wire.whole(answer, 2)) == (0, 1), "it takes the list in parts"
    code, answer = runtime.ask("Synchronize", second)
    assert (code, wire.whole(answer, 2)) == (0, 0)
    assert runtime.attachments == [Attachment(11, ENABLED)]


def test_one_that_has_files_of_a_server_that_has_ended_is_offered_them_anew(runtime):
    own = ("/proc/stat", "bind", "/srv/stat")
    given = [mount for mount in GIVEN if mount[0] != own[0]]
    runtime.ask("Synchronize", wire.item(1, pod()) + wire.item(2, container([*given, own], state=3, pid=11)))
    ((pid, names),) = runtime.attachments
    assert (pid, set(names)) == (11, set(ENABLED) - {"proc/stat"})


def test_calls_may_come_in_pieces_and_answers_go_in_frames_that_the_runtime_reads():
    runtime = Runtime(names=NAMES)
    annotations = {f"a/{number}": "x" * 1000 for number in range(100)}
    code, _ = runtime.ask("CreateContainer", wire.field(1, pod(annotations=annotations)) + b"\x12\x00", frame=1000)
    assert code == 0
    many = Runtime(names=NAMES)
    many.plugin._policy = Policy("/" + "very-long/" * 300, NAMES, "all")
    assert len(many.create(pod(), container())[0]) == len(MOUNTED)


def test_what_it_does_not_know_or_cannot_read_lets_the_container_start(runtime):
    assert runtime.ask("ValidateContainerAdjustment")[0] == connection.UNIMPLEMENTED
    code, answer = runtime.ask("CreateContainer", b"\x0a\xff\xff\xff\xff\x0f")
    assert (code, answer) == (0, {})
    assert runtime.ask("Shutdown")[0] == 0


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        struct.pack(">II", 3, 1) + b"x",
        struct.pack(">II", 1, 1 << 31),
        struct.pack(">IIIIBB", 1, 10, 1 << 31, 1, 1, 0),
    ],
    ids=["the end", "another connection", "a frame too long", "a message too long"],
)
def test_a_runtime_that_goes_or_speaks_otherwise_is_left(runtime, sent):
    if sent:
        runtime.socket.sendall(sent)
    else:
        runtime.socket.close()
    with pytest.raises(ConnectionLostError):
        runtime.plugin.attend()


def test_a_runtime_that_refuses_the_registration_is_left(runtime):
    refusal = wire.field(1, wire.field(1, 2) + wire.field(2, "no plugins here"))
    content = struct.pack(">IIBB", len(refusal), 1, 2, 0) + refusal
    runtime.socket.sendall(struct.pack(">II", 2, len(content)) + content)
    with pytest.raises(ConnectionLostError, match="no plugins here"):
        runtime.plugin.attend()


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(message):
    try:
        Pod.read(wire.read(message))
        Container.read(wire.read(message))
    except wire.WireError:
        pass


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=300))))
def test_what_is_written_is_read(fields):
    written = b"".join(wire.field(number, value) for number, value in fields)
    found = wire.read(written)
    for number, value in fields:
        if value and [other for other, _ in fields].count(number) == 1:
            assert (wire.whole if isinstance(value, int) else wire.text)(found, number) == value


def test_a_mount_is_read_as_it_is_written():
    found = Container.read(wire.read(container(pid=os.getpid(), cpu=(50000, 100000))))
    assert found.mounts[0] == Mount("/proc", "proc", "proc")
    assert (found.cpus, found.pid, found.is_running) == (0.5, os.getpid(), False)


LISTENER = "/run/lxcfs-py/seccomp.sock"
RULES = (
    {"names": ["read", "sysinfo", "write"], "action": "SCMP_ACT_ALLOW"},
    {"names": ["sched_getaffinity"], "action": "SCMP_ACT_ALLOW"},
    {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [wire.field(2, 8) + wire.field(4, "SCMP_CMP_EQ")]},
    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errno": 38},
)


def seccomp_policy(rules=RULES):
    """A LinuxSeccomp as containerd tells it of a pod with RuntimeDefault."""
    written = b"".join(
        wire.item(
            7,
            b"".join(wire.item(1, name) for name in rule["names"])
            + wire.field(2, rule["action"])
            + wire.field(3, wire.field(1, rule.get("errno", 0)))
            + b"".join(wire.item(4, argument) for argument in rule.get("args", ())),
        )
        for rule in rules
    )
    architectures = wire.item(3, "SCMP_ARCH_X86_64") + wire.item(3, "SCMP_ARCH_X86")
    return wire.field(1, "SCMP_ACT_ERRNO") + wire.field(2, wire.field(1, 1)) + architectures + written


def read_policy(answer):
    """The policy in the answer to CreateContainer, and its rules as a dictionary by name; None without one."""
    policy = wire.message(wire.message(wire.message(answer, 1), 6), 6)
    rules = {
        name: (wire.text(rule, 2), wire.whole(wire.message(rule, 3), 1), len(wire.messages(rule, 4)))
        for rule in map(wire.read, wire.messages(policy, 7))
        for name in wire.texts(rule, 1)
    }
    return (policy, rules) if policy else None


def asked(runtime, annotations, policy, is_listening, monkeypatch):
    monkeypatch.setattr(plugin, "is_listening", lambda path: path == LISTENER and is_listening)
    described = container() + wire.field(11, wire.field(8, policy))
    _, answer = runtime.ask("CreateContainer", wire.field(1, pod(annotations=annotations)) + wire.field(2, described))
    return read_policy(answer)


SYSCALLS = {"lxcfs.py/syscalls": "true"}
MOUNT = {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}


def test_a_pod_that_asks_for_it_has_its_system_calls_handed_to_the_daemon_and_all_else_as_it_was(runtime, monkeypatch):
    policy, rules = asked(runtime, SYSCALLS, seccomp_policy(), True, monkeypatch)
    assert (wire.text(policy, 1), wire.whole(wire.message(policy, 2), 1)) == ("SCMP_ACT_ERRNO", 1)
    assert wire.texts(policy, 3) == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert wire.text(policy, 5) == LISTENER
    assert rules == {
        "read": ("SCMP_ACT_ALLOW", 0, 0),
        "write": ("SCMP_ACT_ALLOW", 0, 0),
        "personality": ("SCMP_ACT_ALLOW", 0, 1),
        "clone3": ("SCMP_ACT_ERRNO", 38, 0),
        "sched_getaffinity": ("SCMP_ACT_NOTIFY", 0, 0),
        "sysinfo": ("SCMP_ACT_NOTIFY", 0, 0),
    }


@pytest.mark.parametrize(
    ("annotations", "policy", "is_listening", "said"),
    [
        ({}, seccomp_policy(), True, ""),
        ({"lxcfs.py/syscalls": "false"}, seccomp_policy(), True, ""),
        (SYSCALLS, b"", True, "the runtime shows no seccomp policy"),
        (SYSCALLS, seccomp_policy(), False, "nobody listens"),
        ({**SYSCALLS, "lxcfs.py/views": "none"}, seccomp_policy(), True, "it gets no files"),
        ({"lxcfs.py/syscalls": "yes"}, seccomp_policy(), True, "is 'yes', which says nothing; allowed: true, false"),
        (SYSCALLS, seccomp_policy() + wire.field(5, "/run/a.sock"), True, "hands calls to the agent at '/run/a.sock'"),
        (SYSCALLS, seccomp_policy((*RULES, MOUNT)), True, "hands calls to an agent of its own (SCMP_ACT_NOTIFY)"),
    ],
    ids=[
        *("it did not ask", "it said no", "an older runtime", "no agent", "no files", "it asked in other words"),
        *("another agent's listener", "a call for another agent"),
    ],
)
def test_its_policy_is_left_alone_where_it_did_not_ask_or_that_cannot_be(
    runtime, monkeypatch, caplog, annotations, policy, is_listening, said
):
    assert asked(runtime, annotations, policy, is_listening, monkeypatch) is None
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_blanks_and_capitals_in_what_a_pod_asks_for_change_nothing(runtime, monkeypatch):
    assert asked(runtime, {"lxcfs.py/syscalls": " True\n"}, seccomp_policy(), True, monkeypatch)


def test_a_policy_that_is_the_daemons_already_stays_so(runtime, monkeypatch):
    own = seccomp_policy((*RULES, {"names": ["sysinfo"], "action": "SCMP_ACT_NOTIFY"})) + wire.field(5, LISTENER)
    assert asked(runtime, SYSCALLS, own, True, monkeypatch)


def test_a_policy_that_cannot_be_read_lets_the_container_start(runtime, monkeypatch):
    assert asked(runtime, SYSCALLS, b"\x3a\xff", True, monkeypatch) is None


def test_who_listens_is_seen_and_what_is_left_of_one_is_not(tmp_path):
    path = str(tmp_path / "socket")
    assert not address.is_listening(path)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path)
        assert not address.is_listening(path)
        opened.listen()
        assert address.is_listening(path)
    assert os.path.exists(path)
    assert not address.is_listening(path)
