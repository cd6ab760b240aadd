"""What the daemon does at its end, which must be short where another server waits for it to leave."""

from __future__ import annotations

import errno
import os
import select
import signal
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock, call

import pytest

from lxcfs_py.config import Config, Fuse
from lxcfs_py.daemon import degraded, engines, service
from lxcfs_py.engine import End, kernel, session, store
from lxcfs_py.engine.waiting import Crowd
from lxcfs_py.linux import roots
from lxcfs_py.linux.mountpoint import MountError


@pytest.fixture(autouse=True)
def _nothing_is_degraded(monkeypatch):
    monkeypatch.setattr(degraded, "_states", {})


@pytest.fixture
def served(monkeypatch):
    """What serves, with an engine that needs no mount: its `ready`, and what is `done` at the end."""
    done = []
    ready = threading.Event()
    engine = SimpleNamespace(
        name="kernel",
        stuck=lambda limit: None,
        config=Config(),
        resumes=False,
        mount=None,
        answers=lambda: True,
        wait=lambda: ready.wait(10) and End.TAKEN_OVER,
        stop=lambda: done.append("engine"),
        note_started=lambda shows_machine: None,
    )
    service_ = SimpleNamespace(
        filesystem=SimpleNamespace(config=Config(), shows_machine=False, render=None),
        supervisor=SimpleNamespace(stop=lambda: done.append("supervisor")),
        containers=[],
    )
    monkeypatch.setattr(service.engines, "choose", lambda config: engine)
    monkeypatch.setattr(service, "_start", lambda engine: service_)
    monkeypatch.setattr(service.call_agent, "start", lambda *_: lambda: done.append("calls"))
    monkeypatch.setattr(service, "_listen_for_metrics", lambda *_: lambda: done.append("metrics"))
    monkeypatch.setattr(service._Loop, "run", lambda self, ready: (ready(), select.select([self._signals], [], [])))
    monkeypatch.setattr(service.roots, "take", lambda: None)
    return SimpleNamespace(engine=engine, ready=ready, done=done)


def test_after_a_takeover_nothing_is_waited_for(served):
    """The files have no server until this process is gone; what it started ends with it."""
    assert service.serve(Config(), served.ready.set) == 0
    assert served.done == ["calls"], "which ended when all was handed over"


@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_taken_over_before_it_has_told_that_it_serves_ends_without_an_error(
    served, monkeypatch, caplog, answers
):
    """What it would listen at for commands is the successor's already."""
    caplog.set_level("INFO")
    ends = Mock()
    monkeypatch.setattr(service.threads, "start", lambda function, name: ends(function()))
    monkeypatch.setattr(service._Loop, "run", Mock(side_effect=AssertionError("it listens")))
    served.engine.answers = lambda: answers
    served.ready.set()
    assert service.serve(Config()) == 0
    ends.assert_called_once()
    assert caplog.messages[-1].endswith(End.TAKEN_OVER.value)


@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.parametrize("fails", ["_start", "_listen_for_metrics", "_wait_until_it_answers", "_Loop"])
def test_a_start_that_fails_takes_away_the_mount_that_it_made_and_no_other(served, monkeypatch, fails, resumes):
    served.engine.resumes = resumes
    monkeypatch.setattr(service, fails, Mock(side_effect=OSError(errno.EMFILE, "too many")))
    with pytest.raises(OSError, match="too many"):
        service.serve(Config())
    assert served.done == ([] if resumes else ["engine"])
    served.ready.set()


def test_why_a_start_fails_is_told_where_the_mount_cannot_be_taken_away_either(served, monkeypatch, caplog):
    served.engine.stop = Mock(side_effect=service.MountError("it is busy"))
    monkeypatch.setattr(service, "_start", Mock(side_effect=service.MountError("no memory")))
    with pytest.raises(service.MountError, match=r"^no memory$"):
        service.serve(Config())
    assert caplog.messages == ["the mount is left: it is busy"]


def test_a_server_that_has_begun_leaves_its_mount_whatever_ends_it(served, monkeypatch):
    def run(_, ready):
        ready()
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(service._Loop, "run", run)
    with pytest.raises(OSError, match="too many"):
        service.serve(Config(), served.ready.set)
    assert served.done == []


