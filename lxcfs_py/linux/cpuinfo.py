"""The machine's own /proc/cpuinfo, in parts: it is long on a large machine, and measuring takes the kernel long."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from typing import Callable, NamedTuple, Optional

from lxcfs_py.linux import personality
from lxcfs_py.linux.kernel_files import KernelDirectory

_FREQUENCY_SECONDS = 1.0
_ALL = 1 << 30  # CPUs, and bytes
_CPU = re.compile(rb"(?m)^(?:processor|cpu number)[\t ]*: (\d+)$")


class Cpuinfo(NamedTuple):
    """/proc/cpuinfo in parts, of which the first and the last are of the machine: most kernels have nothing there."""

    head: bytes
    """MIPS, LoongArch and s390x begin with it."""

    blocks: dict[int, bytes]
    """By the number of the CPU; in the text, there is a blank line between them."""

    tail: bytes
    """From the end of the last block's last line: that of ppc64, and of Raspberry Pi."""


class _Known(NamedTuple):
    """What was read of it: for these CPUs online, the blocks of the CPUs below a number, good until then."""

    online: Optional[bytes]
    below: int
    until: float
    parts: Cpuinfo


class CpuinfoFile:
    """The file, which stays open, and what is known of it."""

    def __init__(
        self,
        proc: KernelDirectory,
        cpu: KernelDirectory,
        seen_by: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Read it in `proc`, the CPUs online in `cpu`, by a thread in the context that `seen_by` gives."""
        self._proc, self._cpu, self._seen_by = proc, cpu, seen_by
        text = self.text()
        head, _, self._tail = _parse(text)
        self._head_bytes = len(head)
        self._block_bytes = max(map(len, text.split(b"\n\n"))) + 32  # they differ by some digits
        # By the CPU's own counters (x86), or by a cpufreq driver.
        self._measures_frequency = b" aperfmperf" in text or os.path.exists(f"{cpu.path}/cpu0/cpufreq")
        self._known = _Known(None, 0, 0.0, Cpuinfo(b"", {}, b""))

    def as_32_bit(self) -> CpuinfoFile:
        """Return it as the machine shows it to a 32-bit personality."""
        return CpuinfoFile(self._proc, self._cpu, personality.as_32_bit)

    def text(self, enough: int = _ALL) -> bytes:
        """Return the whole text, or as much of it as has so many bytes at least."""
        with self._seen_by():
            return self._proc.read_records("cpuinfo", enough)

    def parts(self, count: int) -> Cpuinfo:
        """Return its parts, with the blocks of the CPUs below `count` at least.

        The kernel renders no more of it than is read. Where the kernel measures the CPUs' frequency, which takes it
        long, a text may be a second old; else nothing in it changes as long as the same CPUs are online.
        """
        online = self._cpu.get("online")
        known = self._known
        if online != known.online or count > known.below or time.monotonic() > known.until:
            if self._measures_frequency:
                text = self.text(self._head_bytes + count * self._block_bytes)
                parts = _parse(text[: text.rfind(b"\n\n") + 2])._replace(tail=self._tail)
                if count - 1 not in parts.blocks:
                    parts = _parse(self.text())
                known = _Known(online, count, time.monotonic() + _FREQUENCY_SECONDS, parts)
            else:
                known = _Known(online, _ALL, math.inf, _parse(self.text()))
            self._known = known
        return known.parts


def _parse(text: bytes) -> Cpuinfo:
    """Split the text; without any block of a CPU, as sparc64's, all of it is the head."""
    first = _CPU.search(text)
    if first is None:
        return Cpuinfo(text, {}, b"")
    head, text = text[: first.start()], text[first.start() :]
    blocks, last, after = {}, 0, 0
    paragraphs = text.split(b"\n\n")
    for place, paragraph in enumerate(paragraphs, 1):
        cpu = _CPU.match(paragraph)
        if cpu:
            last, after = int(cpu[1]), place
            blocks[last] = paragraph
    tail = b"\n\n".join((b"", *paragraphs[after:]))
    if not tail:  # s390x has no blank line after its last block
        blocks[last], tail = blocks[last].rstrip(b"\n"), b"\n"
    return Cpuinfo(head, blocks, tail)
