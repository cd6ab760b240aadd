"""A session that a node's systemd holds, told and asked over D-Bus: here by a systemd that knows one unit."""

# ruff: noqa: N802 - the methods of a systemd have D-Bus's names

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading

import jeepney
import pytest

from lxcfs_py.engine import node_keeper
from lxcfs_py.engine.node_keeper import NodeKeeperError


class Systemd:
    """A bus with nobody on it but a systemd; `refuses` has what it answers to a method with an error."""

    def __init__(self, path: str) -> None:
        self.unit: subprocess.Popen[bytes] | None = None
        self.properties: dict[str, object] = {}
        self.refuses: dict[str, tuple[str, str]] = {}
        self.heeds_stop = True
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # it was closed
            while True:
                with contextlib.suppress(ConnectionResetError), self.listener.accept()[0] as client:
                    self._speak(client)

    def _speak(self, client: socket.socket) -> None:
        lines = client.makefile("rb", buffering=0)
        answers = {b"\0AUTH": b"OK 0123456789abcdef\r\n", b"NEGOTIATE_UNIX_FD": b"AGREE_UNIX_FD\r\n"}
        while (word := lines.readline().split()[0]) != b"BEGIN":
            client.sendall(answers[word])
        parser, serial = jeepney.low_level.Parser(), 0
        while True:
            data, ancillary, *_ = client.recvmsg(65536, 1024)
            if not data:
                return
            parser.add_data(data, jeepney.fds.FileDescriptor.from_ancdata(ancillary))
            while message := parser.get_next_message():
                serial += 1
                client.sendall(self._answer(message).serialise(serial=serial))

    def _answer(self, message):
        method = message.header.fields[jeepney.HeaderFields.member]
        if method in self.refuses:
            name, text = self.refuses[method]
            return jeepney.new_error(message, name, "s", (text,))
        return jeepney.new_method_return(message, *getattr(self, method)(*message.body))

    def Hello(self):
        return "s", (":1.1",)

    def StartTransientUnit(self, name, mode, properties, auxiliary):
        assert (name, mode, self.unit) == (node_keeper.UNIT, "fail", None)
        self.properties = {name: value for name, (_, value) in properties}
        ((program, arguments, _),) = self.properties["ExecStart"]
        stdin, stdout = (self.properties[f"Standard{way}FileDescriptor"] for way in ("Input", "Output"))
        self.unit = subprocess.Popen(arguments, executable=program, stdin=stdin, stdout=stdout)
        stdin.close()
        stdout.close()
        return "o", ("/job/1",)

    def GetUnit(self, name):
        return "o", ("/unit",)

    def Get(self, interface, name):
        return "v", (("u", self.unit.pid if self.unit else 0),)

    def StopUnit(self, name, mode):
        if self.heeds_stop:
            self.end()
        return "o", ("/job/2",)

    def end(self) -> None:
        if self.unit:
            self.unit.kill()
            self.unit.wait()
        self.unit = None


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    monkeypatch.setattr(node_keeper, "BUS", str(tmp_path / "bus"))
    systemd = Systemd(node_keeper.BUS)
    yield systemd
    systemd.end()
    systemd.listener.close()


@pytest.fixture
def session():
    """Two descriptors, in place of /dev/fuse and the memory file."""
    fds = [os.open("/dev/zero", os.O_RDONLY), os.memfd_create("session")]
    yield fds
    for fd in fds:
        os.close(fd)


def test_what_is_held_can_be_taken_back_by_another_process_and_is_the_same(systemd, session):
    assert node_keeper.take_back() == []
    node_keeper.hold(session)
    assert systemd.properties["CapabilityBoundingSet"] == 0
    taken = node_keeper.take_back()
    try:
        assert all(map(os.path.sameopenfile, taken, session))
    finally:
        for fd in taken:
            os.close(fd)


def test_who_holds_a_session_goes_on_with_it_and_changes_for_another_one(systemd, session):
    node_keeper.hold(session)
    first = systemd.unit
    node_keeper.hold(session)
    assert systemd.unit is first
    another = os.memfd_create("another")
    try:
        node_keeper.hold([session[0], another])
        assert systemd.unit is not first
        taken = node_keeper.take_back()
        assert os.path.sameopenfile(taken[1], another)
    finally:
        for fd in (*taken, another):
            os.close(fd)


def test_after_its_release_nothing_is_held(systemd, session):
    node_keeper.hold(session)
    node_keeper.release()
    assert systemd.unit is None
    node_keeper.release()  # once more does nothing
    systemd.refuses["GetUnit"] = ("org.freedesktop.systemd1.NoSuchUnit", "no such unit")
    assert node_keeper.take_back() == []


def test_a_unit_that_does_not_end_is_named_with_what_to_do(systemd, session, monkeypatch):
    monkeypatch.setattr(node_keeper, "_SECONDS", 0.1)
    systemd.heeds_stop = False
    node_keeper.hold(session)
    with pytest.raises(NodeKeeperError, match=r"does not end; on the node: systemctl stop lxcfs-py-session\.service"):
        node_keeper.release()


def test_what_systemd_refuses_is_told_with_its_reason(systemd, session):
    systemd.refuses["StartTransientUnit"] = ("org.freedesktop.DBus.Error.AccessDenied", "not for you")
    with pytest.raises(NodeKeeperError, match=r"refuses StartTransientUnit of lxcfs-py-session\.service: not for you"):
        node_keeper.hold(session)
    systemd.refuses["Get"] = ("org.freedesktop.DBus.Error.AccessDenied", "nor this")
    with pytest.raises(NodeKeeperError, match=r"refuses Get of .*: nor this"):
        node_keeper.take_back()


def test_a_process_that_ended_meanwhile_cannot_be_asked_for_what_it_held(systemd, session):
    node_keeper.hold(session)
    systemd.unit.kill()
    systemd.unit.wait()
    with pytest.raises(NodeKeeperError, match="cannot be taken back: No such process"):
        node_keeper.take_back()


def test_without_a_bus_the_error_names_its_socket(tmp_path, monkeypatch):
    monkeypatch.setattr(node_keeper, "BUS", str(tmp_path / "none"))
    with pytest.raises(NodeKeeperError, match=f"cannot be asked at {tmp_path}/none: .*No such file or directory"):
        node_keeper.take_back()


def test_without_jeepney_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jeepney", None)
    with pytest.raises(NodeKeeperError, match="needs the Python package jeepney"):
        node_keeper.take_back()