def test_a_server_that_cannot_tell_that_it_is_ready_serves(served, caplog):
    def ready():
        served.ready.set()
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert service.serve(Config(), ready) == 0
    assert served.done == ["calls"]
    assert "could not be told" in caplog.text


@pytest.mark.parametrize("error", [MountError("it is in /dev"), OSError(errno.EMFILE, "Too many open files")])
def test_a_reload_that_fails_for_whatever_reason_leaves_the_configuration_of_before(error):
    told, source = Mock(), service.Source("f", Mock(side_effect=error))
    loop = service._Loop(Mock(), Mock(), Mock(), told, source, Mock())
    loop._status = Mock(return_value="")
    assert loop._reload() == ([error.args[-1]], [])
    told.reloaded.assert_called_once_with([error.args[-1]])


def test_containers_that_are_left_to_do_have_their_turn_although_nothing_more_happens(monkeypatch):
    signals, containers = Mock(), Mock(reap=Mock(side_effect=[3.5, None]))
    selector = MagicMock()
    selector.__enter__.return_value.select = select_ = Mock(
        side_effect=[[(Mock(fileobj=containers), 0)], [], [(Mock(fileobj=signals), 0)]]
    )
    monkeypatch.setattr(service.selectors, "DefaultSelector", lambda: selector)
    loop = service._Loop(Mock(containers=containers), Mock(mount=None), Mock(), Mock(), None, signals)
    for name in ("_remember", "_listen", "_begin", "_status", "_heed"):
        monkeypatch.setattr(loop, name, Mock())
    loop.run(Mock())
    assert select_.mock_calls == [call(None), call(3.5), call(None)]


@pytest.fixture
def engine(monkeypatch):
    """The kernel engine with a session that is kept, its server's ends in `stopped`, and how it is told to leave."""
    stopped, leave = [], []
    kept = SimpleNamespace(
        mountpoint=Config().mountpoint,
        slots=[],
        is_claimable=lambda: True,
        agreed=(31, 0),
        shows_machine=False,
        starts=0,
        predecessor=None,
        others=[],
    )
    monkeypatch.setattr(
        store, "inherited", lambda: SimpleNamespace(session=lambda _: kept, put=lambda _: True, hand_over=dict)
    )
    monkeypatch.setattr(session, "offer", lambda kept, function, others: leave.append(function) or (lambda: None))
    monkeypatch.setattr(
        kernel, "Server", lambda *_: SimpleNamespace(start=lambda: None, stop=stopped.append, at_hand=[], crowd=Crowd)
    )
    monkeypatch.setattr(engines, "OwnMount", lambda *_: SimpleNamespace(clone=None, is_left_below=lambda: False))
    started = engines.KernelEngine(Config())
    started.start(SimpleNamespace())
    return SimpleNamespace(engine=started, session=kept, stopped=stopped, leave=leave)


def test_a_server_leaves_although_nobody_can_be_told(engine, monkeypatch):
    def refused(text):
        raise ConnectionRefusedError

    monkeypatch.setattr(engines, "notify", refused)
    engine.leave[0]()
    assert engine.stopped == [End.TAKEN_OVER]


def test_who_is_told_to_stop_after_it_was_taken_over_leaves_the_mount(engine, monkeypatch):
    monkeypatch.setattr(engines, "notify", lambda text: None)
    monkeypatch.setattr(engines.mountpoint, "unmount_all", pytest.fail)
    engine.leave[0]()
    engine.engine.stop()


def test_a_takeover_that_cannot_be_offered_is_a_degraded_state(engine, monkeypatch):
    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(session, "offer", refuse)
    engine.engine.start(SimpleNamespace())
    assert "Read-only file system" in degraded.states()["takeover"]


def test_all_that_another_server_hands_over_is_taken_though_nobody_listens_who_would_keep_it(engine, monkeypatch):
    taken = []

    def keep(name, descriptor, seconds):
        taken.append((name, seconds))
        raise BlockingIOError

    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(keep=keep, hand_over=dict))
    engine.session.others = [("one", 10), ("two", 11), ("three", 12)]
    engine.engine.start(SimpleNamespace())
    assert taken == [("one", 3.0), ("two", 0.0), ("three", 0.0)], "and for one alone was waited"


