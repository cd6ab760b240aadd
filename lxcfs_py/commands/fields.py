"""Every field of every file, and where its figure comes from: for `lxcfs-py explain` and docs/views.md."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import NamedTuple, Optional


class Row(NamedTuple):
    """Fields that have the same source."""

    names: tuple[str, ...]
    """As the kernel's file has them, or patterns of fnmatch(3)."""

    v1: str
    """The source on cgroup v1, as Markdown."""

    v2: str = ""
    """The source on cgroup v2, "" where it is the same."""

    called: str = ""
    """What a document calls them, "" for the names themselves."""

    def source(self, version: int) -> str:
        """Return the source on a version of cgroups, without Markdown, and without a document's words."""
        text = (self.v2 if version == 2 and self.v2 else self.v1).replace("`", "")
        return text.replace("the tightest", "the tightest of its cgroup, those above it, its nodes and the host", 1)

    def has(self, field: str) -> bool:
        """Tell whether a field, or a path in a directory, is one of these."""
        return any(
            fnmatch.fnmatchcase(field, name) and (name == "*" or name.count("/") == field.count("/"))
            for name in self.names
        )


def _row(names: str, v1: str, v2: str = "", called: str = "") -> Row:
    return Row(tuple(names.split(", ")), v1, v2, called)


def _each(names: str, v1: str, v2: str) -> Iterator[Row]:
    """Yield a row for each name: sources that begin with one for each, in the names' order, are told apart."""
    of_each = names.split(", ")
    for number, name in enumerate(of_each):
        yield _row(name, *(_one(sources.split(", "), number, len(of_each)) for sources in (v1, v2)))


def _one(sources: list[str], number: int, count: int) -> str:
    if not all(source.startswith("`") for source in sources[:count]):
        return ", ".join(sources)  # a sentence about all of them
    return ", ".join([sources[number], *sources[count:]])


_UNCOUNTED = "0: nobody counts it"

