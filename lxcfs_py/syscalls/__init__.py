"""The agent that answers sysinfo(2) and sched_getaffinity(2) for containers, as a seccomp filter hands them on."""
