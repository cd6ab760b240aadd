"""Who speaks to the kernel: each engine serves a filesystem written as fusepy Operations, and names the caller's pid."""
