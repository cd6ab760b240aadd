"""Which cgroups are containers, and what is done where inotify has no more to give."""

from __future__ import annotations

import errno
import os
import time

import pytest

from lxcfs_py.attach import attach, auto_attach
from lxcfs_py.attach.auto_attach import Cgroups, Patterns
from lxcfs_py.cgroup import layout
from lxcfs_py.cgroup.layout import Hierarchy, Layout
from lxcfs_py.config import Config
from lxcfs_py.linux import aside, fork, syscalls

ID = "8a6f0c1d" * 8
CONMON = "c07d0c1d" * 8  # begins as "conmon" does
POD = "pod1b2c-3d"

CONTAINERS = {
    "docker, cgroupfs": f"/docker/{ID}",
    "docker, systemd": f"/system.slice/docker-{ID}.scope",
    "containerd's ctr, and nerdctl, cgroupfs": "/default/web",
    "nerdctl, systemd": f"/system.slice/nerdctl-{ID}.scope",
    "kubernetes, cgroupfs, guaranteed": f"/kubepods/{POD}/{ID}",
    "kubernetes, cgroupfs, burstable": f"/kubepods/burstable/{POD}/{ID}",
    "kubernetes, systemd, guaranteed": f"/kubepods.slice/kubepods-{POD}.slice/cri-containerd-{ID}.scope",
    "kubernetes, systemd, best effort": (
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}.slice/cri-containerd-{ID}.scope"
    ),
    "cri-o, systemd": f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-{POD}.slice/crio-{ID}.scope",
    "cri-o, cgroupfs": f"/kubepods/burstable/{POD}/crio-{ID}",
    "cri-o without kubelet": f"/system.slice/crio-{CONMON}.scope",
    "podman, systemd": f"/machine.slice/libpod-{CONMON}.scope",
    "podman, systemd, in a pod": f"/machine.slice/machine-libpod_pod_{ID}.slice/libpod-{ID}.scope",
    "podman, cgroupfs": f"/libpod_parent/libpod-{ID}",
    "podman, cgroupfs, in a pod": f"/libpod_parent/{ID}/libpod-{CONMON}",
    "podman, quadlet": f"/system.slice/web.service/libpod-payload-{ID}",
    "lxc and incus": "/lxc.payload.web",
    "lxc before 4.0": "/lxc/web",
}

OTHERS = [
    "",
    "/docker",
    "/init.scope",
    "/system.slice/docker.service",
    "/system.slice/ssh.service",
    "/lxc.monitor.web",
    f"/docker/{ID}/docker/{ID}",
    f"/machine.slice/libpod-conmon-{ID}.scope",
    f"/libpod_parent/libpod-conmon-{ID}",
    f"/kubepods/burstable/{POD}",
    f"/kubepods.slice/kubepods-{POD}.slice",
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
]

KNOWN = Patterns(Config().attach.cgroups)


@pytest.mark.parametrize("path", CONTAINERS.values(), ids=CONTAINERS)
def test_a_container_is_known_by_its_cgroup_and_found_from_the_root(path):
    assert KNOWN.match(path)
    parts = path.split("/")
    assert all(KNOWN.may_match_below("/".join(parts[:end])) for end in range(1, len(parts)))


@pytest.mark.parametrize("path", OTHERS)
def test_other_cgroups_are_no_containers(path):
    assert not KNOWN.match(path)


@pytest.mark.parametrize("path", ["/user.slice", f"/docker/{ID}", "/init.scope", "/system.slice/a.mount"])
def test_cgroups_that_cannot_hold_a_container_are_not_watched(path):
    assert not KNOWN.may_match_below(path)


def test_a_star_stands_for_a_part_of_one_name_only():
    patterns = Patterns(["/a/*-b"])
    assert patterns.match("/a/x-b")
    assert not patterns.match("/a/x/y-b")
    assert not patterns.match("/a/x-c")