def test_a_server_that_systemd_starts_waits_longer_the_more_starts_have_failed(engine, monkeypatch):
    waited = []
    monkeypatch.setattr(engines.time, "sleep", waited.append)
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    engine.session.starts = 0
    for _ in range(12):
        engine.session.starts += 1
        engines.KernelEngine(Config())
    assert waited == sorted(waited)
    assert (waited[0], waited[-1], len(waited)) == (0.1, 5.0, 10)
    engine.engine.note_started(False)
    assert engine.session.starts == 0


@pytest.fixture
def in_namespaces(tmp_path, monkeypatch):
    """in_namespaces(first, own): systemd has started this process; in which mount namespaces both are."""

    def put(first, own):
        for process, namespace in (("1", first), ("self", own)):
            (tmp_path / process / "ns").mkdir(parents=True)
            (tmp_path / process / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        monkeypatch.setattr(roots, "PROC", str(tmp_path))
        monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
        monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")

    return put


@pytest.fixture
def nothing_kept(monkeypatch):
    monkeypatch.setattr(store, "inherited", lambda: SimpleNamespace(session=lambda _: None))
    monkeypatch.setattr(engines, "FusepyEngine", lambda config: "libfuse")
    return Config(fuse=Fuse(engine="fusepy"))


def test_a_service_whose_mount_nobody_would_see_mounts_nothing(in_namespaces, nothing_kept):
    in_namespaces(first=1, own=2)
    with pytest.raises(engines.MountError, match="a mount namespace of its own"):
        engines.choose(nothing_kept)


def test_a_server_of_a_pod_may_be_in_another_mount_namespace_than_the_node(in_namespaces, nothing_kept, monkeypatch):
    in_namespaces(first=1, own=2)
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/lxcfs-py/keeper-1")
    assert engines.choose(nothing_kept) == "libfuse"


def test_so_may_one_that_somebody_has_started_by_hand(in_namespaces, nothing_kept, monkeypatch):
    in_namespaces(first=1, own=2)
    monkeypatch.setenv("SYSTEMD_EXEC_PID", "1")  # the shell's, say
    assert engines.choose(nothing_kept) == "libfuse"


def test_a_service_in_the_machines_mount_namespace_mounts(in_namespaces, nothing_kept):
    in_namespaces(first=1, own=1)
    assert engines.choose(nothing_kept) == "libfuse"


def test_a_kept_mount_is_served_also_by_a_service_that_could_not_mount_it_again(engine, in_namespaces):
    in_namespaces(first=1, own=2)
    assert engines.choose(Config()).resumes
    assert "a mount namespace of its own" in degraded.states()["namespace"]


def test_of_a_storm_of_signals_none_is_lost() -> None:
    with service._Signals(signal.SIGUSR2) as signals:
        for _ in range(2000):
            signal.raise_signal(signal.SIGUSR2)
        assert select.select([signals], [], [], 10)[0]
        assert signals.take() == [signal.SIGUSR2] * 2000
        assert not select.select([signals], [], [], 0)[0]


@pytest.mark.parametrize("wanted", ["auto", "fusepy"])
@pytest.mark.parametrize("there", [False, True], ids=["missing", "refused"])
def test_who_may_not_open_the_device_is_told_so_before_anything_is_tried(wanted, there, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    device = tmp_path / "fuse"
    if there:
        device.touch()
    monkeypatch.setattr(engines, "_FUSE", str(device))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(engines.capabilities, "has", lambda pid, capability: False)
    monkeypatch.setattr(engines, "FusepyEngine", pytest.fail)
    with pytest.raises(service.MountError, match=r"^nothing can be mounted at /srv/views$") as refused:
        engines.choose(Config(mountpoint="/srv/views", fuse=Fuse(engine=wanted)))
    what = "the right to open " if there else ""
    assert refused.value.hint.startswith(f"this process has not got {what}{device}, which ")
    assert "the capability CAP_SYS_ADMIN, which root has" in refused.value.hint
    assert caplog.text == ""
