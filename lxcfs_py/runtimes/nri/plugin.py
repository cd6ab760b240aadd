"""What the plugin answers to a runtime: which events it wants, and what is added to a container that is created."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Callable, NamedTuple

from lxcfs_py.attach import results
from lxcfs_py.files import FILES
from lxcfs_py.linux.address import is_listening
from lxcfs_py.runtimes import seccomp_profile
from lxcfs_py.runtimes.names import KEY
from lxcfs_py.runtimes.nri import connection, wire
from lxcfs_py.runtimes.nri.connection import Call, Connection
from lxcfs_py.runtimes.nri.policy import (
    Container,
    Pod,
    Policy,
    adjustment,
    noted_with,
    other_agent,
    policy_with_listener,
    variables,
)
from lxcfs_py.runtimes.pods import asks_for_syscalls, unknown_words

log = logging.getLogger(__name__)

NAME, INDEX = "lxcfs-py", "50"
_CREATE_CONTAINER, _START_CONTAINER = 4, 6
_EVENTS = 1 << _CREATE_CONTAINER - 1 | 1 << _START_CONTAINER - 1


class Attachment(NamedTuple):
    """Files that a container is to get when it is there: the process is in it, or will be."""

    pid: int
    names: Sequence[str]


class Plugin:
    """Answers one runtime. Every answer lets the container start, whatever was asked."""

    def __init__(
        self,
        opened: Connection,
        policy: Policy,
        is_mounted: Callable[[], bool],
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Register. ConnectionLostError.

        `is_mounted` tells whether there are files: a container whose mounts have no sources does not start. `tell` is
        called with what came of each container that is created, a word of attach.results.
        """
        self._tell = tell
        self._connection, self._policy, self._is_mounted = opened, policy, is_mounted
        self._listener = seccomp_profile.socket_of(policy.mountpoint)
        self._pods: dict[str, Pod] = {}  # those of the synchronization that is under way
        self.is_registered = False
        opened.call("RegisterPlugin", wire.field(1, NAME) + wire.field(2, INDEX))

    def attend(self) -> list[Attachment]:
        """Answer what has been asked; return what is to be attached. ConnectionLostError."""
        attachments: list[Attachment] = []
        for call in self._connection.calls():
            try:
                message, wanted = self._answer(call)
            except LookupError:
                self._connection.answer(call, b"", connection.UNIMPLEMENTED, f"{call.method} is not implemented")
                continue
            except wire.WireError as error:
                log.error("%s cannot be read (%s): the container gets nothing", call.method, error)
                message, wanted = b"", []
            self._connection.answer(call, message)
            attachments += wanted
        return attachments

    def _answer(self, call: Call) -> tuple[bytes, list[Attachment]]:
        """Return the answer's message, and what is to be attached. LookupError for a method that there is not."""
        fields = wire.read(call.message)
        if call.method == "Configure":
            self.is_registered = True
            log.info("registered with %s %s", wire.text(fields, 2), wire.text(fields, 3))
            return wire.field(2, _EVENTS), []
        if call.method == "Synchronize":
            return self._synchronize(fields)
        if call.method == "CreateContainer":
            return self._create(Pod.read(wire.message(fields, 1)), Container.read(wire.message(fields, 2))), []
        if call.method == "StartContainer":
            return b"", self._start(wire.message(fields, 1), wire.message(fields, 2))
        if call.method == "StateChange":  # how NRI before 0.12 tells of a start
            is_start = wire.whole(fields, 1) == _START_CONTAINER
            return b"", self._start(wire.message(fields, 2), wire.message(fields, 3)) if is_start else []
        if call.method == "Shutdown":
            return b"", []
        raise LookupError(call.method)

    def _synchronize(self, fields: wire.Fields) -> tuple[bytes, list[Attachment]]:
        """Take a part of what the runtime knows; containers that run are offered what they have not got."""
        for message in wire.messages(fields, 1):
            pod = wire.read(message)
            self._pods[wire.text(pod, 1)] = Pod.read(pod)
        attachments = []
        for message in wire.messages(fields, 2):
            container = Container.read(wire.read(message))
            pod_of_it = self._pods.get(container.pod_id)
            if container.is_running and container.pid and pod_of_it:
                # What NRI gave it may be a server's that has ended; what still serves is left as it is.
                names, _ = self._policy.names_for(pod_of_it, container.without_files_of(self._policy.mountpoint))
                attachments += [Attachment(container.pid, names)] if names else []
        more = wire.whole(fields, 3)
        if not more:
            self._pods = {}
        return wire.field(2, more), attachments

    def _create(self, pod: Pod, container: Container) -> bytes:
        names, reason = self._policy.names_for(pod, container)
        without_mounts = results.LEFT_ALONE
        if names and not self._is_mounted():
            names, reason = (), f"nothing is mounted at {self._policy.mountpoint}"
            without_mounts = results.FAILED
        if reason:
            log.log(logging.WARNING if KEY in reason else logging.DEBUG, "%s: %s", _shown(pod, container), reason)
        mounted = [name for name in names if FILES[name].runc_mounts]
        self._tell(results.GIVEN if mounted else without_mounts)
        seccomp = b""
        # Where nobody listens, such a container does not start.
        if names and asks_for_syscalls(pod.annotations) and is_listening(self._listener):
            seccomp = policy_with_listener(pod, container, self._listener)
        for unknown in unknown_words(pod.annotations):
            log.warning("%s: %s", _shown(pod, container), unknown)
        if not seccomp and asks_for_syscalls(pod.annotations):
            log.warning("%s: its system calls are not answered: %s", _shown(pod, container), self._why_not(container))
        noted = noted_with(pod)
        added = adjustment(self._policy.mountpoint, mounted, variables(pod, container), noted, seccomp)
        return wire.field(1, added)

    def _why_not(self, container: Container) -> str:
        if not container.seccomp:
            return "the runtime shows no seccomp policy of it (the pod is unconfined, or it is containerd before 2.3)"
        if other_agent(container):
            return f"its seccomp policy hands calls to {other_agent(container)}, and a container has one listener"
        return f"nobody listens at {self._listener}, or it gets no files"

    def _start(self, pod: wire.Fields, container: wire.Fields) -> list[Attachment]:
        """Return what was not mounted as it was created: runc refused it, or nobody was there to say so."""
        started = Container.read(container)
        names, _ = self._policy.names_for(Pod.read(pod), started)
        return [Attachment(started.pid, names)] if names and started.pid else []


def _shown(pod: Pod, container: Container) -> str:
    return f"{pod.namespace[:63]!r}/{pod.name[:253]!r}/{container.name[:63]!r}"
