"""The socket at which commands ask a daemon."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import threading

import pytest

from lxcfs_py.config import Config
from lxcfs_py.daemon import control, last_config
from lxcfs_py.linux import mountpoint, runtime_directory
from lxcfs_py.linux.mount_table import Mount


@pytest.fixture(autouse=True)
def _runtime(tmp_path, monkeypatch):
    """A directory in place of /run/lxcfs-py."""
    monkeypatch.setattr(runtime_directory, "PATH", str(tmp_path / "run"))


@pytest.fixture
def daemon():
    """daemon(mountpoint, file, errors, remarks): one that answers; what ends that."""
    with contextlib.ExitStack() as stack:

        def start(mount, file, errors=(), remarks=()):
            def answer(request):
                assert request.get("path") is None or request["pid"]
                told = {"mountpoint": mount, "configuration": {"file": file}}
                return json.dumps([errors, remarks] if request.get("reload") else told).encode()

            return stack.callback(control.listen(mount, answer, lambda: None))

        yield start


def test_who_asks_for_a_reload_gets_its_errors_and_remarks_however_long(daemon):
    daemon("/srv/a", "/etc/lxcfs.toml", ["wrong" * 100_000], ["by the way"])
    assert stat.S_IMODE(os.stat(control.path_of("/srv/a")).st_mode) == 0o600
    assert control.reload("/etc/lxcfs.toml") == (["wrong" * 100_000], ["by the way"])


def test_an_answer_that_cannot_be_read_is_none():
    stop = control.listen("/srv/a", lambda _: b"[" * 200_000, lambda: None)
    with pytest.raises(control.NotAnsweringError):
        control.ask("/srv/a")
    stop()


def test_all_daemons_of_one_file_reload_it_and_no_others(daemon):
    daemon("/srv/a", "/etc/lxcfs.toml", remarks=["a"])
    daemon("/srv/b", "/etc/lxcfs.toml", remarks=["b"])
    daemon("/srv/c", "/etc/other.toml", remarks=["c"])
    _, remarks = control.reload("/etc/lxcfs.toml")
    assert sorted(remarks) == ["a", "b"]


@pytest.fixture
def still(monkeypatch):
    """still(mountpoint): a daemon that takes no connection's request; its mountpoint is among the mounts."""
    monkeypatch.setattr(control, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(control._request, "__defaults__", (0.1,))
    there = []
    monkeypatch.setattr(control.mount_table, "read", lambda: there)
    with contextlib.ExitStack() as stack:

        def stand(mount):
            listener = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)))
            listener.bind(control.path_of(mount))
            listener.listen()
            there.append(Mount("0:45", "/", mount, mountpoint.FSTYPE, ""))

        yield stand


def test_a_daemon_of_another_file_that_stands_still_keeps_no_file_from_being_read(daemon, still):
    still("/srv/a")
    daemon("/srv/b", "/etc/lxcfs.toml", remarks=["b"])
    assert control.reload("/etc/lxcfs.toml") == ([], ["b"])


def test_of_two_daemons_of_one_file_that_which_stands_still_is_told_and_the_other_reloads(daemon, still):
    still("/srv/a")
    last_config.remember(Config(mountpoint="/srv/a"), "/etc/lxcfs.toml")
    daemon("/srv/b", "/etc/lxcfs.toml", remarks=["b"])
    errors, remarks = control.reload("/etc/lxcfs.toml")
    assert remarks == ["b"]
    (said,) = errors
    assert said.startswith("the daemon of /srv/a does not answer")


def test_where_all_daemons_stand_still_that_of_the_file_is_named_by_its_mountpoint(still):
    still("/srv/a")
    still("/srv/b")
    last_config.remember(Config(mountpoint="/srv/b"), "/etc/lxcfs.toml")
    for file, named in (("/etc/lxcfs.toml", "/srv/b"), ("/etc/other.toml", "/srv/[ab]")):
        with pytest.raises(control.NotAnsweringError, match=f"the daemon of {named} does not answer"):
            control.reload(file)


def test_of_a_daemon_that_stands_still_it_is_said_which_process_it_is(still):
    still("/srv/a")
    with pytest.raises(control.NotAnsweringError) as silent:
        control.ask("/srv/a")
    assert silent.value.hint.startswith(f"kill -CONT {os.getpid()} ")


def test_a_daemon_that_stands_still_does_so_however_many_wait_for_it(still):
    still("/srv/a")
    with contextlib.ExitStack() as waiting, contextlib.suppress(BlockingIOError):
        while True:
            one = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            one.setblocking(False)
            one.connect(control.path_of("/srv/a"))
    with pytest.raises(control.NotAnsweringError, match="the daemon of /srv/a does not answer"):
        control.ask("/srv/a")


def test_where_as_many_wait_as_may_one_more_is_answered_in_its_turn():
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(control.path_of("/srv/a"))
    listener.listen(0)

    def serve():
        with contextlib.suppress(OSError):  # it is closed
            while True:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(4096):
                        connection.sendall(b'{"pid": 1}')

    with contextlib.closing(listener):
        with contextlib.ExitStack() as waiting, contextlib.suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                one.setblocking(False)
                one.connect(control.path_of("/srv/a"))
        later = threading.Timer(0.1, serve)
        later.daemon = True
        later.start()
        assert control.ask("/srv/a") == {"pid": 1}
        listener.shutdown(socket.SHUT_RDWR)
        later.join()


