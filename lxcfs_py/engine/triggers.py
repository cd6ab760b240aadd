"""Triggers that readers have written into open files, and who waits for them in poll(2).

What a trigger is, only the tree knows. It is kept with the texts of open files, so that it outlives the server.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Callable, Optional

from lxcfs_py.engine import Tree, protocol
from lxcfs_py.engine.open_texts import Texts
from lxcfs_py.engine.owners import Owners
from lxcfs_py.linux import threads

log = logging.getLogger(__name__)

MOST = 16
"""Triggers that one owner, such as a container, may have."""

_MOST_OF_ALL = 2048

_KEPT = 1 << 63
"""Added to a file's handle: under this number its trigger is kept, beside its text."""


@dataclass
class _Trigger:
    what: str
    """By which the tree arms it, also in the next server."""

    owner: str
    waits: int = 0
    """The kernel's name of the file, to be told when it fires; 0 while nobody waits."""

    descriptor: Optional[int] = None
    """On which it fires; None where it never does."""

    fired: bool = False


class Triggers:
    """The triggers of one session, by the handle of the file that each was written into."""

    def __init__(self, tree: Tree, texts: Texts, wake: Callable[[int], None]) -> None:
        """`wake` tells the kernel that a file, by the kernel's name, is to be polled again."""
        self._tree = tree
        self._texts = texts
        self._wake = wake
        self._owners = Owners()
        self._held: dict[int, _Trigger] = {}
        self._fired = select.epoll()
        self._lock = threading.Lock()
        self._watching = False

    def __contains__(self, handle: int) -> bool:
        return handle in self._held

    def take_up(self) -> None:
        """Arm anew what a predecessor had. Who waits is let look again."""
        for key in self._texts.handles_from(_KEPT):
            try:
                what, owner, waits = json.loads(self._texts.get(key) or b"")
                self._arm(key - _KEPT, _Trigger(what, owner, waits))
            except (OSError, ValueError) as error:  # such as that of a cgroup that is gone
                log.debug("a trigger is not taken up: %s", error)
            else:
                self._wake(waits)

    def set(self, handle: int, what: str, writer: tuple[int, int]) -> None:
        """Arm a trigger for an open file; `writer` is a pid and a uid.

        EBUSY where the file has one, ENOSPC where those of the writer's cgroup are too many.
        """
        owner = self._owners.of(*writer)
        if handle in self._held:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if len(self._held) >= _MOST_OF_ALL or Counter(each.owner for each in self._held.values())[owner] >= MOST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        trigger = _Trigger(what, owner)
        self._arm(handle, trigger)
        self._keep(handle, trigger, writer)

    def poll(self, handle: int, waits: int, reader: tuple[int, int]) -> int:
        """Return what poll(2) is to say of an open file to a pid and uid.

        Where somebody waits, `waits` is the kernel's name of the file, else 0.
        """
        trigger = self._held.get(handle)
        if trigger is None:
            return protocol.POLL_ALWAYS | select.POLLERR | select.POLLPRI
        if waits and trigger.waits != waits:
            trigger.waits = waits
            self._keep(handle, trigger, reader)
        fired, trigger.fired = trigger.fired, False
        return protocol.POLL_ALWAYS | (select.POLLPRI if fired else 0)

    def drop(self, handle: int) -> None:
        """Forget that of a file that is closed."""
        with self._lock:
            trigger = self._held.pop(handle)
        if trigger.descriptor is not None:
            os.close(trigger.descriptor)
        self._texts.drop(handle + _KEPT)

    def _keep(self, handle: int, trigger: _Trigger, reader: tuple[int, int]) -> None:
        self._texts.put(handle + _KEPT, json.dumps([trigger.what, trigger.owner, trigger.waits]).encode(), reader)

    def _arm(self, handle: int, trigger: _Trigger) -> None:
        trigger.descriptor = self._tree.arm(trigger.what)
        with self._lock:
            self._held[handle] = trigger
        if trigger.descriptor is None:
            return
        self._fired.register(trigger.descriptor, select.EPOLLPRI | select.EPOLLET)
        if not self._watching:
            threads.start(self._watch, name="triggers")
            self._watching = True

    def _watch(self) -> None:
        while True:
            fired = {descriptor for descriptor, _ in self._fired.poll()}
            with self._lock:
                triggers = [each for each in self._held.values() if each.descriptor in fired]
            for trigger in triggers:
                trigger.fired = True
                if trigger.waits:
                    with contextlib.suppress(OSError):
                        self._wake(trigger.waits)
