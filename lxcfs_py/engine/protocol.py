"""The part of <linux/fuse.h> that is needed here, under the kernel's own names.

Structures are in the machine's byte order without padding of their own, as the header lays them out. A request is
`IN_HEADER`, then the structure of its opcode; a reply is `OUT_HEADER`, then that of its opcode.
"""

from struct import Struct

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 31  # Linux 5.4; nothing that came later is used, but for what older kernels pass over
ROOT_ID = 1
MIN_READ_BUFFER = 8192  # bytes; the kernel hands out no request to a smaller read
MAX_WRITE = 4096  # bytes; the least that the kernel takes, and keeps MIN_READ_BUFFER enough for any request

# opcodes
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
GETLK = 31
SETLK = 32
SETLKW = 33
ACCESS = 34
INTERRUPT = 36
DESTROY = 38
IOCTL = 39
POLL = 40
BATCH_FORGET = 42
READDIRPLUS = 44

# SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, CREATE, FALLOCATE, RENAME2
WRITING = (6, 8, 9, 10, 11, 12, 13, 35, 43, 45)

# for which the kernel holds the lock of a directory or a file, for whomever it is, until they are answered; GETATTR is
# asked by lseek(2) to the end of a file too
LOCKING = frozenset((LOOKUP, GETATTR, SETATTR, WRITE, READDIR, READDIRPLUS, *WRITING))

# notifications, sent in place of an errno in a reply to no request
NOTIFY_POLL = 1
NOTIFY_INVAL_INODE = 2

# INIT flags
ASYNC_READ = 1 << 0  # several reads of one open file at a time
POSIX_LOCKS = 1 << 1  # ask the server for locks; without, the kernel has them in common for all who open a file
FLOCK_LOCKS = 1 << 10
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15  # io_uring takes a short read for the end; without, Linux 6.18 repeats it
PARALLEL_DIROPS = 1 << 18  # several lookups in one directory at a time

WANTED = ASYNC_READ | POSIX_LOCKS | FLOCK_LOCKS | DO_READDIRPLUS | READDIRPLUS_AUTO | ASYNC_DIO | PARALLEL_DIROPS

# OPEN flags
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NOFLUSH = 1 << 5  # Linux 5.16
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6  # Linux 6.2; older ones do not look at it

# GETATTR flags
GETATTR_FH = 1 << 0  # it is asked of an open file

# SETATTR valid: what an open for writing with O_TRUNC sets, and nothing else
FATTR_SIZE = 1 << 3
FATTR_TRUNCATING = FATTR_SIZE | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11
# size, mtime, handle, mtime now, lock owner, ctime, kill suid and sgid

# POLL flags
POLL_SCHEDULE_NOTIFY = 1 << 0  # somebody waits

# what poll(2) says of a file that has no poll of its own
POLL_ALWAYS = 0x145  # POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM

# READ flags
READ_LOCKOWNER = 1 << 1  # it is a process's own read; without, it fills the page cache, which all processes share

IN_HEADER = Struct("=IIQQ8xI4x")  # len, opcode, unique, nodeid, (uid, gid), pid, (total_extlen, padding)
OWNER, OWNER_OFFSET = Struct("=I4xI"), 24  # in IN_HEADER: uid, (gid), pid
OUT_HEADER = Struct("=IiQ")  # len, error, unique

INIT_IN = Struct("=IIII")  # major, minor, max_readahead, flags
INIT_OUT = Struct("=IIIIHHII36x")  # major, minor, max_readahead, flags, max_background, congestion_threshold,
#                                    max_write, time_gran; the rest is for flags that are not WANTED
ATTR = Struct("=QQQQQQIIIIIIIIII")  # ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
#                                     mode, nlink, uid, gid, rdev, blksize, flags
ENTRY_OUT = Struct("=QQQQII")  # nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec; ATTR
ATTR_OUT = Struct("=QII")  # attr_valid, attr_valid_nsec, dummy; ATTR
GETATTR_IN = Struct("=I4xQ")  # getattr_flags, fh
ACCESS_IN = Struct("=II")  # mask, padding
OPEN_IN = Struct("=II")  # flags, open_flags
OPEN_OUT = Struct("=QII")  # fh, open_flags, padding
READ_IN = Struct("=QQII")  # fh, offset, size, read_flags; the rest is not asked for
SETATTR_IN = Struct("=I4x")  # valid; the rest is not asked for
WRITE_IN = Struct("=QQI12xI4x")  # fh, offset, size, (write_flags, lock_owner), flags, (padding); the data
WRITE_OUT = Struct("=I4x")  # size
POLL_IN = Struct("=QQII")  # fh, kh, flags, events
POLL_OUT = Struct("=I4x")  # revents
LK_OUT = Struct("=QQII")  # start, end, type, pid
RELEASE_IN = Struct("=Q")  # fh; the rest is not asked for
DIRENT = Struct("=QQII")  # ino, off, namelen, type; name, padded to 8 bytes
STATFS_OUT = Struct("=QQQQQIII28x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
NOTIFY_POLL_OUT = Struct("=Q")  # kh
NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")  # ino, off, len
