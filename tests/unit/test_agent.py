"""The agent where descriptors run out, and where one container has very many listeners."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from lxcfs_py.linux import peer, seccomp
from lxcfs_py.linux.seccomp import Notification
from lxcfs_py.syscalls import agent
from lxcfs_py.syscalls.agent import Agent
from lxcfs_py.syscalls.callers import Listener, Monitor, owner_of
from lxcfs_py.syscalls.relay import Shift
from lxcfs_py.syscalls.writers import Order, Writer, Writers


class Nothing:
    """Knows no figures."""

    def sysinfo(self, pid: int) -> None: ...

    def cpus(self, pid: int) -> None: ...


class Full(socket.socket):
    """A socket whose accept finds no descriptor, a number of times."""

    refusals = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return super().accept()


@pytest.fixture
def kept() -> dict[str, int]:
    return {}


@pytest.fixture
def agent_of(kept: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Agent:
    """One for which everything that a runtime sends is a listener."""
    monkeypatch.setattr(agent, "_is_listener", lambda descriptor: True)
    monkeypatch.setattr(agent, "_PAUSE_SECONDS", 0.1)
    return Agent(Nothing(), kept.__setitem__, kept.__delitem__, {})


@pytest.fixture
def server(agent_of: Agent, tmp_path: Path) -> Iterator[Full]:
    with contextlib.closing(Full(socket.AF_UNIX, socket.SOCK_STREAM)) as made:
        made.bind(str(tmp_path / "socket"))
        made.listen()
        agent_of.listen(made)
        yield made


@pytest.fixture
def ends() -> Iterator[list[int]]:
    """The other ends of listeners: without them, there is nobody who could call."""
    kept_open: list[int] = []
    yield kept_open
    for descriptor in kept_open:
        os.close(descriptor)


def send(made: Agent, server: Full, state: object, ends: list[int], count: int = 1) -> None:
    """Be a runtime that has started processes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as runtime:
        runtime.connect(server.getsockname())
        attend(made)
        for _ in range(count):
            read, write = os.pipe()
            socket.send_fds(runtime, [json.dumps(state).encode()], [read])
            os.close(read)
            attend(made)
            ends.append(write)
    attend(made)


def attend(made: Agent) -> None:
    """Have it do once what there is to do, in this thread."""
    shift = Shift(made._memory.take())
    made._relay._leader = shift
    made._attend_all(shift)
    made._memory.give_back(shift.slot)


def listeners(kept: dict[str, int]) -> int:
    return sum(name.startswith(Listener.PREFIX) for name in kept)


def test_without_descriptors_it_waits_says_so_once_and_takes_who_has_waited(
    agent_of: Agent, server: Full, kept: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    server.refusals = 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as runtime, caplog.at_level(logging.ERROR):
        runtime.connect(server.getsockname())
        read, write = os.pipe()
        socket.send_fds(runtime, [b'{"state": {"id": "web"}}'], [read])
        deadline = time.monotonic() + 20
        turns = 0
        while not listeners(kept):
            assert time.monotonic() < deadline
            attend(agent_of)
            turns += 1
        os.close(read)
        os.close(write)
    assert [record.getMessage() for record in caplog.records] == [
        "no listener can be taken for 0 s: Too many open files"
    ] * 2
    assert turns < 20, "it does not turn in a tight loop"


def test_one_container_has_no_more_than_its_share_of_the_listeners(
    agent_of: Agent,
    server: Full,
    kept: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ends: list[int],
) -> None:
    monkeypatch.setattr(agent, "MAX_OF_ONE", 3)
    send(agent_of, server, {"state": {"id": "greedy"}}, ends, 5)
    assert listeners(kept) == 3
    assert caplog.messages.count("a listener was refused: its container has 3 already") == 2
    send(agent_of, server, {"state": {"id": "modest"}}, ends)
    assert listeners(kept) == 4
    successor = Agent(Nothing(), lambda *_: None, lambda *_: None, kept)
    successor.listen(server)
    send(successor, server, {"state": {"id": "greedy"}}, ends)
    assert len(successor) == 4, "a successor knows whose those are that it has been handed"


def test_of_more_runtimes_than_the_bound_that_say_nothing_the_first_gives_way(
    agent_of: Agent, server: Full, kept: dict[str, int], monkeypatch: pytest.MonkeyPatch, ends: list[int]
) -> None:
    monkeypatch.setattr(agent, "MAX_CONNECTIONS", 3)
    with contextlib.ExitStack() as stack:
        runtimes = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) for _ in range(5)]
        for runtime in runtimes:
            runtime.connect(server.getsockname())
            attend(agent_of)
        assert len(kept) - len([agent.MEMORY]) == 3
        assert [runtime.recv(1) for runtime in runtimes[:2]] == [b"", b""]
        send(agent_of, server, {"state": {"id": "web"}}, ends)
        assert listeners(kept) == 1