def test_no_daemon_is_blamed_that_is_known_to_serve_with_another_file(still):
    still("/srv/a")
    last_config.remember(Config(mountpoint="/srv/a"), "/etc/lxcfs.toml")
    with pytest.raises(control.NotRunningError, match=r"^no daemon serves with /etc/other\.toml$"):
        control.reload("/etc/other.toml")
    last_config.remember(Config(mountpoint="/srv/a"), "")  # its mountpoint was given on the command line
    with pytest.raises(control.NotAnsweringError, match="the daemon of /srv/a does not answer"):
        control.reload("/etc/other.toml")


def test_a_moment_without_a_free_thread_costs_one_answer_and_no_more(daemon, monkeypatch):
    daemon("/srv/a", "/etc/lxcfs.toml")
    start = threading.Thread.start

    def refused(thread):
        monkeypatch.setattr(threading.Thread, "start", start)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(control.NotAnsweringError):
        control.ask("/srv/a")
    assert control.ask("/srv/a")["mountpoint"] == "/srv/a"


def test_without_a_daemon_or_with_one_that_died_it_is_said_that_none_runs(daemon):
    stop = daemon("/srv/a", "/etc/lxcfs.toml")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as killed:
        killed.bind(control.path_of("/srv/b"))
    assert control.reload("/etc/lxcfs.toml") == ([], [])
    stop()
    assert not os.path.exists(control.path_of("/srv/a"))
    for ask, of in ((control.reload, "/etc/lxcfs.toml"), (control.ask, "/srv/a"), (control.ask, "/srv/b")):
        with pytest.raises(control.NotRunningError, match="no daemon"):
            ask(of)


@pytest.fixture
def mounted(monkeypatch):
    """/srv/a is mounted, and somebody serves it."""
    there = [Mount("0:45", "/", "/srv/a", mountpoint.FSTYPE, "rw,user_id=0")]
    monkeypatch.setattr(mountpoint.mount_table, "read", lambda: there)
    monkeypatch.setattr(mountpoint, "answers", lambda place: True)


def test_who_may_not_ask_is_told_so_and_not_that_there_is_no_socket(daemon, mounted, request):
    daemon("/srv/a", "/etc/lxcfs.toml")
    request.getfixturevalue("ordinary_user")
    with pytest.raises(
        control.NotAnsweringError, match=r"cannot be asked: only root may ask it, in /\S+/run$"
    ) as refused:
        control.ask("/srv/a")
    assert refused.value.hint == "run this with sudo"


def test_of_a_server_without_a_socket_it_is_said_that_it_has_none(mounted):
    with pytest.raises(control.NotAnsweringError, match=r"cannot be asked: it has no socket in /\S+/run$"):
        control.ask("/srv/a")


def test_who_asks_makes_no_directory(tmp_path):
    with pytest.raises(control.NotRunningError):
        control.ask("/srv/a")
    assert not (tmp_path / "run").exists()


def test_the_end_of_a_server_leaves_the_socket_of_its_successor(daemon):
    stop = daemon("/srv/a", "/etc/old.toml")
    daemon("/srv/a", "/etc/new.toml")
    stop()
    assert control.ask("/srv/a")["configuration"]["file"] == "/etc/new.toml"


@pytest.mark.parametrize(
    ("answer", "said"), [(b"", "it said nothing within 2 s"), (b'{"a', "what it said breaks off after 3 bytes")]
)
def test_a_daemon_that_dies_over_a_request_did_not_answer(daemon, answer, said):
    def die():
        with listener.accept()[0] as connection:
            connection.recv(1 << 16)
            connection.sendall(answer)

    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(control.path_of("/srv/a"))
        listener.listen()
        dying = threading.Thread(target=die)
        dying.start()
        with pytest.raises(control.NotAnsweringError, match=f"does not answer: {said}"):
            control.ask("/srv/a")
        dying.join()


def test_of_an_answer_without_an_end_no_more_is_taken_than_the_bound(monkeypatch):
    monkeypatch.setattr(control, "_MAX_BYTES", 1 << 18)
    stop = control.listen("/srv/a", lambda request: bytes(1 << 24), lambda: None)
    reply = control.read("/srv/a", 1, "proc/meminfo")
    assert 1 << 18 <= len(reply) < (1 << 18) + (1 << 16)
    stop()


def test_no_more_loads_are_asked_for_than_the_bound(monkeypatch):
    monkeypatch.setattr(control, "_MAX_LOADS", 3)
    asked = []
    stop = control.listen("/srv/a", lambda request: asked.append(request) or b"{}", lambda: None)
    assert control.ask("/srv/a", range(10)) == {}
    assert asked == [{"loads": [0, 1, 2]}]
    stop()


@pytest.mark.parametrize("request_", [b"pardon?", b"[]", b"3", b'{"path": 1}', b"[" * 3000])
def test_who_asks_for_nothing_that_is_known_does_not_hurt_the_daemon(daemon, request_):
    daemon("/srv/a", "/etc/lxcfs.toml")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(control.path_of("/srv/a"))
        connection.sendall(request_)
        connection.settimeout(10)
        connection.recv(1)
    assert control.ask("/srv/a")["mountpoint"] == "/srv/a"


def test_one_who_waits_for_a_reload_keeps_nobody_else_waiting():
    done = threading.Event()

    def answer(request):
        if request.get("reload"):
            done.wait(10)
        return b"[[], []]" if request.get("reload") else b'{"mountpoint": "/srv/a", "configuration": {"file": "f"}}'

    stop = control.listen("/srv/a", answer, lambda: None)
    results = []
    waiting = threading.Thread(target=lambda: results.append(control.reload("f")))
    waiting.start()
    assert control.ask("/srv/a")["mountpoint"] == "/srv/a"
    done.set()
    waiting.join()
    assert results == [([], [])]
    stop()
