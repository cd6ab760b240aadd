"""Where to listen: "HOST:PORT" as settings and options have it."""

from __future__ import annotations

import ipaddress
import re
from typing import Optional

_ADDRESS = re.compile(r"(?:\[([^][]+)\]|([a-zA-Z0-9.-]*)):([0-9]{1,5})")


def parse(text: str) -> tuple[Optional[str], int]:
    """Return host, None for all addresses, and port, of "HOST:PORT", "[IPV6]:PORT" or ":PORT". ValueError."""
    match = _ADDRESS.fullmatch(text)
    if not match or not 1 <= int(match[3]) <= 65535:
        raise ValueError(f"{text!r} is no HOST:PORT")
    if match[1]:
        ipaddress.IPv6Address(match[1])
    return match[1] or match[2] or None, int(match[3])
