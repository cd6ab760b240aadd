"""What keeps files out of a container. Each text is one sentence for the operator."""

from __future__ import annotations

from lxcfs_py.errors import LxcfsError


class AttachError(LxcfsError):
    """Why nothing could be done with a container."""


class EndedError(AttachError):
    """The container has ended."""


class LeftAloneError(AttachError):
    """The container is not to have files: it serves them itself, or does not want any."""


class SilentError(AttachError):
    """There is no answer: of a filesystem, or of a process that was to do it."""

    def __init__(self, text: str, device: str = "") -> None:
        super().__init__(text)
        self.device = device
        """Of that filesystem, "0:45"; "" when it is not known."""
