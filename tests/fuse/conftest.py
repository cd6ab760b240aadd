"""Recorded machines, for programs that run in a small container to look at."""

from __future__ import annotations

from tests.unit.conftest import machine, rendered

__all__ = ["machine", "rendered"]