@pytest.fixture
def tree(tmp_path):
    """tree(*paths): the cgroups of a hierarchy that has these directories."""

    def make(*paths, patterns=("/docker/*",), root="/"):
        for path in paths:
            (tmp_path / path).mkdir(parents=True)
        return Cgroups(Hierarchy(2, str(tmp_path), root), Patterns(patterns))

    return make


def test_cgroups_that_are_there_and_that_come_are_told(tree, tmp_path):
    cgroups = tree("docker/one/inner", "system.slice/ssh.service")
    assert list(cgroups.all()) == ["/docker/one"]
    (tmp_path / "docker/two/inner").mkdir(parents=True)
    (tmp_path / "system.slice/three").mkdir()
    (tmp_path / "docker/file").touch()
    assert "/docker/two" in list(cgroups.new())
    assert not list(cgroups.new())


def test_a_parent_that_comes_and_goes_is_watched_anew(tree, tmp_path):
    cgroups = tree()
    assert not list(cgroups.all())
    for name in ("one", "two"):
        (tmp_path / "docker").mkdir()
        assert not list(cgroups.new())
        (tmp_path / "docker" / name).mkdir()
        assert list(cgroups.new()) == [f"/docker/{name}"]
        (tmp_path / "docker" / name).rmdir()
        (tmp_path / "docker").rmdir()


def test_a_parent_that_comes_with_a_container_in_it_is_not_missed(tree, tmp_path):
    cgroups = tree()
    list(cgroups.all())
    (tmp_path / "docker/one").mkdir(parents=True)
    assert list(cgroups.new()) == ["/docker/one"]


def test_of_a_hierarchy_that_is_mounted_in_part_the_rest_is_known(tree, tmp_path):
    cgroups = tree("one", patterns=["/docker/*"], root="/docker")
    assert list(cgroups.all()) == ["/docker/one"]


def test_after_an_overflow_all_are_told_again(tree, monkeypatch):
    cgroups = tree("docker/one")
    list(cgroups.all())
    overflow = auto_attach._EVENT.pack(-1, syscalls.IN_Q_OVERFLOW, 0, 0)
    monkeypatch.setattr(os, "read", lambda *_: overflow)
    assert list(cgroups.new()) == ["/docker/one"]


def test_without_watches_one_error_names_the_limit_and_what_is_there_is_told(tree, monkeypatch, caplog):
    cgroups = tree("docker/one", "lxc/two", patterns=["/docker/*", "/lxc/*"])

    def none_left(descriptor, path, mask):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(syscalls, "inotify_add_watch", none_left)
    assert sorted(cgroups.all()) == ["/docker/one", "/lxc/two"]
    (record,) = caplog.records
    assert "new containers in / and other new cgroups are not attached: fs.inotify.max_user_watches" in record.message


def test_no_more_cgroups_are_watched_than_the_bound(tree, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(auto_attach, "MAX_WATCHES", 3)
    cgroups = tree(*(f"docker/{number}" for number in range(5)), patterns=["/docker/*/*"])
    list(cgroups.all())
    assert len(cgroups._watched) == 3
    assert len(caplog.records) == 1


def test_without_inotify_the_error_names_the_limit(tree, monkeypatch):
    def none_left(flags):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(syscalls, "inotify_init1", none_left)
    with pytest.raises(OSError, match=r"no inotify instance is left for this user; fs\.inotify\.max_user_instances"):
        tree()


def test_children_of_a_cgroup_are_looked_into_where_it_has_no_process_of_its_own(tmp_path):
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "container").mkdir()
    (tmp_path / "container/cgroup.procs").write_text("4711\n12\n")
    assert auto_attach._processes(str(tmp_path)) == [4711, 12]
    (tmp_path / "cgroup.procs").write_text("9\n7\n")
    assert auto_attach._processes(str(tmp_path)) == [9, 7]


