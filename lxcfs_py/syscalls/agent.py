"""The agent: takes listeners from container runtimes, and answers the calls that come by them.

An OCI runtime connects as a container starts, and sends the container's state and the listener (OCI runtime
specification, linux.seccomp.listenerPath). Of the state, the container's id is used, so that no container has more than
its share of the listeners: each process that is started in it by its runtime brings one. LXC keeps the listener, and
its monitor sends each call by a connection that lasts as long as the container. Who calls is told by the kernel with
each call. Listeners and connections are kept by whoever keeps the session, under names, and a call is received into
memory that is kept too: a successor answers what this process had taken when it died.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Callable, NamedTuple

from lxcfs_py.linux import peer, roots
from lxcfs_py.linux.ancillary import descriptors_in
from lxcfs_py.linux.digest import digest
from lxcfs_py.linux.seccomp import Notification
from lxcfs_py.syscalls import memory
from lxcfs_py.syscalls.answers import ANSWERS, Answer, Figures
from lxcfs_py.syscalls.callers import Caller, Listener, Monitor, number_of, owner_of
from lxcfs_py.syscalls.memory import Memory, Slot
from lxcfs_py.syscalls.relay import Relay, Shift, TakeBack
from lxcfs_py.syscalls.writers import ANSWERED, Writer, Writers

log = logging.getLogger(__name__)

MAX_CALLERS = 4096
"""Of these, who has the most loses its latest for who has fewer."""

MAX_OF_ONE = 256
"""Listeners of one container."""

MAX_CONNECTIONS = 256
"""Of runtimes that have not sent all yet."""

MEMORY = "seccomp.memory"
"""The name under which the memory is kept into which calls are received."""

_RUNTIME = "seccomp.runtime-"
"""Of the names under which runtimes' connections are kept."""

_SILENT_SECONDS = 60.0  # after an error in this program: a container must not fill the log
_PAUSE_SECONDS = 1.0  # without new connections, where there are no descriptors for them
_MOST_STATE = 1 << 16  # bytes of a container's state that are read at a time
_MOST_ANCILLARY = socket.CMSG_LEN(4 * struct.calcsize("i"))  # bytes: so many descriptors

UNANSWERABLE = (OSError, ValueError, ArithmeticError, LookupError, struct.error)
"""What is raised of a call that the kernel is to answer itself, but for errors in this program."""

PATIENCE, PATIENCE_WITH_OTHERS, PATIENCE_WITH_A_NEW_ONE = 0.01, 0.001, 0.09
"""Seconds that a writer is waited for: where there is no other one, where one waits for something to do, and where it
has to start. After `relay.PATIENCE`, who waits would be taken for who is waited for."""

Keep = Callable[[str, int], None]
Forget = Callable[[str], None]


class _Runtime(NamedTuple):
    """A runtime that has connected."""

    connection: socket.socket
    name: str
    """Under which the connection is kept."""

    pid: int


class _Work(NamedTuple):
    """What a writer is at, as long as nobody knows that it is done."""

    writer: Writer
    caller: Caller
    slot: Slot
    """In which the call is."""

    asked: threading.Lock
    """Held by who asks the writer whether it is done, which it tells once."""


