"""32-bit programs are told the same, in their own structures."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys

import pytest

from tests.fuse.test_syscalls import filtered

BASE = 0x08048000
SYSINFO = struct.Struct("=i3I6IHH2II8x")
MASK_BYTES = 128
ROOM = 8 + SYSINFO.size + MASK_BYTES


def program(mask_bytes: int) -> bytes:
    """An i386 program that writes what sysinfo and sched_getaffinity return, and then what they have written."""
    start = 52 + 32
    results = BASE + 0x1000

    def call(number: int, *arguments: int) -> bytes:
        loads = zip((0xBB, 0xB9, 0xBA), arguments)  # mov ebx, ecx, edx
        return b"\xb8" + struct.pack("=I", number) + b"".join(struct.pack("=BI", *load) for load in loads) + b"\xcd\x80"

    def store(address: int) -> bytes:  # mov [address], eax
        return b"\xa3" + struct.pack("=I", address)

    code = (
        call(116, results + 8)
        + store(results)
        + call(242, 0, mask_bytes, results + 8 + SYSINFO.size)
        + store(results + 4)
        + call(4, 1, results, ROOM)
        + call(1, 0)
    )
    header = b"\x7fELF\1\1\1" + bytes(9)
    header += struct.pack("=HHIIIIIHHHHHH", 2, 3, 1, BASE + start, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    segment = struct.pack("=8I", 1, 0, BASE, BASE, start + len(code), 0x1000 + ROOM, 7, 0x1000)
    return header + segment + code


@pytest.fixture(params=[4, 12, 128])
def program_32_bit(request, tmp_path_factory, require):
    """One of 32 bits with a mask of so many bytes; this machine runs it."""
    path = tmp_path_factory.mktemp("i386") / "program"
    path.write_bytes(program(request.param))
    path.chmod(0o755)
    runs = os.uname().machine == "x86_64" and not subprocess.run([path], capture_output=True).returncode
    require(runs, "a kernel that runs i386 programs")
    return str(path), request.param


@pytest.mark.parametrize("memory", [64 << 20, 0])
def test_a_32_bit_program_is_told_what_its_files_say(start_daemon, sandbox, program_32_bit, memory):
    path, mask_bytes = program_32_bit
    daemon = start_daemon()
    box = sandbox(memory=memory or None, cpus=1, views=daemon.mountpoint)
    out = box.run(filtered(daemon, path), text=False).stdout
    machines = box.run([path], text=False).stdout
    texts = {name: box.run(["cat", f"/proc/{name}"]).stdout for name in ("meminfo", "uptime")}
    assert len(out) == len(machines) == ROOM
    result, length = struct.unpack_from("=2i", out)
    assert (result, length) == struct.unpack_from("=2i", machines) == (0, min(mask_bytes, length))
    figures = SYSINFO.unpack_from(out, 8)
    unit = figures[-1]
    sizes = {name: int(kib) << 10 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", texts["meminfo"], re.MULTILINE)}
    assert figures[4] == sizes["MemTotal"] // unit
    assert figures[8] == sizes["SwapTotal"] // unit
    assert unit == (4096 if max(sizes["MemTotal"], sizes["SwapTotal"]) >> 32 else 1)
    assert abs(figures[0] - float(texts["uptime"].split()[0])) < 3
    assert figures[10] < 50
    (cpus,) = struct.unpack_from("=I", out, 8 + SYSINFO.size)
    online = box.run(["cat", "/sys/devices/system/cpu/online"]).stdout
    assert cpus == 1 << int(online)


# sysinfo by `int 0x80` into memory below 4 GiB, by an address with bits above that; there is memory at that one, too.
BY_INT_80 = """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
MAP_32BIT, MAP_FIXED_NOREPLACE = 0x40, 0x100000
def memory(address, flags):
    return libc.mmap(address, 4096, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags, -1, 0)
low, code = memory(None, MAP_32BIT), memory(None, 0)
high = memory(low | 0x500000000000, MAP_FIXED_NOREPLACE)
assert low < 1 << 32 < high == low | 0x500000000000
# push rbx; mov eax, 116; mov rbx, rdi; int 0x80; pop rbx; ret
ctypes.memmove(code, bytes.fromhex("53 b874000000 4889fb cd80 5b c3"), 13)
result = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(code)(high)
info, other = ctypes.string_at(low, 64), ctypes.string_at(high, 4096)
print(result, int.from_bytes(info[16:20], "little") * int.from_bytes(info[52:56], "little"), any(other))
"""


def test_a_64_bit_program_that_calls_as_a_32_bit_one_is_told_where_the_kernel_would_tell_it(
    start_daemon, sandbox, require
):
    daemon = start_daemon()
    box = sandbox(memory=64 << 20, cpus=1, views=daemon.mountpoint)
    command = [sys.executable, "-c", BY_INT_80]
    machines = box.run(command)
    require(os.uname().machine == "x86_64" and not machines.returncode, "a kernel that runs i386 programs")
    assert re.fullmatch(r"0 [1-9]\d+ False\n", machines.stdout)
    answer = box.run(filtered(daemon, *command))
    assert answer.stdout == f"0 {64 << 20} False\n", answer.stderr
