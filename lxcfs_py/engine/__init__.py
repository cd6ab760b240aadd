"""Who speaks to the kernel: an engine serves a filesystem written as fusepy Operations, and names the caller."""