MEMINFO = (
    _row(
        "MemTotal",
        "the least of `memory.limit_in_bytes` along the ancestors, what the nodes of `cpuset.effective_mems` have, and "
        "the host's",
        "the least of `memory.max` along the ancestors, what the nodes of `cpuset.mems.effective` have, and the "
        "host's; with `memory.high = true` of `memory.high` too",
    ),
    _row(
        "MemFree",
        "the limit less `memory.usage_in_bytes` of the tightest; that of the nodes or the host where these are it",
        "the limit less `memory.current` of the tightest; that of the nodes or the host where these are it",
    ),
    _row(
        "MemAvailable",
        "`MemFree`, and `total_active_file` and `total_inactive_file` of the tightest; the same of the nodes, or the "
        "host's, where these are it",
        "`MemFree`, and `active_file`, `inactive_file` and `slab_reclaimable` of the tightest; the same of the nodes, "
        "or the host's, where these are it",
    ),
    _row("Buffers", "0: part of `Cached`"),
    _row(
        "Cached",
        "`total_cache`; where the tightest is not the cgroup itself, what can be reclaimed there, if that is more",
        "`file`; where the tightest is not the cgroup itself, what can be reclaimed there, if that is more",
    ),
    _row("SwapCached", "`total_swapcached`, up to the swap in use", "`swapcached`, up to the swap in use"),
    *_each(
        "Active(anon), Inactive(anon)", "`total_active_anon`, `total_inactive_anon`", "`active_anon`, `inactive_anon`"
    ),
    *_each(
        "Active(file), Inactive(file)", "`total_active_file`, `total_inactive_file`", "`active_file`, `inactive_file`"
    ),
    _row("Active, Inactive", "the sum of its kinds: anonymous and of files"),
    _row("Unevictable", "`total_unevictable`", "`unevictable`"),
    _row(
        "SwapTotal",
        "the least of `memory.memsw.limit_in_bytes` less the least of `memory.limit_in_bytes`, on whatever levels "
        "these are, and the host's; what is in use where `memory.swappiness` is 0; 0 with `memory.swap = false`",
        "the least of `memory.swap.max`, and the host's; 0 with `memory.swap = false`",
    ),
    _row("SwapFree", "the least that one of these levels and the host have left"),
    *_each("Zswap, Zswapped", "0: v1 does not count it", "`zswap`, `zswapped`, up to the swap in use"),
    *_each("Dirty, Writeback", "`total_dirty`, `total_writeback`", "`file_dirty`, `file_writeback`"),
    _row("AnonPages", "`total_rss`", "`anon`"),
    _row("Mapped", "`total_mapped_file`", "`file_mapped`"),
    _row("Shmem", "`total_shmem`, up to `Cached`", "`shmem`, up to `Cached`"),
    _row(
        "SReclaimable, KReclaimable",
        "0: v1 counts no slab in bytes",
        "`slab_reclaimable`, up to what is not free",
    ),
    _row("SUnreclaim", "0: v1 counts no slab in bytes", "`slab_unreclaimable`"),
    _row("Slab", "0: v1 counts no slab in bytes", "`SReclaimable` + `SUnreclaim`"),
    *_each(
        "KernelStack, PageTables, SecPageTables, Percpu",
        "0: v1 does not count it apart",
        "`kernel_stack`, `pagetables`, `sec_pagetables`, `percpu`",
    ),
    _row("AnonHugePages", "`total_rss_huge`", "`anon_thp`"),
    *_each("ShmemHugePages, FileHugePages", "0: v1 does not count it", "`shmem_thp`, `file_thp`"),
    _row(
        "CommitLimit",
        "`MemTotal`, or the host's less its huge pages if that is less, by the host's `vm.overcommit_ratio`; or no "
        "more than its `vm.overcommit_kbytes` if that is set; + `SwapTotal`",
    ),
    _row("Committed_AS", _UNCOUNTED),
    _row(
        "HugePages_Total",
        "the least of `hugetlb.SIZE.limit_in_bytes` and `hugetlb.SIZE.rsvd.limit_in_bytes`, and the host's pages",
        "the least of `hugetlb.SIZE.max` and `hugetlb.SIZE.rsvd.max`, and the host's pages",
    ),
    _row(
        "HugePages_Free",
        "the least that is left by the limits, less `hugetlb.SIZE.usage_in_bytes`, and by the host, less what others "
        "have reserved",
        "the least that is left by the limits, less `hugetlb.SIZE.current`, and by the host, less what others have "
        "reserved",
    ),
    _row(
        "HugePages_Rsvd",
        "`hugetlb.SIZE.rsvd.usage_in_bytes` (Linux 5.7) less `hugetlb.SIZE.usage_in_bytes`",
        "`hugetlb.SIZE.rsvd.current` (Linux 5.7) less `hugetlb.SIZE.current`",
    ),
    _row("HugePages_Surp", _UNCOUNTED),
    _row("Hugetlb", "`HugePages_Total` of all sizes together"),
    _row("Hugepagesize, VmallocTotal", "the kernel's constant"),
    _row(
        "Mlocked, NFS_Unstable, Bounce, WritebackTmp, VmallocUsed, VmallocChunk, HardwareCorrupted, ShmemPmdMapped, "
        "FilePmdMapped, CmaTotal, CmaFree, Unaccepted, Balloon, GPUActive, GPUReclaim, DirectMap4k, DirectMap2M, "
        "DirectMap4M, DirectMap1G",
        _UNCOUNTED,
    ),
)

SWAPS = (
    _row("Filename, Type, Priority", "`none`, `virtual`, 0: one line for the container's share of all areas"),
    _row("Size", "`SwapTotal` of meminfo"),
    _row("Used", "`SwapTotal` less `SwapFree` of meminfo"),
)

VMSTAT = (
    _row(
        "nr_free_pages, nr_file_pages, nr_anon_pages, nr_mapped, nr_shmem, nr_dirty, nr_writeback, nr_swapcached, "
        "nr_unevictable, nr_slab_reclaimable, nr_slab_unreclaimable, nr_page_table_pages, nr_sec_page_table_pages, "
        "nr_kernel_stack, nr_anon_transparent_hugepages, nr_*_hugepages, nr_active_*, nr_inactive_*, nr_zone_active_*, "
        "nr_zone_inactive_*, nr_zone_unevictable",
        "meminfo's field of that kind, in pages (`nr_kernel_stack` in KiB; `nr_file_pages` with the swap cache)",
    ),
    _row("nr_zone_write_pending", "the sum of `nr_dirty` and `nr_writeback`"),
    _row("nr_hugetlb", "`hugetlb.SIZE.usage_in_bytes` of all sizes", "`hugetlb.SIZE.current` of all sizes"),
    _row(
        "pgpgin, pgpgout",
        "KiB of `blkio.throttle.io_service_bytes_recursive`, over all disks; what one passes on to another counts "
        "there, as far as it is counted there",
        "KiB of `rbytes`, `wbytes` of `io.stat`, over all disks; what one passes on to another counts there, as far as "
        "it is counted there",
    ),
    *_each("pgfault, pgmajfault", "`total_pgfault`, `total_pgmajfault`", "`pgfault`, `pgmajfault`"),
    _row("oom_kill", "`oom_kill` of `memory.oom_control`, of all cgroups", "`oom_kill` of `memory.events`"),
    _row(
        "pgscan_*, pgsteal_*, pgrefill, pgactivate, pgdeactivate, pglazyfree, pglazyfreed, pswpin, pswpout, "
        "swpin_zero, swpout_zero, zswp*, workingset_*, thp_*, numa_*, pgdemote_*, pgpromote_success",
        "0: v1 does not count it",
        "the field of that name in `memory.stat`, where this kernel has it there; else 0",
    ),
    _row("*", _UNCOUNTED, called="all others"),
)