def test_of_a_cgroup_with_very_many_processes_a_bounded_number_is_looked_at(tmp_path, monkeypatch):
    (tmp_path / "cgroup.procs").write_text("")
    for child in range(8):
        (tmp_path / f"{child}").mkdir()
        (tmp_path / f"{child}/cgroup.procs").write_text("".join(f"{100 * child + pid}\n" for pid in range(1, 9)))
    monkeypatch.setattr(auto_attach, "_MAX_CHILDREN", 2)
    assert len({pid // 100 for pid in auto_attach._processes(str(tmp_path))}) == 2
    monkeypatch.setattr(auto_attach, "_MAX_PROCESSES", 3)
    assert len(auto_attach._processes(str(tmp_path))) == 3
    monkeypatch.setattr(auto_attach, "_MAX_MOUNTINFO", 20)
    assert len(auto_attach._mountinfo("self")) == 20


def test_what_is_mounted_at_the_root_and_at_proc_is_read_the_upper_mount_last():
    mountinfo = (
        b"22 1 0:20 / / rw - overlay overlay rw\n"
        b"23 22 0:21 / /proc rw shared:7 - proc proc rw\n"
        b"24 23 0:22 / /proc/meminfo rw - fuse.lxcfs lxcfs rw\n"
        b"25 22 0:23 /a\\040/\\040b /proc rw - proc proc rw\n"
    )
    assert auto_attach._roots(mountinfo) == {b"/": (b"0:20", b"/"), b"/proc": (b"0:23", b"/a\\040/\\040b")}


def test_on_a_kernel_without_pidfds_the_error_names_the_version(monkeypatch):
    def missing(pid):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", missing)
    with pytest.raises(OSError, match=r"Linux 5\.3 or later is needed"):
        auto_attach.Attacher(auto_attach.Settings("/var/lib/lxcfs", [], [], "info"))


# Looking at candidates


@pytest.fixture
def attacher(tmp_path, monkeypatch):
    """attacher(*names): one that has been told of these cgroups below /docker; whom it attaches to is in `attached`."""

    def make(*names):
        (tmp_path / "docker").mkdir()
        for name in names:
            (tmp_path / "docker" / name).mkdir()
            (tmp_path / "docker" / name / "cgroup.procs").write_text("4711\n")
        found = Layout({"memory": Hierarchy(2, str(tmp_path), "/")})
        monkeypatch.setattr(layout, "find", lambda: found)
        made = auto_attach.Attacher(auto_attach.Settings("/var/lib/lxcfs", ["proc/meminfo"], ["/docker/*"], "info"))
        made.attached = []
        monkeypatch.setattr(
            made._attaching, "start", lambda work, candidate: made.attached.append((work.args[0], candidate.path))
        )
        made._add(made._cgroups.all())
        return made

    return make


@pytest.fixture
def process(monkeypatch):
    """process(mountinfo): the process 4711 has a mount namespace of its own with these mounts."""

    def make(mountinfo):
        monkeypatch.setattr(auto_attach, "_mount_namespace", lambda pid: 1)
        monkeypatch.setattr(auto_attach, "_root", lambda pid: "/")
        monkeypatch.setattr(auto_attach, "_mountinfo", lambda pid: mountinfo)

    return make


ROOT = b"100 99 0:100 / / rw - overlay overlay rw\n"
PROC = b"101 100 0:101 / /proc rw - proc proc rw\n"


def test_a_process_with_a_root_and_a_proc_of_its_own_is_attached_to_once(attacher, process):
    made = attacher("one")
    process(ROOT + PROC)
    made._look()
    made._look()
    assert made.attached == [(4711, "/docker/one")]
    assert not made._candidates


def test_a_process_that_sees_a_whole_mount_is_a_servers_or_not_ready_yet(attacher, process):
    made = attacher("one")
    process(ROOT + PROC + b"102 100 0:47 / /var/lib/lxcfs rw shared:1 - fuse.lxcfs lxcfs rw\n")
    made._look()
    assert not made.attached
    assert made._candidates


def test_a_process_without_a_proc_is_waited_for(attacher, process):
    made = attacher("one")
    process(ROOT)
    made._look()
    assert not made.attached
    assert [candidate.path for candidate in made._candidates] == ["/docker/one"]


def test_a_process_that_still_has_the_hosts_root_and_proc_is_waited_for(attacher, process):
    made = attacher("one")
    process(auto_attach._mountinfo("self"))
    made._look()
    assert not made.attached
    assert made._candidates


def test_a_container_that_has_all_files_is_left_alone(attacher, process):
    made = attacher("one")
    made._mounted = [b" 0:47 /proc/meminfo /proc/meminfo "]
    process(ROOT + PROC + b"102 101 0:47 /proc/meminfo /proc/meminfo rw - fuse.lxcfs lxcfs rw\n")
    made._look()
    assert not made.attached
    assert not made._candidates


def test_a_cgroup_that_goes_is_forgotten(attacher, tmp_path):
    made = attacher("one")
    (tmp_path / "docker/one/cgroup.procs").unlink()
    (tmp_path / "docker/one").rmdir()
    made._look()
    assert not made._candidates


def test_looks_come_less_and_less_often_and_end(attacher, process, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    made = attacher("one")
    process(b"")
    pauses = []
    while True:
        made._look()
        if not made._candidates:
            break
        pauses.append(made._candidates[0].due - now)
        now = made._candidates[0].due
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(0.002)
    assert pauses[-1] == pytest.approx(0.05)
    assert now - 1000 == pytest.approx(30, abs=0.1)


def test_what_is_too_much_at_once_is_told(attacher, process, monkeypatch, caplog):
    monkeypatch.setattr(auto_attach, "MAX_LOOKED_AT", 3)
    process(b"")
    made = attacher(*map(str, range(6)))
    (record,) = caplog.records
    assert record.message == "3 containers are too many at once, and not attached: lxcfs-py attach --all does it"
    assert len(made._candidates) == 3


def test_of_too_many_the_one_that_came_first_is_given_up(attacher, clock, monkeypatch):
    monkeypatch.setattr(auto_attach, "MAX_LOOKED_AT", 3)
    made = attacher()
    for path in "abcde":
        clock.now += 1
        made._add(iter([path]))
    assert sorted(candidate.path for candidate in made._candidates) == ["c", "d", "e"]


@pytest.fixture
def clock(monkeypatch):
    """clock.now is the time."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now)
    return Clock


def test_who_comes_is_looked_at_before_those_who_wait_however_many_they_are(attacher, clock, monkeypatch):
    made = attacher(*map(str, range(600)))
    looked_at = []
    monkeypatch.setattr(made, "_is_settled", lambda candidate: looked_at.append(candidate.path))
    for _ in range(300):
        made._look()
    for path in ("/docker/earlier", "/docker/late"):
        clock.now += 0.001
        made._add(iter([path]))
    for _ in range(2):
        made._look()
    assert looked_at[300:] == ["/docker/late", "/docker/earlier"]
    assert len(made._candidates) == 602, "they are all looked at"


def test_who_has_waited_long_for_the_first_look_is_looked_at(attacher, clock, process):
    made = attacher("one")
    process(ROOT + PROC)
    clock.now += 100
    made._look()
    assert made.attached == [(4711, "/docker/one")]


def test_the_looks_at_very_many_take_no_more_time_than_those_at_some(attacher, clock):
    made = attacher("one")
    made._candidates = [made._candidates[0]._replace(due=clock.now)] * 4000
    clock.now += 20
    made._look()
    looked_at = max(made._candidates)
    assert looked_at.due - clock.now == pytest.approx(0.8, rel=0.01)


@pytest.mark.parametrize(("seconds", "pause"), [(0.005, 0.1), (5, 1)])  # where this process was not let run, either
def test_a_look_that_takes_long_comes_so_seldom_that_the_others_have_their_share_of_the_time(
    attacher, clock, monkeypatch, seconds, pause
):
    made = attacher(*map(str, range(21)))

    def take_long(candidate):
        clock.now += seconds

    monkeypatch.setattr(made, "_is_settled", take_long)
    made._look()
    (looked_at,) = (candidate for candidate in made._candidates if candidate.due > 0)
    assert looked_at.due - clock.now == pytest.approx(pause)


def test_of_each_mount_namespace_the_mounts_are_read_once_in_a_look(attacher, process, monkeypatch, tmp_path):
    made = attacher("one")
    (tmp_path / "docker/one/cgroup.procs").write_text("".join(f"{pid}\n" for pid in range(100, 160)))
    process(ROOT + PROC)
    read = []
    monkeypatch.setattr(auto_attach, "_mountinfo", lambda pid: read.append(pid) or ROOT)
    made._look()
    assert read == ["100"]
    read.clear()
    monkeypatch.setattr(auto_attach, "_root", lambda pid: "/jail" if int(pid) < 110 else "/")
    made._add(iter(["/docker/one"]))
    made._look()
    assert read == ["100", "110"], "who is in another root sees other mounts"
    read.clear()
    monkeypatch.setattr(auto_attach, "_mount_namespace", int)
    made._add(iter(["/docker/one"]))
    made._look()
    assert read == ["100", "101", "102", "103"], "of each of some"


def test_no_more_are_attached_to_at_a_time_than_the_bound(attacher, process, monkeypatch):
    monkeypatch.setattr(auto_attach, "MAX_ATTACHING", 0)
    made = attacher("one")
    process(ROOT + PROC)
    made._look()
    assert not made.attached
    assert made._candidates


def test_a_cgroup_that_cannot_be_read_for_now_is_looked_at_again(attacher, monkeypatch):
    def none_left(directory):
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    made = attacher("one")
    monkeypatch.setattr(auto_attach, "_processes", none_left)
    made._look()
    assert [candidate.path for candidate in made._candidates] == ["/docker/one"]


KILLED = -1


@pytest.mark.parametrize(
    ("code", "is_as_new"),
    [
        (auto_attach._LOOK_AGAIN, False),
        (auto_attach._LATER, False),
        (auto_attach._NO_ANSWER, True),
        (KILLED, False),
        (fork.RAISED, False),
    ],
)
def test_whatever_becomes_of_a_process_that_attaches_its_container_is_not_forgotten(
    attacher, monkeypatch, code, is_as_new
):
    made = attacher()
    started = time.monotonic()
    before = auto_attach.Candidate(started, "/docker/one", started - 20)
    monkeypatch.setattr(made._attaching, "reap", lambda pidfd: (before, code))
    made._reap(7)
    (candidate,) = made._candidates
    assert candidate.path == "/docker/one"
    assert candidate.due > started
    assert (candidate.since > before.since) == is_as_new, "it is looked at for as long as before"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (attach.EndedError(""), auto_attach._LOOK_AGAIN),
        (attach.SilentError("it was killed"), auto_attach._LATER),
        (attach.SilentError("", "0:47"), auto_attach._NO_ANSWER),
        (attach.LeftAloneError(""), 0),
        (attach.AttachError(""), 0),
    ],
)
def test_a_process_that_attaches_tells_when_to_try_again(monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setattr(attach, "attach", fail)
    monkeypatch.setattr(auto_attach.results, "tell", lambda result: None)
    monkeypatch.setattr(auto_attach.mount_users, "device", lambda mountpoint: "0:47")
    settings = auto_attach.Settings("/var/lib/lxcfs", [], [], "info")
    assert auto_attach._attach(4711, "/docker/one", settings) == code


def test_who_does_not_answer_is_asked_again(attacher, monkeypatch):
    def refuse(whose, *_):
        raise aside.SilentError(whose)

    with monkeypatch.context() as silent:
        silent.setattr(auto_attach.aside, "look", refuse)
        made = attacher("box")
    assert not made._candidates
    made._add(made._cgroups.again())
    assert [candidate.path for candidate in made._candidates] == ["/docker/box"]
    assert not made._cgroups.silent
