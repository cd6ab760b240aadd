"""/proc/vmstat: the container's pages and events of memory, in the running kernel's own layout."""

from __future__ import annotations

import os

from lxcfs_py.config import Config
from lxcfs_py.container.containers import Container
from lxcfs_py.linux.host import Host
from lxcfs_py.views import meminfo

_PAGE = os.sysconf("SC_PAGE_SIZE")

# What /proc/meminfo calls it, for counts of pages.
_PAGES = {
    "nr_free_pages": "MemFree",
    **{f"nr_{zone}{kind}_{pages}": f"{kind.capitalize()}({pages})"
       for zone in ("", "zone_") for kind in ("inactive", "active") for pages in ("anon", "file")},
    "nr_unevictable": "Unevictable",
    "nr_zone_unevictable": "Unevictable",
    "nr_anon_pages": "AnonPages",
    "nr_mapped": "Mapped",
    "nr_file_pages": "FilePages",
    "nr_dirty": "Dirty",
    "nr_writeback": "Writeback",
    "nr_shmem": "Shmem",
    "nr_slab_reclaimable": "SReclaimable",
    "nr_slab_unreclaimable": "SUnreclaim",
    "nr_page_table_pages": "PageTables",
    "nr_sec_page_table_pages": "SecPageTables",
    "nr_swapcached": "SwapCached",
    "nr_hugetlb": "HugetlbUsed",
}  # fmt: skip
_HUGE_PAGES = {
    "nr_anon_transparent_hugepages": "AnonHugePages",
    "nr_shmem_hugepages": "ShmemHugePages",
    "nr_file_hugepages": "FileHugePages",
}


def render(container: Container, host: Host, config: Config) -> bytes:
    """Return the text: pages, and events since the cgroup was made; pgpgin and pgpgout are KiB of block I/O.

    What cgroups do not count is 0.
    """
    cgroup, memory = container.cgroup, container.cgroup.memory
    if memory is None:
        return host.text("proc/vmstat")
    amounts = meminfo.figures(cgroup, memory, host, config)
    figures = memory.events()
    figures.update({name: amounts.get(field, 0) // _PAGE for name, field in _PAGES.items()})
    figures.update({name: amounts.get(field, 0) // host.transparent_size for name, field in _HUGE_PAGES.items()})
    figures["nr_zone_write_pending"] = figures["nr_dirty"] + figures["nr_writeback"]
    figures["nr_kernel_stack"] = amounts.get("KernelStack", 0) >> 10  # the one that the kernel has in KiB
    if cgroup.io:
        read, written = container.paged.look(cgroup.io, host)
        figures["pgpgin"], figures["pgpgout"] = read >> 10, written >> 10
    return b"".join(b"%s %d\n" % (name.encode(), figures.get(name, 0)) for name in host.vmstat_layout)