DISKSTATS = (
    _row("device, name", "the host's, in its order", called="devices, names"),
    _row(
        "reads, writes, discards",
        "`blkio.throttle.io_serviced_recursive`",
        "`rios`, `wios`, `dios` of `io.stat`",
    ),
    _row(
        "sectors",
        "`blkio.throttle.io_service_bytes_recursive` ÷ 512",
        "`rbytes`, `wbytes`, `dbytes` ÷ 512",
        called="sectors of these",
    ),
    _row(
        "merged, times, in flight, flushes",
        "0: no cgroup counts them",
        called="merged requests, times, requests in flight, flushes",
    ),
    _row("partitions", "0: cgroups count by disk"),
)

CPUS = (
    _row(
        "CPUs",
        "`cpuset.effective_cpus`, cut to the least `cpu.cfs_quota_us` ÷ `cpu.cfs_period_us`; with "
        '`cpu.mode = "requests"` and no quota, to `cpu.shares` ÷ `cpu.shares_per_cpu`',
        "`cpuset.cpus.effective`, with the CPUs of partitions below, cut to the least `cpu.max`; with "
        '`cpu.mode = "requests"` and no quota, to '
        "`cpu.weight`, converted as `cpu.weights` says, ÷ `cpu.shares_per_cpu`",
        called="which CPUs",
    ),
)

CPUINFO = (
    _row("processor", "one block for each of the visible CPUs, with the kernel's number", called="`processor`"),
    _row("siblings, cpu cores", "the visible CPUs of the package, and their cores"),
    _row(
        "*",
        "the host's, also what kernels say of the machine before its CPUs and after them; to a 32-bit personality on "
        "arm64, what the kernel shows to such",
        called="all else in cpuinfo",
    ),
)

STAT = (
    _row(
        "user, system",
        "`cpuacct.usage_all`, since the container was started",
        "`user_usec`, `system_usec` of `cpu.stat` since the container was started, evenly over the CPUs",
        called="`cpu`: user, system",
    ),
    _row("nice", "0: v1 does not count it apart", "`nice_usec` of `cpu.stat`, since Linux 6.12", called="`cpu`: nice"),
    _row(
        "idle",
        "what is left of the time that the container may use, by its CPUs or its quota; if a parent's quota is the "
        "smallest, what all below that have left of it",
        called="`cpu`: idle",
    ),
    _row(
        "iowait, irq, softirq, steal, guest, guest_nice",
        _UNCOUNTED,
        called="`cpu`: iowait, irq, softirq, steal, guest, guest_nice",
    ),
    _row("intr, ctxt", _UNCOUNTED, called="`intr`, `ctxt`, `softirq`"),
    _row("btime", "the kernel's, in the reader's time namespace: start times in `/proc/PID/stat` count from it"),
    _row("processes", "`pids.peak`: the most tasks that it had at once"),
    _row("procs_running, procs_blocked", "CGROUPSTATS, and the reader", "the states of its threads, and the reader"),
)

UPTIME = (
    _row("uptime", "the age of the container, or as `uptime.source` says", called="uptime's first figure"),
    _row("idle", "stat's idle time, of all its CPUs", called="uptime's idle time"),
)

LOADAVG = (
    _row(
        "averages",
        "the kernel's formula over its tasks that run or wait for a disk, from its first read on",
        called="loadavg's averages",
    ),
    _row("running", "procs_running of stat", called="loadavg's running tasks"),
    _row("tasks", "`pids.current`", "`pids.current`, else the threads in `cgroup.threads`", called="loadavg's tasks"),
    _row("last pid", "the latest that a reader had", called="loadavg's last pid"),
)

