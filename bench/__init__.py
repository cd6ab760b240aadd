"""Side by side: the C program lxcfs, lxcfs-py, the kernel's own files, and the floor under each engine."""