class Agent:
    """Answers the calls of all containers in turn, one call of each container at a time."""

    def __init__(self, figures: Figures, keep: Keep, forget: Forget, kept: Mapping[str, int]) -> None:
        """Go on with what a predecessor kept: listeners, connections and memory by their names."""
        self._figures = figures
        self._keep, self._forget = keep, forget
        self._poll = select.epoll()
        self._servers: dict[int, tuple[socket.socket, bool]] = {}  # each with whether LXC's monitors connect to it
        self._paused: dict[int, float] = {}  # servers, and until when
        self._runtimes: dict[int, _Runtime] = {}
        self._callers: dict[int, Caller] = {}
        self._left_out: Counter[int] = Counter()  # owners that keep threads or writers waiting, by how many
        self._choice = threading.Lock()  # held by who changes which callers are attended to
        self._last: dict[int, int] = {}  # by descriptor of a caller, when it was served last
        self._served = 0
        self._silent_until = 0.0
        file = kept.get(MEMORY)
        if file is None:
            file = memory.new()
            keep(MEMORY, file)
        self._memory = Memory(file)
        self._writers = Writers()
        self._at_work: dict[int, _Work] = {}  # by the number of the slot
        self._late: dict[int, tuple[_Work, TakeBack]] = {}  # by the writer's descriptor: nobody waits for these
        self._relay = Relay(self._memory, self._attend_all, self._leave_out, self._finish)
        for name, descriptor in kept.items():
            if name.startswith(Listener.PREFIX):
                self._add(Listener(descriptor, int(name[len(Listener.PREFIX) :], 16)))
            elif name.startswith(Monitor.PREFIX):
                number = int(name[len(Monitor.PREFIX) :], 16)
                self._add(Monitor(socket.socket(fileno=descriptor), number))
            elif name.startswith(_RUNTIME):
                self._add_runtime(socket.socket(fileno=descriptor), name)

    def listen(self, server: socket.socket) -> None:
        """Take listeners from whoever connects to a socket and is root; LXC's monitors connect with packets."""
        server.setblocking(False)
        is_lxc = server.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
        self._servers[server.fileno()] = server, is_lxc
        self._poll.register(server, select.EPOLLIN)

    def start(self) -> None:
        """Answer from now on, in threads of its own."""
        by_number = {caller.number: caller for caller in self._callers.values()}
        for slot, number in list(self._memory.taken()):
            caller = by_number.get(number)
            if caller is None:
                self._memory.give_back(slot)
            else:
                self._relay.beside(slot, caller.descriptor, functools.partial(self._take_up, caller))
        self._relay.start()

    def stop(self) -> None:
        """Answer no longer, and take nothing: what comes now is for a successor."""
        self._relay.stop()
        for work in list(self._at_work.values()):
            with contextlib.suppress(Exception):  # so that none writes when a successor has answered
                self._is_done(work, PATIENCE)

    def __len__(self) -> int:
        return len(self._callers)

    def _attend_all(self, shift: Shift) -> None:
        """Do what there is to do, or wait for it."""
        events = self._poll.poll(_PAUSE_SECONDS if self._paused else None)
        for descriptor, event in events if len(events) == 1 else self._in_turn(events):
            if not self._relay.begin(shift, descriptor):
                return
            try:
                self._attend(shift, descriptor, event)
            except Exception as error:  # whatever one container does, the others are answered
                self._give_up(descriptor, error)
            finally:
                leads = self._relay.end(shift)
            if not leads:
                return
        for descriptor, until in list(self._paused.items()) if self._paused else ():
            if time.monotonic() >= until:
                del self._paused[descriptor]
                self._attend_again(descriptor)

    def _in_turn(self, events: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield what has come, but of each owner only the caller that has waited longest."""
        served = set()
        called = [(*each, self._callers.get(each[0])) for each in events]
        for descriptor, event, caller in sorted(called, key=lambda each: self._last.get(each[0], 0)):
            if self._callers.get(descriptor) is not caller:  # it was let go of meanwhile
                continue
            if caller is not None:
                owner = owner_of(caller.number)
                if owner in served:
                    continue
                served.add(owner)
                self._served += 1
                self._last[descriptor] = self._served
            yield descriptor, event

    def _attend(self, shift: Shift, descriptor: int, event: int) -> None:
        caller = self._callers.get(descriptor)
        if caller is not None:
            if event & select.EPOLLIN:
                self._receive_call(shift, caller)
            else:  # nobody is left who could call
                self._drop(descriptor)
        elif descriptor in self._servers:
            self._accept(*self._servers[descriptor])
        elif descriptor in self._runtimes:
            self._receive_listener(descriptor)
        elif descriptor in self._late:
            self._settle_late(descriptor)

    def _leave_out(self, descriptor: int) -> TakeBack:
        """Attend no longer to a descriptor, and to none of its owner's."""
        caller = self._callers.get(descriptor)
        if caller is None:
            self._ignore(descriptor)
            return lambda: self._attend_again(descriptor)
        return self._leave_out_all(owner_of(caller.number))

    def _leave_out_all(self, owner: int) -> TakeBack:
        """Attend no longer to an owner's."""
        with self._choice:
            self._left_out[owner] += 1
            for each in self._of(owner):
                self._ignore(each)
        return lambda: self._take_back(owner)

    def _take_back(self, owner: int) -> None:
        """Attend to all of an owner's again, with those that came meanwhile, unless it keeps something else waiting."""
        with self._choice:
            self._left_out[owner] -= 1
            if self._left_out[owner]:
                return
            del self._left_out[owner]
            for descriptor in self._of(owner):
                self._attend_again(descriptor)

    def _attend_again(self, descriptor: int) -> None:
        if descriptor in self._callers or descriptor in self._servers or descriptor in self._runtimes:
            with contextlib.suppress(OSError):  # it is attended to, or another thread has just closed it
                self._poll.register(descriptor, select.EPOLLIN)

    def _of(self, owner: int) -> list[int]:
        return [each for each, caller in list(self._callers.items()) if owner_of(caller.number) == owner]

    def _ignore(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # it is not attended to, or another thread has just closed it
            self._poll.unregister(descriptor)

    # Listeners

    def _accept(self, server: socket.socket, is_lxc: bool) -> None:
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._pause(server.fileno(), error)
            return
        pid, uid = peer.of(connection)
        owner = _owner(f"LXC's monitor {pid}")
        refusal = f"user {uid} is not root" if uid else self._refusal(owner) if is_lxc else ""
        if refusal:
            log.error("a connection was refused: %s", refusal)
            connection.close()
        elif is_lxc:
            monitor = Monitor(connection, number_of(owner))
            self._keep(monitor.name, monitor.descriptor)
            self._add(monitor)
        else:
            if len(self._runtimes) >= MAX_CONNECTIONS:
                self._drop(next(iter(self._runtimes)))  # which has said nothing for the longest time
            name = f"{_RUNTIME}{os.urandom(8).hex()}"
            self._keep(name, connection.fileno())
            self._add_runtime(connection, name)

    def _pause(self, server: int, error: OSError) -> None:
        """Leave those who connect waiting for a while: they have not got lost, and would be told of in a tight loop."""
        log.error("no listener can be taken for %.0f s: %s", _PAUSE_SECONDS, error.strerror)
        self._ignore(server)
        self._paused[server] = time.monotonic() + _PAUSE_SECONDS

    def _add_runtime(self, connection: socket.socket, name: str) -> None:
        connection.setblocking(False)
        self._runtimes[connection.fileno()] = _Runtime(connection, name, peer.of(connection)[0])
        self._poll.register(connection, select.EPOLLIN)

    def _receive_listener(self, descriptor: int) -> None:
        """Take the listeners that a runtime sends; what else it sends is read and thrown away.

        The message stays in the socket until its listeners are kept: whoever dies before leaves it to a successor, to
        whom a listener that comes twice does no harm.
        """
        connection, _, pid = self._runtimes[descriptor]
        try:
            message, ancillary, flags, _ = connection.recvmsg(
                _MOST_STATE, _MOST_ANCILLARY, socket.MSG_PEEK | socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            message, ancillary, flags = b"", [], 0
        owner = 0
        for listener in descriptors_in(ancillary):
            refusal = "it is none" if not _is_listener(listener) else ""
            if not refusal:
                owner = owner or _owner_in(message, pid)
                refusal = self._refusal(owner)
            if refusal:
                log.error("a listener was refused: %s", refusal)
                os.close(listener)
                continue
            caller = Listener(listener, number_of(owner))
            self._keep(caller.name, listener)
            self._add(caller)
        if flags & socket.MSG_CTRUNC:
            log.error("a listener was lost, as there was no descriptor for it: its container's calls fail")
        if message:
            connection.recv(len(message))
        else:
            self._drop(descriptor)

    def _refusal(self, owner: int) -> str:
        """Return why one more of an owner's is not taken, "" if it is: then there is room for it."""
        if len(self._of(owner)) >= MAX_OF_ONE:
            return f"its container has {MAX_OF_ONE} already"
        return "" if len(self._callers) < MAX_CALLERS or self._makes_room(owner) else f"there are {MAX_CALLERS} already"

    def _makes_room(self, owner: int) -> bool:
        """Let go of the latest of who has the most; False where the owner with one more would have as many.

        One whose call is being answered stays: another thread may be at it.
        """
        callers = list(self._callers.values())
        counts = Counter(owner_of(caller.number) for caller in callers)
        ((fullest, most),) = counts.most_common(1)
        if most <= counts[owner] + 1:
            return False
        busy = self._memory.callers()
        for caller in reversed(callers):
            if owner_of(caller.number) == fullest and caller.number not in busy:
                log.error("the container with the most listeners, %d, lost its latest: there are too many", most)
                self._drop(caller.descriptor)
                return True
        return False

    def _add(self, caller: Caller) -> None:
        with contextlib.suppress(OSError):  # then it is tried again for a call
            self._writers.prepare()
        with self._choice:
            self._callers[caller.descriptor] = caller
            if owner_of(caller.number) not in self._left_out:
                self._poll.register(caller.descriptor, select.EPOLLIN)

    def _give_up(self, descriptor: int, error: Exception) -> None:
        """Let go of what is not what it should be."""
        log.error("an agent's descriptor cannot be attended to: %r", error)
        self._drop(descriptor)

    def _drop(self, descriptor: int) -> None:
        """Let go of a caller or a runtime."""
        if descriptor in self._servers:
            return
        with self._choice:
            self._ignore(descriptor)
            caller = self._callers.pop(descriptor, None)
        if caller is not None:
            self._last.pop(descriptor, None)
            self._forget(caller.name)
            caller.close()
        runtime = self._runtimes.pop(descriptor, None)
        if runtime is not None:
            self._forget(runtime.name)
            runtime.connection.close()

    # Calls

    def _receive_call(self, shift: Shift, caller: Caller) -> None:
        self._settle(shift)
        if owner_of(caller.number) in self._left_out:
            return
        slot = shift.slot
        slot.expect(caller.number)
        try:
            call = caller.receive(slot.call)
        except LookupError:
            slot.forget()
        except EOFError:
            slot.forget()
            self._drop(caller.descriptor)
        else:
            self._begin(caller, call, slot)
            if not caller.tells_what_was_answered:
                self._settle(shift)  # before the next call of anybody

    def _take_up(self, caller: Caller, slot: Slot) -> None:
        """Answer the call that a predecessor had received, if it had not answered it."""
        try:
            self._begin(caller, caller.taken_up(slot.call), slot)
            self._wait_for(slot)
        except LookupError:
            pass
        except Exception as error:
            self._give_up(caller.descriptor, error)

    def _begin(self, caller: Caller, call: Notification, slot: Slot) -> None:
        """Have a call answered that is in a slot, which is forgotten when it is."""
        try:
            answer = self._answer_to(call)
            if answer is not None:
                writer = self._writers.begin(caller.order(call, answer))
                self._at_work[slot.number] = _Work(writer, caller, slot, threading.Lock())
                return
        except UNANSWERABLE as error:
            log.debug("a call of process %d is left to the kernel: %r", call.pid, error)
        except Exception as error:  # whatever it is, its listener goes on
            if time.monotonic() >= self._silent_until:
                self._silent_until = time.monotonic() + _SILENT_SECONDS
                log.error("a call of process %d is left to the kernel: %r", call.pid, error)
        _let_through(caller, call)
        slot.forget()

    def _answer_to(self, call: Notification) -> Answer | None:
        """Return the answer to a call, None to leave it to the kernel."""
        find = ANSWERS.get((call.arch, call.number))
        return find(call, self._figures) if find and call.pid else None

    # Writers

    def _settle(self, shift: Shift) -> None:
        """See to it that a thread can take a call: nothing is done any longer about the one in its slot.

        Where that takes long, the thread goes on with another slot, and with others' calls.
        """
        work = self._at_work.get(shift.slot.number)
        if work is None:
            return
        patience = PATIENCE_WITH_OTHERS if self._writers.has_idle else PATIENCE
        if self._is_done(work, patience if work.writer.has_begun else PATIENCE_WITH_A_NEW_ONE):
            return
        try:
            slot = self._memory.take()
        except LookupError:
            self._is_done(work, None)
            return
        shift.slot = slot
        self._late[work.writer.descriptor] = work, self._leave_out_all(owner_of(work.caller.number))
        self._poll.register(work.writer.descriptor, select.EPOLLIN)
        with contextlib.suppress(OSError):  # then it is tried again for a call
            self._writers.prepare()

    def _settle_late(self, descriptor: int) -> None:
        """Attend again to who kept a writer waiting."""
        work, take_back = self._late.pop(descriptor)
        self._ignore(descriptor)
        try:
            self._is_done(work, None)
        finally:
            self._memory.give_back(work.slot)
            take_back()

    def _finish(self, shift: Shift) -> None:
        """Wait for what is done still about the call in a thread's slot."""
        self._wait_for(shift.slot)

    def _wait_for(self, slot: Slot) -> None:
        work = self._at_work.get(slot.number)
        if work is not None:
            self._is_done(work, None)

    def _is_done(self, work: _Work, patience: float | None) -> bool:
        """Tell whether a writer is done within so many seconds, None to wait for it; its slot is free then."""
        if not work.asked.acquire(timeout=-1 if patience is None else patience):
            return False
        try:
            return self._at_work.get(work.slot.number) is not work or self._has_ended(work, patience)
        finally:
            work.asked.release()

    def _has_ended(self, work: _Work, patience: float | None) -> bool:
        """Tell whether a writer is done, as the one thread that asks it."""
        failure = None
        try:
            if not work.writer.is_done(patience):
                return False
        except (EOFError, OSError) as error:
            failure = error
        try:
            if failure is not None:
                self._make_up_for(work, failure)
        finally:
            del self._at_work[work.slot.number]
            work.slot.forget()
            if isinstance(failure, EOFError):
                work.writer.close()
            else:
                self._writers.take_back(work.writer)
        return True

    def _make_up_for(self, work: _Work, failure: Exception) -> None:
        """See to a call that a writer has not ended; whatever comes of it, it is its own caller that is given up."""
        caller = work.caller
        if not self._has(caller):  # its descriptor may be another's by now
            return
        try:
            if not isinstance(failure, EOFError):
                raise failure
            with contextlib.suppress(LookupError):  # nobody knows how far the writer came
                _let_through(caller, caller.taken_up(work.slot.call))
        except Exception as error:
            if self._has(caller):
                self._give_up(caller.descriptor, error)

    def _has(self, caller: Caller) -> bool:
        return self._callers.get(caller.descriptor) is caller


def _let_through(caller: Caller, call: Notification) -> None:
    """Let the kernel itself answer a call, if nobody has. OSError."""
    try:
        caller.let_through(call)
    except OSError as error:
        if error.errno not in ANSWERED:
            raise


def _owner(identity: str) -> int:
    """Return a number that is the same for all that have an identity, and never 0."""
    return int.from_bytes(digest(identity)[:3], "big") | 1


def _owner_in(state: bytes, runtime: int) -> int:
    """Return the number of the container whose state a runtime sends; where it does not tell, that of the process."""
    try:
        return _owner(str(json.loads(state)["state"]["id"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        return _owner(f"process {runtime}")


def _is_listener(descriptor: int) -> bool:
    return os.readlink(f"{roots.PROC}/self/fd/{descriptor}") == "anon_inode:seccomp notify"
