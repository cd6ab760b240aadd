"""Whether a process may write to its own memory at an address: the kernel itself would say EFAULT where it may not.

Who writes by /proc/PID/mem writes to read-only pages too, as a debugger must. Told by PROCMAP_QUERY of <linux/fs.h>,
which Linux has since 6.11.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from lxcfs_py.linux import roots

_PROCMAP_QUERY = 0xC0686611
_WRITABLE = 0x02
# struct procmap_query: size, flags of the query, address; start, end and flags of the mapping; the rest
_QUERY = struct.Struct("=6Q56x")

_is_known = True  # to this kernel


def is_writable(pid: int, address: int, size: int) -> bool:
    """Tell whether a process may write `size` bytes at an address; True where the kernel cannot be asked.

    OSError when there is no such process.
    """
    global _is_known  # the kernel stays the same
    if not _is_known:
        return True
    maps = os.open(f"{roots.PROC}/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = address + size
        while address < end:
            query = fcntl.ioctl(maps, _PROCMAP_QUERY, _QUERY.pack(_QUERY.size, 0, address, 0, 0, 0))
            _, _, _, _, address, flags = _QUERY.unpack(query)
            if not flags & _WRITABLE:
                return False
    except OSError as error:
        if error.errno != errno.ENOTTY:
            return False
        _is_known = False
    finally:
        os.close(maps)
    return True
