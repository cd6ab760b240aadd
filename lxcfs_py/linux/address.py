"""Where to listen: "HOST:PORT" as settings and options have it; and whether somebody does."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Optional

_LAST_PORT = 65535
ALLOWED = f"HOST:PORT, [IPV6]:PORT, with a port from 1 to {_LAST_PORT}"

_ADDRESS = re.compile(r"(?:\[([^][]+)\]|([a-zA-Z0-9.-]*)):([0-9]{1,5})")


def parse(text: str) -> tuple[Optional[str], int]:
    """Return host, None for all addresses, and port, of "HOST:PORT", "[IPV6]:PORT" or ":PORT". ValueError."""
    match = _ADDRESS.fullmatch(text)
    if not match or not 1 <= int(match[3]) <= _LAST_PORT:
        raise ValueError(f"{text!r} is no HOST:PORT")
    if match[1]:
        ipaddress.IPv6Address(match[1])
    return match[1] or match[2] or None, int(match[3])


def is_listening(path: str) -> bool:
    """Tell whether somebody listens at a socket's path: a file may be left of one that has ended."""
    wanted = os.fsencode(path)
    try:
        lines = Path("/proc/self/net/unix").read_bytes().splitlines()
    except OSError:
        return False
    listening = (line.split(None, 7) for line in lines)
    return any(len(words) == 8 and words[3] == b"00010000" and words[7] == wanted for words in listening)