CPU_TREE = (
    _row(
        "online, offline, present, possible, enabled, isolated, nohz_full",
        "its CPUs among those that the host names there",
    ),
    _row(
        "cpu*/topology/*_list, cpu*/topology/*_siblings, cpu*/topology/*_cpus, cpu*/cache/index*/shared_cpu_list, "
        "cpu*/cache/index*/shared_cpu_map",
        "its CPUs among those that the host names there, in the host's form",
        called="`cpuN/topology/*_list`, `*_siblings`, `*_cpus`; `cpuN/cache/indexN/shared_cpu_list`, `shared_cpu_map`",
    ),
    _row(
        "cpufreq/policy*/affected_cpus, cpufreq/policy*/related_cpus, cpufreq/policy*/freqdomain_cpus",
        "its CPUs among those that the host names there",
        called="`cpufreq/policyN/affected_cpus`, `related_cpus`, `freqdomain_cpus`",
    ),
    _row("cpufreq/policy[0-9]*", "those that are for one of its CPUs", called="`cpufreq/policyN`"),
    _row("cpu[0-9]*/thermal_throttle*", "empty: engines mask it", called="`cpuN/thermal_throttle`"),
    _row("cpu[0-9]*, cpu[0-9]*/node[0-9]*", "those of its CPUs and nodes", called="`cpuN`, `cpuN/nodeN`"),
    _row("*", "the host's", called="all else, `kernel_max` too"),
)

NODE_TREE = (
    _row(
        "online, possible, has_generic_initiator, node*/distance",
        "its nodes among those that the host names there",
        called="`online`, `possible`, `has_generic_initiator`, `nodeN/distance`",
    ),
    _row(
        "has_memory, has_*_memory",
        "those of `cpuset.effective_mems` among those that the host names there",
        "those of `cpuset.mems.effective` among those that the host names there",
    ),
    _row(
        "has_cpu, node*/cpu[0-9]*, node*/cpulist, node*/cpumap",
        "its CPUs, and the nodes that have some",
        called="`has_cpu`, `nodeN/cpuN`, `nodeN/cpulist`, `nodeN/cpumap`",
    ),
    _row(
        "node*/meminfo",
        "the node's part of the container's meminfo, in proportion to the sizes of the nodes in `has_memory`",
        "`memory.numa_stat` for what it counts; else the node's part of the container's meminfo, in proportion to the "
        "sizes of the nodes in `has_memory`",
        called="`nodeN/meminfo`",
    ),
    _row(
        "node*/hugepages/hugepages-*/*_hugepages",
        "the node's part of the container's, in proportion to how many the host has on the nodes in `has_memory`; none "
        "is surplus",
        called="`nodeN/hugepages/*/*_hugepages`, and `HugePages_*` in `nodeN/meminfo`",
    ),
    _row("node*/memory[0-9]*", "its blocks of memory", called="`nodeN/memoryN`"),
    _row(
        "node*/access*/initiators/node[0-9]*, node*/access*/targets/node[0-9]*",
        "its nodes",
        called="`nodeN/accessN/initiators/nodeN`, `nodeN/accessN/targets/nodeN`",
    ),
    _row("node*/numastat, node*/vmstat", "0: no cgroup counts them", called="`nodeN/numastat`, `nodeN/vmstat`"),
    _row(
        "node[0-9]*",
        "the nodes of its CPUs, and those of `cpuset.effective_mems`",
        "the nodes of its CPUs, and those of `cpuset.mems.effective`",
        called="`nodeN`",
    ),
    _row("*", "the host's", called="all else"),
)

MEMORY_TREE = (
    _row(
        "memory[0-9]*",
        "the first blocks of the nodes in `has_memory` that are online, as many as `MemTotal` needs; all of them where "
        "that is the nodes' or the host's",
        called="`memoryN`",
    ),
    _row("*", "the host's", called="all else"),
)

_BLOCK_TREE = (
    _row("*/stat, */*/stat", "what diskstats says of the disk; of a partition 0: cgroups count by disk"),
    _row("*", "the host's"),
)

_TABLES = {
    "proc/cpuinfo": CPUS + CPUINFO,
    "proc/diskstats": DISKSTATS,
    "proc/loadavg": LOADAVG,
    "proc/meminfo": MEMINFO,
    "proc/partitions": (_row("*", "the host's: names and sizes, of which nobody has a part"),),
    "proc/stat": CPUS + STAT,
    "proc/swaps": SWAPS,
    "proc/uptime": UPTIME,
    "proc/vmstat": VMSTAT,
    "sys/block": _BLOCK_TREE,
    "sys/class/block": _BLOCK_TREE,
    "sys/dev/block": _BLOCK_TREE,
    "sys/devices/system/cpu": CPU_TREE,
    "sys/devices/system/memory": MEMORY_TREE,
    "sys/devices/system/node": NODE_TREE,
}
"""By file; pressure and slabinfo are the kernel's own text."""


def source(file: str, field: str, version: int) -> Optional[str]:
    """Return where a field of a file comes from on a version of cgroups, None where no line tells."""
    return next((row.source(version) for row in _TABLES.get(file, ()) if row.has(field)), None)