def test_who_is_not_root_is_no_runtime(
    agent_of: Agent, server: Full, kept: dict[str, int], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(peer, "of", lambda connection: (7, 1000))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(server.getsockname())
        attend(agent_of)
        assert list(kept) == [agent.MEMORY]
        assert connection.recv(1) == b""
    assert caplog.messages == ["a connection was refused: user 1000 is not root"]


def test_lxcs_monitors_count_as_listeners_do(
    agent_of: Agent,
    kept: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(agent, "MAX_CALLERS", 3)
    with contextlib.ExitStack() as stack:
        server, *monitors = (
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in range(5)
        )
        server.bind(str(tmp_path / "lxc"))
        server.listen()
        agent_of.listen(server)
        for monitor in monitors:
            monitor.connect(server.getsockname())
            attend(agent_of)
        assert sum(name.startswith(Monitor.PREFIX) for name in kept) == 3
        assert monitors[-1].recv(1) == b""
        assert caplog.messages == ["a connection was refused: there are 3 already"], "none has more than another"


def test_a_server_that_dies_before_it_keeps_a_listener_leaves_it_to_its_successor(
    agent_of: Agent, server: Full, kept: dict[str, int]
) -> None:
    class Death(BaseException):
        """Comes between any two system calls."""

    def keep(name: str, descriptor: int) -> None:
        if name.startswith(Listener.PREFIX):
            raise Death
        kept[name] = os.dup(descriptor)

    agent_of._keep = keep
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as runtime:
        runtime.connect(server.getsockname())
        attend(agent_of)
        read, write = os.pipe()
        socket.send_fds(runtime, [b'{"state": {"id": "web"}}'], [read])
        os.close(read)
        with pytest.raises(Death):
            attend(agent_of)
        assert not listeners(kept)
        successor = Agent(Nothing(), kept.__setitem__, kept.__delitem__, dict(kept))
        assert successor._poll.poll(0), "the runtime's message is still there"
        attend(successor)
        assert listeners(kept) == 1
        os.write(write, b"a call")
        assert list(successor._callers) == [descriptor for descriptor, _ in successor._poll.poll(0)], "nothing is left"
    os.close(write)


@pytest.mark.parametrize("state", [b"", b"{", b"[]", b'{"state": 3}', b"[" * 100000])
def test_a_state_that_cannot_be_read_is_that_of_who_sent_it(state: bytes) -> None:
    assert agent._owner_in(state, 7) == agent._owner_in(b"", 7) != agent._owner_in(b"", 8)


def of(made: Agent, container: str) -> list[int]:
    return made._of(agent._owner(container))


def test_where_there_are_too_many_who_has_the_most_loses_its_latest_and_who_has_few_none(
    agent_of: Agent,
    server: Full,
    kept: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ends: list[int],
) -> None:
    monkeypatch.setattr(agent, "MAX_CALLERS", 6)
    send(agent_of, server, {"state": {"id": "modest"}}, ends)
    send(agent_of, server, {"state": {"id": "greedy"}}, ends, 5)
    first, *_, latest = of(agent_of, "greedy")
    agent_of._memory.take().expect(agent_of._callers[latest].number)
    send(agent_of, server, {"state": {"id": "late"}}, ends, 4)
    left = of(agent_of, "greedy")
    assert [len(of(agent_of, each)) for each in ("modest", "late")] == [1, 2]
    assert len(left) == 3
    assert {first, latest} < set(left), "one whose call is being answered stays, another thread may be at it"
    assert caplog.messages[-1] == "a listener was refused: there are 6 already", "it would have as many as they have"
    assert {agent.MEMORY, *(caller.name for caller in agent_of._callers.values())} == set(kept)


def test_what_came_by_a_listener_that_was_let_go_of_is_not_taken_for_anothers(
    agent_of: Agent, server: Full, ends: list[int]
) -> None:
    send(agent_of, server, {"state": {"id": "greedy"}}, ends)
    send(agent_of, server, {"state": {"id": "modest"}}, ends)
    first, other = agent_of._callers
    turn = agent_of._in_turn([(first, select.EPOLLIN), (other, select.EPOLLIN)])
    assert next(turn) == (first, select.EPOLLIN)
    agent_of._drop(other)
    send(agent_of, server, {"state": {"id": "late"}}, ends)
    assert list(agent_of._callers) == [first, other], "it has its number"
    assert list(turn) == []


LONGEST_VARIABLE = 1 << 17  # MAX_ARG_STRLEN, for LISTEN_FDNAMES


@pytest.fixture
def many_descriptors(require: Callable[[object, str], None]) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    require(hard >= 10000, "10,000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 10000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_there_are_at_most_4096_and_a_successor_is_told_of_them_all(
    agent_of: Agent, server: Full, kept: dict[str, int], caplog: pytest.LogCaptureFixture, ends: list[int]
) -> None:
    for number in range(16):
        send(agent_of, server, {"state": {"id": f"box{number}"}}, ends, 256)
    assert listeners(kept) == 4096
    send(agent_of, server, {"state": {"id": "late"}}, ends)
    assert listeners(kept) == 4096
    assert len(of(agent_of, "late")) == 1, "it is never the one that comes"
    assert sorted(len(of(agent_of, f"box{number}")) for number in range(16)) == [255, *[256] * 15]
    assert caplog.messages == ["the container with the most listeners, 256, lost its latest: there are too many"]
    assert len(":".join(kept)) < LONGEST_VARIABLE
    for caller in list(agent_of._callers.values()):
        caller.close()


def test_of_each_container_one_call_is_taken_in_a_turn_and_each_listener_gets_its_turn(
    agent_of: Agent, server: Full, ends: list[int]
) -> None:
    send(agent_of, server, {"state": {"id": "greedy"}}, ends, 5)
    send(agent_of, server, {"state": {"id": "modest"}}, ends)
    *greedy, modest = agent_of._callers
    ready = [(descriptor, select.EPOLLIN) for descriptor in agent_of._callers]
    taken = [[descriptor for descriptor, _ in agent_of._in_turn(ready)] for _ in range(5)]
    assert all(modest in turn and len(turn) == 2 for turn in taken)
    assert sorted(descriptor for turn in taken for descriptor in turn if descriptor != modest) == greedy


def test_a_container_that_kept_a_thread_waiting_is_heard_when_it_starts_again(
    agent_of: Agent, server: Full, ends: list[int]
) -> None:
    send(agent_of, server, {"state": {"id": "web"}}, ends)
    (descriptor,) = agent_of._callers
    take_back = agent_of._leave_out(descriptor)
    agent_of._drop(descriptor)  # it ended meanwhile
    send(agent_of, server, {"state": {"id": "web"}}, ends)
    (again,) = agent_of._callers
    os.write(ends[-1], b"a call")
    assert again not in dict(agent_of._poll.poll(0))
    take_back()
    assert again in dict(agent_of._poll.poll(0))


def test_a_container_that_keeps_two_waiting_is_heard_when_neither_waits_any_longer(
    agent_of: Agent, server: Full, ends: list[int]
) -> None:
    send(agent_of, server, {"state": {"id": "web"}}, ends)
    (descriptor,) = agent_of._callers
    os.write(ends[-1], b"a call")
    owner = owner_of(agent_of._callers[descriptor].number)
    of_a_writer, of_a_thread = agent_of._leave_out_all(owner), agent_of._leave_out(descriptor)
    of_a_thread()
    assert descriptor not in dict(agent_of._poll.poll(0)), "its writer is kept waiting still"
    of_a_writer()
    assert descriptor in dict(agent_of._poll.poll(0))
    assert not agent_of._left_out


def test_a_listener_that_another_thread_drops_meanwhile_keeps_nobody_from_being_left_out(
    agent_of: Agent, server: Full, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    send(agent_of, server, {"state": {"id": "web"}}, ends, 2)
    gone, stays = agent_of._callers
    owner = owner_of(agent_of._callers[stays].number)
    of = agent_of._of

    def drop_meanwhile(owner: int) -> list[int]:
        found = of(owner)
        thread = threading.Thread(target=agent_of._drop, args=[gone], daemon=True)
        thread.start()
        thread.join(0.2)
        return found

    monkeypatch.setattr(agent_of, "_of", drop_meanwhile)
    take_back = agent_of._leave_out_all(owner)
    os.write(ends[-1], b"a call")
    assert stays not in dict(agent_of._poll.poll(0))
    take_back()
    assert stays in dict(agent_of._poll.poll(0))


def test_a_connection_that_was_closed_meanwhile_is_left_out_without_an_error(agent_of: Agent) -> None:
    read, write = os.pipe()
    os.close(read)
    agent_of._leave_out(read)()
    os.close(write)


def test_a_thread_is_at_nothing_any_more_even_where_its_caller_cannot_be_given_up(
    agent_of: Agent, server: Full, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "")

    send(agent_of, server, {"state": {"id": "web"}}, ends)
    os.write(ends[-1], b"a call")
    shift = Shift(agent_of._memory.take())
    agent_of._relay._leader = shift
    monkeypatch.setattr(agent_of, "_attend", fail)
    monkeypatch.setattr(agent_of, "_drop", fail)
    with pytest.raises(OSError, match="5"):
        agent_of._attend_all(shift)
    assert not shift.since


class Caller(Listener):
    """A listener by which the same call comes again and again."""

    def __init__(self, call: Notification) -> None:
        descriptor, self.calls = os.pipe()
        super().__init__(descriptor, 5)
        os.write(self.calls, b"a call")
        self.call = call
        self.said: list[str] = []

    def receive(self, slot: memoryview) -> Notification:
        return self.call

    taken_up = receive

    def let_through(self, call: Notification) -> None:
        self.said.append("let through")

    def close(self) -> None:
        self.said.append("closed")


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError(), KeyError(), OSError(5, "")])
def test_whatever_keeps_a_call_from_being_answered_its_listener_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    class Failing(Nothing):
        def sysinfo(self, pid: int) -> None:
            raise error

    monkeypatch.setattr(Writers, "prepare", lambda self: None)
    made = Agent(Failing(), lambda *_: None, lambda *_: None, {})
    caller = Caller(Notification(1, os.getpid(), 99, seccomp.X86_64, [0] * 6))
    made._add(caller)
    for _ in range(3):
        attend(made)
        assert "closed" not in caller.said
    made._take_up(caller, made._memory.take())
    assert caller.said == ["let through"] * 4
    assert len(caplog.messages) == (not isinstance(error, agent.UNANSWERABLE)), "a container cannot fill the log"
    os.close(caller.descriptor)
    os.close(caller.calls)


class Busy:
    """A writer that is done when its time has come."""

    has_begun = True

    def __init__(self) -> None:
        self.descriptor, self.done = os.pipe()
        self.closed = False

    def is_done(self, patience: float | None) -> bool:
        return bool(select.select([self.descriptor], [], [], patience)[0])

    def close(self) -> None:
        self.closed = True


class Office:
    """Writers, each of whom is at work until it is told to be done."""

    has_idle = False

    def __init__(self) -> None:
        self.at_work: list[Busy] = []
        self.rested: list[Busy] = []
        self.take_back = self.rested.append

    def prepare(self) -> None: ...

    def begin(self, order: object) -> Busy:
        self.at_work.append(Busy())
        return self.at_work[-1]


class Calling(Caller):
    """A listener whose calls are answered by a writer, and are taken one by one."""

    def __init__(self, number: int) -> None:
        super().__init__(Notification(number, os.getpid(), 204, seccomp.X86_64, [0] * 6))
        self.number = number

    def receive(self, slot: memoryview) -> Notification:
        os.read(self.descriptor, 1)
        self.said.append("received")
        return self.call

    def order(self, call: Notification, answer: object) -> Order:
        return Order(call.pid, call.id, 0, b"", b"", b"", [self.descriptor])


@pytest.fixture
def office(agent_of: Agent, monkeypatch: pytest.MonkeyPatch) -> Office:
    """Who answers the calls of an agent."""
    made = Office()
    monkeypatch.setattr(agent_of, "_writers", made)
    monkeypatch.setattr(agent_of, "_answer_to", lambda call: call)
    return made


def test_who_keeps_a_writer_waiting_is_waited_for_by_nobody_else(agent_of: Agent, office: Office) -> None:
    slow, other = Calling(1 << 40), Calling(2 << 40)
    for caller in (slow, other):
        agent_of._add(caller)
    shift = Shift(agent_of._memory.take())
    agent_of._relay._leader = shift
    agent_of._attend_all(shift)  # one call of each is taken, though the first one is not answered yet
    assert (slow.said, other.said) == (["received"], ["received"])
    first, second = office.at_work
    assert len({work.slot.number for work in agent_of._at_work.values()}) == 2
    os.write(second.done, b"x")
    for caller in (slow, other):
        os.write(caller.calls, b"a call")
    for _ in range(3):
        agent_of._attend_all(shift)
        os.write(office.at_work[-1].done, b"x")
    assert slow.said == ["received"], "of nobody, two calls are taken at a time"
    assert len(other.said) == 4
    os.write(first.done, b"x")
    agent_of._attend_all(shift)
    os.write(office.at_work[-1].done, b"x")
    agent_of._attend_all(shift)
    assert len(slow.said) > 1
    assert first in office.rested


def ended(patience: float | None) -> bool:
    """What is_done says of a writer that has ended."""
    raise EOFError


def test_a_call_whose_writer_ends_in_the_middle_is_let_through(
    agent_of: Agent, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Busy, "is_done", lambda writer, patience: ended(patience))
    monkeypatch.setattr(Calling, "taken_up", lambda self, slot: self.call)
    caller = Calling(1 << 40)
    agent_of._add(caller)
    shift = Shift(agent_of._memory.take())
    agent_of._relay._leader = shift
    for _ in range(2):
        agent_of._attend_all(shift)
        os.write(caller.calls, b"a call")
    assert caller.said[:2] == ["received", "let through"]
    assert office.at_work[0].closed
    assert not office.rested


@pytest.mark.parametrize("error", [OSError(errno.EBADF, ""), ValueError("file descriptor cannot be -1"), LookupError()])
@pytest.mark.parametrize("is_closed", [False, True])
def test_a_call_that_cannot_be_let_through_when_its_writer_has_ended_costs_no_other_container_its_listener(
    agent_of: Agent,
    office: Office,
    kept: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    is_closed: bool,
) -> None:
    def fail(caller: Calling, slot: memoryview) -> Notification:
        caller.said.append("looked at")
        raise error

    monkeypatch.setattr(Calling, "taken_up", fail)
    broken, other = Calling(1 << 40), Calling(2 << 40)
    kept[broken.name] = broken.descriptor
    agent_of._add(broken)
    shift = Shift(agent_of._memory.take())
    agent_of._relay._leader = shift
    agent_of._attend_all(shift)
    if is_closed:
        agent_of._drop(broken.descriptor)
    monkeypatch.setattr(office.at_work[0], "is_done", ended)
    agent_of._add(other)
    agent_of._attend(shift, other.descriptor, select.EPOLLIN)
    assert other.said == ["received"]
    assert ("looked at" in broken.said) != is_closed, "a descriptor that was closed may be another's"
    assert ("closed" in broken.said) == (is_closed or not isinstance(error, LookupError))
    assert [work.caller for work in agent_of._at_work.values()] == [other]
    assert office.at_work[0].closed


def test_two_threads_may_wait_for_the_same_writer(agent_of: Agent, office: Office) -> None:
    caller = Calling(1 << 40)
    agent_of._add(caller)
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    work = agent._Work(Writer(mine), caller, agent_of._memory.take(), threading.Lock())
    agent_of._at_work[work.slot.number] = work
    told: list[bool] = []
    waiting = [
        threading.Thread(target=lambda patience=patience: told.append(agent_of._is_done(work, patience)), daemon=True)
        for patience in (None, 20)
    ]
    for thread in waiting:
        thread.start()
    its.send(bytes(4))
    for thread in waiting:
        thread.join(20)
    assert told == [True, True]
    assert office.rested == [work.writer], "once"
    assert caller.said == []
    mine.close()
    its.close()
