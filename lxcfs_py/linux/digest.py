"""A short digest of a path, the same in every version: node ids and the names of runtime files follow from it."""

from __future__ import annotations

import os

try:
    # The module that hashlib itself takes it from. hashlib loads libcrypto too: 3.6 MB of each process.
    from _blake2 import blake2b
except ImportError:
    from hashlib import blake2b


def digest(path: str) -> bytes:
    """Return 8 bytes, BLAKE2b of the path as the kernel has it."""
    return blake2b(os.fsencode(path), digest_size=8).digest()
