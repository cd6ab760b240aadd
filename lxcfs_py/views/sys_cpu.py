"""/sys/devices/system/cpu: the host's directory, with the CPUs that the container sees."""

from __future__ import annotations

from lxcfs_py.files import FILES
from lxcfs_py.views.host_tree import HostTree, Sight, listed_cpus, masked_cpus

_NAME = "sys/devices/system/cpu"


def _is_hidden(sight: Sight, cpu: int) -> bool:
    return cpu not in sight.cpus


def _is_masked(_sight: Sight, _cpu: int) -> bool:
    """How hot a CPU gets tells a container what others compute on it: newer engines mask that."""
    return True


def _node_is_hidden(sight: Sight, node: int) -> bool:
    return node not in sight.nodes


def _policy_is_hidden(sight: Sight, policy: int) -> bool:
    """Tell whether a policy of cpufreq is for hidden CPUs alone. Its number is that of one of them, seen or not."""
    try:
        cpus = sight.host.directory(_NAME).text(f"cpufreq/policy{policy}/related_cpus").split()
    except OSError:  # there is none
        return _is_hidden(sight, policy)
    return sight.cpus.isdisjoint(map(int, cpus))


def _numbers(sight: Sight, _path: str, text: bytes) -> bytes:
    """Return those of a row of CPUs ("0 1 2") that are visible, as cpufreq writes them."""
    return b" ".join(cpu for cpu in text.split() if int(cpu) in sight.cpus) + b"\n"


TREE = HostTree(
    _NAME,
    hidden={
        # An engine masks that directory of all of the machine's CPUs: one that it finds and cannot look at is an error
        # to it, and the container does not start.
        r"cpu(\d+)(?!/thermal_throttle$)": _is_hidden,
        rf"{FILES[_NAME].masked}/[^/]+": _is_masked,
        r"cpu\d+/node(\d+)": _node_is_hidden,
        r"cpufreq/policy(\d+)": _policy_is_hidden,
    },
    computed={
        r"online|offline|present|possible|enabled|isolated|nohz_full": listed_cpus,
        r"cpu\d+/topology/\w+_list|cpu\d+/cache/index\d+/shared_cpu_list": listed_cpus,
        r"cpu\d+/topology/\w+_(siblings|cpus)|cpu\d+/cache/index\d+/shared_cpu_map": masked_cpus,
        r"(cpufreq/policy\d+|cpu\d+/cpufreq)/\w+_cpus": _numbers,
    },
)
